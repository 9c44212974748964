"""The nearest point of a hyperplane inside the box [0, 1], exactly, by sorting (arXiv:1907.02044, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

FLAT = 1e-8
"""Weights smaller than this move nothing (the reference's threshold in l2)."""


def onto_hyperplane(x: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    """d (row, pixels) of least norm with w·(x + d) = b and x + d in [0, 1].

    x and w are (row, pixels), b is (row,). Where the box lies wholly on one side, every pixel goes as far as it may.

    Each pixel moves against the sign of its weight. With λ the size of the multiplier it moves min(λ u, room), where
    u = 1 (linf) or |w| (l2) and room is the way to the box's wall. The gap closed, Σ |w| min(λ u, room), is piecewise
    linear and increasing in λ with kinks at room / u: sort the kinks and find the piece that closes the gap.
    """
    gap = (w * x).sum(1) - b
    w = torch.where(gap.unsqueeze(1) >= 0, w, -w)  # now pixels move against w to lower w·x by |gap|
    gap = gap.abs()
    room = torch.where(w > 0, x, 1 - x)
    weight = w.abs()
    moves = weight > (FLAT if norm == "l2" else 0.0)
    unit = weight if norm == "l2" else torch.ones_like(weight)
    kink = torch.where(moves, room / torch.where(moves, unit, 1.0), torch.inf)
    slope = torch.where(moves, weight * unit, 0.0)

    kinks, order = kink.sort(dim=1)
    slopes = slope.gather(1, order)
    finite = torch.where(kinks.isinf(), 0.0, kinks)
    closed_before = (slopes * finite).cumsum(1) - slopes * finite  # by pixels already at the wall
    slope_left = slopes.flip(1).cumsum(1).flip(1)  # of pixels still moving on the piece that ends at each kink
    closed_at_kink = closed_before + slope_left * finite
    piece = ((closed_at_kink < gap.unsqueeze(1)) & ~kinks.isinf()).sum(1, keepdim=True)
    out_of_reach = piece.squeeze(1) >= moves.sum(1)
    piece = piece.clamp_max(x.shape[1] - 1)
    still = slope_left.gather(1, piece).clamp_min(torch.finfo(x.dtype).tiny)
    multiplier = (gap.unsqueeze(1) - closed_before.gather(1, piece)) / still
    multiplier = torch.where(out_of_reach.unsqueeze(1), torch.inf, multiplier.clamp_min(0))
    way = torch.minimum(torch.where(moves, multiplier * unit, 0.0), room)
    return torch.where(moves, -w.sign() * way, 0.0)
