"""What Square paints with in l2 and l1: windows and bumps, two pyramids of opposite sign (arXiv:1912.00049, alg. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """How a norm counts changes: ‖v‖ᵖ = Σ |v|ᵖ."""

    power: int  # p, 1 or 2
    falloff: int  # the k-th shell of a pyramid, from 1, weighs k to the minus this

    def total(self, values: Tensor, *dims: int) -> Tensor:
        """Σ |v|ᵖ over `dims`, which stay with length 1."""
        return self.each(values).sum(dims, keepdim=True)

    def each(self, values: Tensor) -> Tensor:
        """|v|ᵖ."""
        return values.square() if self.power == 2 else values.abs()

    def root(self, total: Tensor) -> Tensor:
        """The norm that belongs to a total."""
        return total.sqrt() if self.power == 2 else total


MEASURES = {"l2": Measure(power=2, falloff=2), "l1": Measure(power=1, falloff=4)}


def corner(u: Tensor, extent: int, side: Tensor) -> Tensor:
    """int64, as `u`: uniform on [0, extent - side); the last place is never drawn, as in the reference."""
    return (u * (extent - side)).long()


def window(top: Tensor, left: Tensor, side: Tensor, h: int, w: int) -> Tensor:
    """bool (…, 1, h, w): inside the square with this corner and side (…)."""
    return (_inside(top, side, h).unsqueeze(-1) & _inside(left, side, w).unsqueeze(-2)).unsqueeze(-3)


def _inside(first: Tensor, side: Tensor, extent: int) -> Tensor:
    i = torch.arange(extent, device=first.device) - first.unsqueeze(-1)
    return (i >= 0) & (i < side.unsqueeze(-1))


@dataclass(frozen=True)
class Bumps:
    """The bumps of a few sides, ready to be placed."""

    sides: Tensor  # int64 (k,)
    table: Tensor  # (k, s + 1, s + 1) upright, in the upper left corner; s the largest side, the last row and column 0

    def place(self, top: Tensor, left: Tensor, which: Tensor, turned: Tensor, h: int, w: int) -> Tensor:
        """(…, 1, h, w): the bump number `which` (…) with its corner at (top, left), zero elsewhere."""
        side, stride = self.sides[which], self.table.shape[1]
        i, j = self._offsets(top, side, h), self._offsets(left, side, w)
        down = i * torch.where(turned, 1, stride).unsqueeze(-1)
        across = j * torch.where(turned, stride, 1).unsqueeze(-1)
        first = (which * stride**2).unsqueeze(-1).unsqueeze(-1)
        return self.table.flatten()[first + down.unsqueeze(-1) + across.unsqueeze(-2)].unsqueeze(-3)

    def _offsets(self, first: Tensor, side: Tensor, extent: int) -> Tensor:
        """int64 (…, extent): place within the bump, or that of a zero."""
        i = torch.arange(extent, device=first.device) - first.unsqueeze(-1)
        return torch.where((i >= 0) & (i < side.unsqueeze(-1)), i, self.table.shape[1] - 1)


@lru_cache(maxsize=16)
def bumps(norm: str, sides: tuple[int, ...], dtype: torch.dtype, device: str) -> Bumps:
    """The bumps of these sides, and of no other: each of norm 1."""
    stride = max(sides) + 1
    table = torch.zeros(len(sides), stride, stride, dtype=torch.float64)
    for which, side in enumerate(sides):
        table[which, :side, :side] = bump(MEASURES[norm], side)
    return Bumps(torch.tensor(sides, device=device), table.to(device=device, dtype=dtype))


def bump(measure: Measure, side: int) -> Tensor:
    """float64 (side, side) of norm 1: a positive pyramid above a negative one."""
    upper = side // 2
    return _normed(torch.cat([_pyramid(measure, upper, side), -_pyramid(measure, side - upper, side)]), measure)


def _pyramid(measure: Measure, h: int, w: int) -> Tensor:
    """(h, w) of norm 1: Σ_{k>d} k^-falloff at Chebyshev distance d from the centre (h // 2, w // 2)."""
    distance = torch.maximum((torch.arange(h) - h // 2).abs().view(-1, 1), (torch.arange(w) - w // 2).abs().view(1, -1))
    shells = torch.arange(1, max(h // 2, w // 2) + 2, dtype=torch.float64) ** -measure.falloff
    beyond = torch.cat([shells.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    pyramid = beyond[distance.clamp_max(len(beyond) - 1)]
    return _normed(pyramid, measure) if h > 0 else pyramid


def _normed(values: Tensor, measure: Measure) -> Tensor:
    return values / measure.root(measure.total(values, 0, 1))


def tiled(measure: Measure, side: int, signs: Tensor, turned: Tensor) -> Tensor:
    """(row, c, m·side, n·side): a bump on each of m × n tiles, with signs (row, m, n, c) and turned (row, m, n)."""
    upright = bump(measure, side).to(signs)
    rows, m, n, c = signs.shape
    shaped = torch.where(
        turned.view(rows, m, 1, n, 1), upright.T.view(1, 1, side, 1, side), upright.view(1, 1, side, 1, side)
    )
    return (shaped.unsqueeze(1) * signs.permute(0, 3, 1, 2).reshape(rows, c, m, 1, n, 1)).reshape(
        rows, c, m * side, n * side
    )
