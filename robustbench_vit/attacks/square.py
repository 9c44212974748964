"""Square attack: random search over windows, from scores only (arXiv:1912.00049), as AutoAttack sets it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.attacks.losses import margin
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS, TINY
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Access, Candidates, Cost, Oracles, Start, pick, spread
from robustbench_vit.cards import Number

START, TILE_TURNS, WINDOW = 0, 1, 2  # noise streams
SHARE_HALVES_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries; not rescaled to the budget
DRAWS_AHEAD = 64
"""Queries whose draws are made in one go; they don't depend on the image."""
LOOK_AHEAD = 4
"""At most so many of a row's next proposals are looked at in one step, to skip those that change nothing."""


@dataclass(frozen=True)
class SquareState:
    """State of Square rows."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w) the best point so far
    loss: Tensor  # (row,) its margin, max_{j≠y} z_j - z_y
    asked: Tensor  # int64 (row,) proposals decided so far, the start included
    found: Tensor  # bool (row,)
    draws: Tensor  # (row, DRAWS_AHEAD, k) uniforms for the proposals from number `draws_from` on
    draws_from: Tensor  # int64 (row,)


@algorithms.register("square")
@settings
class Square:
    """Repaints random windows and keeps what raises the margin.

    Differs from the reference, which draws one window for a whole batch: every row draws its own, so that its outcome
    doesn't depend on its neighbours. A proposal that changes nothing (the window already holds it) is decided without
    a model call; it could not have raised the margin.
    """

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    queries: Annotated[StrictInt, Field(ge=1)]
    initial_share: Annotated[Number, Field(gt=0, le=1)]  # p, of the pixels in the first windows
    restart_count: Annotated[StrictInt, Field(ge=1, alias="restarts")]

    def restarts(self) -> int:
        return self.restart_count

    def targets(self, num_classes: int) -> int:
        return 0

    def cost(self, num_classes: int) -> Cost:
        return Cost(self.restart_count * (self.queries + 1), 0)

    def init(self, start: Start, noise: Noise) -> SquareState:
        rows, device = len(start.x0), start.x0.device
        first = _stripes if self.norm == "linf" else _tiles
        return SquareState(
            x0=start.x0,
            y=start.y,
            eps=start.eps,
            x=first(start.x0, start.eps, noise),
            loss=torch.full((rows,), -torch.inf, dtype=start.x0.dtype, device=device),
            asked=torch.zeros(rows, dtype=torch.int64, device=device),
            found=torch.zeros(rows, dtype=torch.bool, device=device),
            draws=torch.zeros(rows, DRAWS_AHEAD, self._draws(start.x0), device=device),
            draws_from=torch.full((rows,), -DRAWS_AHEAD, dtype=torch.int64, device=device),
        )

    def _draws(self, x0: Tensor) -> int:
        """Uniforms per proposal: corners, a turn (l2) and a sign per channel."""
        return (2 if self.norm == "linf" else 5) + x0.shape[1]

    def step(self, state: SquareState, oracles: Oracles, noise: Noise) -> SquareState:
        """One query of every row that has a proposal worth asking about."""
        state = self._drawn(state, noise)
        x, asked, rows = self._proposals(state)
        if len(rows) == 0:
            return dataclasses.replace(state, asked=asked)
        logits = oracles.target.scores(x, rows)
        y = state.y[rows]
        loss, wrong = margin(logits, y, y), logits.argmax(1) != y
        better = (loss > state.loss[rows]) | wrong
        return dataclasses.replace(
            state,
            x=state.x.index_copy(0, rows, pick(better, x, state.x[rows])),
            loss=state.loss.index_copy(0, rows, torch.where(better, loss, state.loss[rows])),
            asked=asked,
            found=state.found.index_copy(0, rows, state.found[rows] | wrong),
        )

    def _drawn(self, state: SquareState, noise: Noise) -> SquareState:
        """The state with draws for at least the next LOOK_AHEAD proposals of every row."""
        if bool((state.asked + LOOK_AHEAD <= state.draws_from + DRAWS_AHEAD).all()):
            return state
        draws = noise.uniform_ahead((state.draws.shape[2],), WINDOW, state.asked, DRAWS_AHEAD)
        return dataclasses.replace(state, draws=draws, draws_from=state.asked)

    def _proposals(self, state: SquareState) -> tuple[Tensor, Tensor, Tensor]:
        """Images worth a query (m, c, h, w), the count of decided proposals (row,), and whose they are (m,)."""
        rows, ahead = len(state.x), min(LOOK_AHEAD, max(4096 // state.x[0].numel(), 1))
        query = state.asked.unsqueeze(1) + torch.arange(ahead, device=state.x.device)  # (row, ahead)
        draws = state.draws.gather(1, self._positions(state, query))
        propose = _repaint if self.norm == "linf" else _move_mass
        each = torch.arange(rows, device=state.x.device).repeat_interleave(ahead)
        side = self._side(query.flatten() - 1, state.x0.shape)
        proposals = propose(_Rows(state, each), side, draws.flatten(0, 1)).view(rows, ahead, *state.x.shape[1:])

        is_start = query[:, 0] == 0
        worth = (proposals != state.x.unsqueeze(1)).flatten(2).any(2) & (query > 0) & (query <= self.queries)
        worth[:, 0] |= is_start
        asks = worth.any(1)
        first = worth.int().argmax(1)
        x = pick(is_start, state.x, proposals[torch.arange(rows, device=state.x.device), first])
        decided = torch.where(is_start, 1, torch.where(asks, first + 1, ahead))
        which = asks.nonzero().flatten()
        return x[which], (state.asked + decided).clamp_max(self.queries + 1), which

    def _positions(self, state: SquareState, query: Tensor) -> Tensor:
        """(row, ahead, k): where the draws of these queries stand in `draws`."""
        position = query - state.draws_from.unsqueeze(1)
        return position.unsqueeze(2).expand(*query.shape, state.draws.shape[2])

    def _side(self, query: Tensor, shape: torch.Size) -> Tensor:
        """int64 (m,): the window's side for each query number, counted from 0."""
        sides, after = _side_table(self.norm, self.initial_share, *shape[2:], str(query.device))
        return sides[torch.bucketize(query, after)]

    def finished(self, state: SquareState) -> Tensor:
        return state.asked > self.queries

    def best(self, state: SquareState) -> Candidates:
        return Candidates(state.x, state.found, NORMS[self.norm].size(state.x - state.x0))


