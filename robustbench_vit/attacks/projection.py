"""The nearest point of a hyperplane inside the box [0, 1], exactly (arXiv:1907.02044, sec. 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = {"linf": 0.0, "l2": 1e-8, "l1": 1e-8}
"""Weights up to this size move nothing (the reference's thresholds)."""


def onto_hyperplane(x: Tensor, w: Tensor, b: Tensor, norm: str) -> Tensor:
    """d (row, pixels) of least norm with w·(x + d) = b and x + d in [0, 1].

    x and w are (row, pixels), b is (row,). Where the box lies wholly on one side, every pixel goes as far as it may.
    Each pixel moves against the sign of its weight, by at most its room, the way to the box's wall. Between pixels of
    equal weight l1 leaves the choice open; the first in order moves first.
    """
    gap = (w * x).sum(1) - b
    w = w * torch.where(gap >= 0, 1.0, -1.0).to(w.dtype).unsqueeze(1)  # pixels move against w to lower w·x by |gap|
    gap, w = gap.abs(), F.hardshrink(w, FLAT[norm])
    weight, sign = w.abs(), w.sign()
    room = (x - sign.neg().clamp_min_(0)).abs_()  # x, or 1 - x of a pixel that rises
    way = _largest_first(gap, weight, room) if norm == "l1" else _all_together(gap, weight, room, norm)
    return way.mul_(sign).neg_()


def _all_together(gap: Tensor, weight: Tensor, room: Tensor, norm: str) -> Tensor:
    """(row, pixels): min(λ u, room) with u = 1 (linf) or the weight (l2), and λ the multiplier that closes the gap."""
    if norm == "linf":
        return torch.minimum(_multiplier(gap, weight * room, weight, room).unsqueeze(1), room)
    kink = room / weight.clamp_min(FLAT[norm])
    return torch.minimum(_multiplier(gap, weight * room, weight * weight, kink).unsqueeze(1) * weight, room)


def _multiplier(gap: Tensor, gain: Tensor, slope: Tensor, kink: Tensor) -> Tensor:
    """(row,): the λ where Σ min(λ slope, gain) = gap; the largest number where the sum never gets there.

    The sum is concave and piecewise linear with kinks at gain / slope, so Newton's method from below rises, never
    overshoots and stops exactly on the last piece. From one iterate to the next the product of what is left of the gap
    and of the slope falls at least fourfold: mostly under ten iterations, and no sort of all kinks. (Masks are floats,
    because a CPU multiplies faster than it selects.)
    """
    numbers = torch.finfo(gap.dtype)
    at = torch.where(gain.sum(1) > gap, gap / slope.sum(1).clamp_min(numbers.tiny), numbers.max)
    while True:
        moving = (kink - at.unsqueeze(1)).sign_().clamp_min_(0)  # the other pixels are at the wall
        slope_left = (moving * slope).sum(1)
        gap_left = gap - moving.neg_().add_(1).mul_(gain).sum(1)
        following = (gap_left / slope_left.clamp_min(numbers.tiny)).clamp_max(numbers.max)
        rises = following > at
        if not bool(rises.any()):
            return at
        at = torch.where(rises, following, at)


def _largest_first(gap: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """(row, pixels): in the order of falling weight each pixel goes to its wall, the last one until the gap closes."""
    weights, order = weight.sort(dim=1, descending=True, stable=True)
    rooms = room.gather(1, order)
    closed_before = F.pad((weights * rooms)[:, :-1].cumsum(1), (1, 0))
    wanted = (gap.unsqueeze(1) - closed_before) / weights.clamp_min(FLAT["l1"])
    return torch.zeros_like(room).scatter(1, order, torch.minimum(wanted.clamp_min(0), rooms))