@lru_cache(maxsize=16)
def _side_table(norm: str, share: float, h: int, w: int, device: str) -> tuple[Tensor, Tensor]:
    """The sides in the order they are used, and the query numbers after which the next one begins."""
    sides = []
    for halvings in range(len(SHARE_HALVES_AFTER) + 1):
        side = round(math.sqrt(share / 2**halvings * h * w))
        side = max(side, 1) if norm == "linf" else max(side, 3) // 2 * 2 + 1
        sides.append(min(side, h, w))
    return torch.tensor(sides, device=device), torch.tensor(SHARE_HALVES_AFTER, device=device)


class _Rows:
    """The parts of a state that proposals need, for some of its rows."""

    def __init__(self, state: SquareState, index: Tensor) -> None:
        self.x0, self.x, self.eps = state.x0[index], state.x[index], spread(state.eps[index], state.x0)


def _stripes(x0: Tensor, eps: Tensor, noise: Noise) -> Tensor:
    """Vertical stripes of ±eps, one sign per channel and column."""
    _, c, _, w = x0.shape
    signs = noise.signs((c, 1, w), START).to(x0.dtype)
    return (x0 + spread(eps, x0) * signs).clamp(0, 1)


def _repaint(rows: _Rows, side: Tensor, draw: Tensor) -> Tensor:
    """The best point with ±2 eps per channel added in a random window, clipped to the ball and the box."""
    _, c, h, w = rows.x0.shape
    window = _window(_corner(draw[:, 0], h, side), _corner(draw[:, 1], w, side), side, h, w)
    signs = torch.where(draw[:, 2:] < 0.5, -1.0, 1.0).to(rows.x0.dtype)
    x = rows.x + 2 * rows.eps * window.unsqueeze(1) * signs.view(-1, c, 1, 1)
    return torch.minimum(torch.maximum(x, rows.x0 - rows.eps), rows.x0 + rows.eps).clamp(0, 1)


def _corner(u: Tensor, extent: int, side: Tensor) -> Tensor:
    """int64 (row,): uniform on [0, extent - side); the last place is never drawn, as in the reference."""
    return (u * (extent - side)).long()


def _window(top: Tensor, left: Tensor, side: Tensor, h: int, w: int) -> Tensor:
    """bool (row, h, w): inside the square with this corner and side."""
    i, j = torch.arange(h, device=top.device), torch.arange(w, device=top.device)
    down = (i >= top.unsqueeze(1)) & (i < (top + side).unsqueeze(1))
    across = (j >= left.unsqueeze(1)) & (j < (left + side).unsqueeze(1))
    return down.unsqueeze(2) & across.unsqueeze(1)


def _move_mass(rows: _Rows, side: Tensor, draw: Tensor) -> Tensor:
    """The l2 proposal: the change of a second window is moved into a bump on the first, at full length eps."""
    _, c, h, w = rows.x0.shape
    top, left, top2, left2 = (
        _corner(draw[:, 0], h, side),
        _corner(draw[:, 1], w, side),
        _corner(draw[:, 2], h, side),
        _corner(draw[:, 3], w, side),
    )
    window = _window(top, left, side, h, w).unsqueeze(1)
    emptied = _window(top2, left2, side, h, w).unsqueeze(1)
    signs = torch.where(draw[:, 5:] < 0.5, -1.0, 1.0).to(rows.x0.dtype).view(-1, c, 1, 1)
    bump = _placed_bump(top, left, side, draw[:, 4] > 0.5, h, w).to(rows.x0.dtype).unsqueeze(1) * signs

    delta = rows.x - rows.x0
    length = delta.square().sum((1, 2, 3), keepdim=True)
    in_windows = (delta * (window | emptied)).square().sum((2, 3), keepdim=True)
    in_window = (delta * window).square().sum((2, 3), keepdim=True).sqrt()
    new = bump + delta * window / (TINY + in_window)
    room = (rows.eps.square() - length).clamp_min(0) / c + in_windows
    new = new / (TINY + new.square().sum((2, 3), keepdim=True).sqrt()) * room.sqrt()
    delta = torch.where(window, new, delta * ~emptied)
    return (rows.x0 + NORMS["l2"].steepest(delta) * rows.eps).clamp(0, 1)


def _tiles(x0: Tensor, eps: Tensor, noise: Noise) -> Tensor:
    """The l2 start: tiles of bumps with random signs and turns, scaled to length eps."""
    _, c, h, w = x0.shape
    side = max(h // 5, 1)
    offset = (h - 5 * side) // 2 if h >= 5 else 0
    tops = [t for t in range(offset, offset + h // side * side, side) if t < h]
    lefts = [t for t in range(offset, offset + w // side * side, side) if t < w]
    signs = noise.signs((len(tops), len(lefts), c), START).to(x0.dtype)
    turns = noise.uniform((len(tops), len(lefts)), TILE_TURNS) > 0.5
    sides = torch.full((len(x0),), side, device=x0.device)
    delta = torch.zeros_like(x0)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            corner = (torch.full_like(sides, top), torch.full_like(sides, left))
            bump = _placed_bump(*corner, sides, turns[:, i, j], h, w).to(x0.dtype)
            delta += bump.unsqueeze(1) * signs[:, i, j].view(-1, c, 1, 1)
    return (x0 + NORMS["l2"].steepest(delta) * spread(eps, x0)).clamp(0, 1)


def _placed_bump(top: Tensor, left: Tensor, side: Tensor, turned: Tensor, h: int, w: int) -> Tensor:
    """(row, h, w): each row's bump with its corner at (top, left), zero elsewhere."""
    table = _bump_table(max(h, w)).to(top.device)
    i = torch.arange(h, device=top.device) - top.unsqueeze(1)
    j = torch.arange(w, device=top.device) - left.unsqueeze(1)
    inside = ((i >= 0) & (i < side.unsqueeze(1))).unsqueeze(2) & ((j >= 0) & (j < side.unsqueeze(1))).unsqueeze(1)
    i, j = i.clamp(0, table.shape[2] - 1).unsqueeze(2), j.clamp(0, table.shape[3] - 1).unsqueeze(1)
    pixels = table[side.view(-1, 1, 1), turned.long().view(-1, 1, 1), i, j]
    return torch.where(inside, pixels, 0.0)


@lru_cache(maxsize=4)
def _bump_table(extent: int) -> Tensor:
    """(extent + 1, 2, extent, extent): the bump of every side, upright and turned, in the upper left corner."""
    table = torch.zeros(extent + 1, 2, extent, extent, dtype=torch.float64)
    for side in range(1, extent + 1):
        bump = _bump(side)
        table[side, 0, :side, :side] = bump
        table[side, 1, :side, :side] = bump.T
    return table


def _bump(side: int) -> Tensor:
    """(side, side) of l2 norm 1: a positive pyramid above a negative one."""
    upper = side // 2
    parts = [_pyramid(upper, side), -_pyramid(side - upper, side)]
    bump = torch.cat(parts)
    return bump / bump.square().sum().sqrt()


def _pyramid(h: int, w: int) -> Tensor:
    """(h, w) of l2 norm 1: Σ_{k≥d} 1/(k+1)² at Chebyshev distance d from the centre (h // 2, w // 2)."""
    distance = torch.maximum((torch.arange(h) - h // 2).abs().view(-1, 1), (torch.arange(w) - w // 2).abs().view(1, -1))
    shells = 1 / torch.arange(1, max(h // 2, w // 2) + 2, dtype=torch.float64).square()
    beyond = torch.cat([shells.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    pyramid = beyond[distance.clamp_max(len(beyond) - 1)]
    return pyramid / pyramid.square().sum().sqrt() if h > 0 else pyramid
