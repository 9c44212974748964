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
from robustbench_vit.attacks.square_bumps import MEASURES, Measure, bumps, corner, tiled, window
from robustbench_vit.cards import Number

START, TILE_TURNS, WINDOW = 0, 1, 2  # noise streams
SHARE_HALVES_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries; not rescaled to the budget
DRAWS_AHEAD = 64
"""Queries whose draws are made in one go; they don't depend on the image."""
LOOK_AHEAD, FURTHEST = 4, 16
"""At most so many of a row's next proposals are looked at in one step, to skip those that change nothing: when rows
are many, and when they are few."""
L1_MARGIN = 1e-6
"""By so much, relative to eps, images in l1 stay inside the ball (the reference's)."""


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
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
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
        return SquareState(
            x0=start.x0,
            y=start.y,
            eps=start.eps,
            x=_stripes(start, noise) if self.norm == "linf" else _tiles(start, noise, self.norm),
            loss=torch.full((rows,), -torch.inf, dtype=start.x0.dtype, device=device),
            asked=torch.zeros(rows, dtype=torch.int64, device=device),
            found=torch.zeros(rows, dtype=torch.bool, device=device),
            draws=torch.zeros(rows, DRAWS_AHEAD, self._draws(start.x0), device=device),
            draws_from=torch.full((rows,), -DRAWS_AHEAD, dtype=torch.int64, device=device),
        )

    def _draws(self, x0: Tensor) -> int:
        """Uniforms per proposal: corners, a turn (l2, l1) and a sign per channel."""
        return (2 if self.norm == "linf" else 5) + x0.shape[1]

    def step(self, state: SquareState, oracles: Oracles, noise: Noise) -> SquareState:
        """One query of every row that has a proposal worth asking about."""
        state = self._drawn(state, noise)
        if (each := oracles.target.computed(len(state.x)) // len(state.x)) > 1:
            return self._several(state, oracles, each)
        x, asked, rows = self._proposals(state)
        if len(rows) == 0:
            return dataclasses.replace(state, asked=asked)
        if waiting := len(rows) - oracles.target.whole(len(rows)):
            x, asked, rows = _without_the_first(waiting, state, x, asked, rows)
        logits = oracles.target.scores(x, rows)
        y, best, loss_best = _of(state.y, rows), _of(state.x, rows), _of(state.loss, rows)
        loss, wrong = margin(logits, y, y), logits.argmax(1) != y
        better = (loss > loss_best) | wrong
        return dataclasses.replace(
            state,
            x=_put(state.x, rows, pick(better, x, best)),
            loss=_put(state.loss, rows, torch.where(better, loss, loss_best)),
            asked=asked,
            found=_put(state.found, rows, _of(state.found, rows) | wrong),
        )

    def _several(self, state: SquareState, oracles: Oracles, each: int) -> SquareState:
        """The state after up to `each` queries of every row at once, for rows so few that they would be padded.

        All are made from the present point, so those after the first that raises the margin don't count: that is what
        one query after another would have come to, and most don't raise it.
        """
        proposals, worth, is_start = self._looked_at(state, 2 * each)
        nth = worth.cumsum(1)
        limit = torch.where(is_start, 1, each).unsqueeze(1)
        rows, place = (worth & (nth <= limit)).nonzero().unbind(1)
        nothing = torch.full_like(state.asked, proposals.shape[1])
        asked = torch.where(nth[:, -1] < limit[:, 0], nothing, (nth < limit).sum(1) + 1)
        if len(rows) == 0:
            return dataclasses.replace(state, asked=(state.asked + asked).clamp_max(self.queries + 1))
        x, y = pick(is_start[rows], state.x[rows], proposals[rows, place]), state.y[rows]
        logits = oracles.target.scores(x, rows)
        loss, wrong = margin(logits, y, y), logits.argmax(1) != y
        better = (loss > state.loss[rows]) | wrong
        first = nothing.scatter_reduce(0, rows[better], place[better], "amin")  # the proposal that a row adopts
        used, adopted = place <= first[rows], better & (place == first[rows])
        oracles.target.discard(rows[~used])
        at, adopts = rows[adopted], first < proposals.shape[1]
        return dataclasses.replace(
            state,
            x=state.x.index_copy(0, at, x[adopted]),
            loss=state.loss.index_copy(0, at, loss[adopted]),
            asked=(state.asked + torch.where(adopts, first + 1, asked)).clamp_max(self.queries + 1),
            found=state.found.index_copy(0, at, state.found[at] | wrong[adopted]),
        )

    def _drawn(self, state: SquareState, noise: Noise) -> SquareState:
        """The state with draws for at least the next FURTHEST proposals of every row."""
        if bool((state.asked + FURTHEST <= state.draws_from + DRAWS_AHEAD).all()):
            return state
        draws = noise.uniform_ahead((state.draws.shape[2],), WINDOW, state.asked, DRAWS_AHEAD)
        return dataclasses.replace(state, draws=draws, draws_from=state.asked)

    def _proposals(self, state: SquareState) -> tuple[Tensor, Tensor, Tensor]:
        """Images worth a query (m, c, h, w), the count of decided proposals (row,), and whose they are (m,)."""
        rows, ahead = len(state.x), self._ahead(state.x[0].numel())
        proposals, worth, is_start = self._looked_at(state, ahead)
        asks = worth.any(1)
        first = worth.int().argmax(1)
        x = proposals[:, 0] if ahead == 1 else proposals[torch.arange(rows, device=state.x.device), first]
        x = pick(is_start, state.x, x)
        decided = torch.where(is_start, 1, torch.where(asks, first + 1, ahead))
        which = asks.nonzero().flatten()
        return _of(x, which), (state.asked + decided).clamp_max(self.queries + 1), which

    def _looked_at(self, state: SquareState, ahead: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next proposals (row, ahead, c, h, w), which are worth a query, and which rows (row,) start.

        The first query of a row that starts is about its start, not about a proposal.
        """
        query = state.asked.unsqueeze(1) + torch.arange(ahead, device=state.x.device)  # (row, ahead)
        proposals = self._proposed(state, query - 1, state.draws.gather(1, self._positions(state, query)))
        is_start = query[:, 0] == 0
        worth = (proposals != state.x.unsqueeze(1)).flatten(2).any(2) & (query > 0) & (query <= self.queries)
        worth[:, 0] |= is_start
        return proposals, worth, is_start

    def _ahead(self, values: int) -> int:
        """Proposals per row and step: one where images are large, or where nearly every proposal changes something."""
        return min(LOOK_AHEAD, max(4096 // values, 1)) if self.norm == "linf" else 1

    def _positions(self, state: SquareState, query: Tensor) -> Tensor:
        """(row, ahead, k): where the draws of these queries stand in `draws`."""
        position = query - state.draws_from.unsqueeze(1)
        return position.unsqueeze(2).expand(*query.shape, state.draws.shape[2])

    def _proposed(self, state: SquareState, query: Tensor, draws: Tensor) -> Tensor:
        """(row, ahead, c, h, w): images to ask about, for query numbers (row, ahead) counted from 0."""
        shape = (self.norm, self.initial_share, *state.x0.shape[2:])
        side, after = _schedule(*shape, str(query.device))
        halvings = torch.bucketize(query, after)
        if self.norm == "linf":
            return _repaint(state, side[halvings], draws)
        return _move_mass(state, _sides(*shape), halvings, draws, self.norm)

    def finished(self, state: SquareState) -> Tensor:
        return state.asked > self.queries

    def best(self, state: SquareState) -> Candidates:
        return Candidates(state.x, state.found)


def _without_the_first(
    waiting: int, state: SquareState, x: Tensor, asked: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_proposals` without those of the rows that are furthest; they stay where they are for this step.

    A batch that would be padded thus waits until it is full, and all rows end at about the same time.
    """
    order = state.asked[rows].argsort(stable=True)
    kept, later = order[: len(rows) - waiting].sort().values, rows[order[len(rows) - waiting :]]
    return x[kept], asked.index_copy(0, later, state.asked[later]), rows[kept]


def _of(values: Tensor, rows: Tensor) -> Tensor:
    """`values` of some rows (int64, ascending), without a copy when these are all."""
    return values if len(rows) == len(values) else values[rows]


def _put(values: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """`values` with those of some rows (int64, ascending) replaced."""
    return new if len(rows) == len(values) else values.index_copy(0, rows, new)


@lru_cache(maxsize=16)
def _sides(norm: str, share: float, h: int, w: int) -> tuple[int, ...]:
    """The window's side in the order of use."""
    sides = []
    for halvings in range(len(SHARE_HALVES_AFTER) + 1):
        side = round(math.sqrt(share / 2**halvings * h * w))
        side = max(side, 1) if norm == "linf" else max(side, 3) // 2 * 2 + 1
        sides.append(min(side, h, w))
    return tuple(sides)


@lru_cache(maxsize=16)
def _schedule(norm: str, share: float, h: int, w: int, device: str) -> tuple[Tensor, Tensor]:
    """The sides as a tensor, and the query numbers after which the next one begins."""
    return torch.tensor(_sides(norm, share, h, w), device=device), torch.tensor(SHARE_HALVES_AFTER, device=device)


def _stripes(start: Start, noise: Noise) -> Tensor:
    """Vertical stripes of ±eps, one sign per channel and column."""
    _, c, _, w = start.x0.shape
    signs = noise.signs((c, 1, w), START).to(start.x0.dtype)
    return (start.x0 + spread(start.eps, start.x0) * signs).clamp(0, 1)


def _repaint(state: SquareState, side: Tensor, draw: Tensor) -> Tensor:
    """The best point with the pixels of a random window at one end of the ball, the same for all of a channel.

    The reference adds ±2 eps and clips; that is the same, and exactly so, because every pixel is at an end already.
    """
    h, w = state.x0.shape[2:]
    inside = window(corner(draw[..., 0], h, side), corner(draw[..., 1], w, side), side, h, w)
    signs = torch.where(draw[..., 2:] < 0.5, -1.0, 1.0).to(state.x0.dtype).unsqueeze(-1).unsqueeze(-1)
    end = (state.x0.unsqueeze(1) + signs * spread(state.eps, signs)).clamp_(0, 1)
    return torch.where(inside, end, state.x.unsqueeze(1))


def _move_mass(state: SquareState, sides: tuple[int, ...], halvings: Tensor, draw: Tensor, norm: str) -> Tensor:
    """The proposal of l2 and l1: the change of a second window is moved into a bump on the first, up to norm eps."""
    h, w = state.x0.shape[2:]
    measure, shapes = MEASURES[norm], bumps(norm, sides, state.x0.dtype, str(state.x0.device))
    side = shapes.sides[halvings]
    top, left, top2, left2 = (corner(draw[..., k], extent, side) for k, extent in enumerate((h, w, h, w)))
    inside, emptied = window(top, left, side, h, w), window(top2, left2, side, h, w)
    bump = shapes.place(top, left, halvings, draw[..., 4] > 0.5, h, w)
    signs = torch.where(draw[..., 5:] < 0.5, -1.0, 1.0).to(bump.dtype).unsqueeze(-1).unsqueeze(-1)

    delta = (state.x - state.x0).unsqueeze(1)
    held = delta * inside.to(delta.dtype)
    new = torch.addcmul(held / (TINY + measure.root(measure.total(held, -2, -1))), bump, signs)
    room = _room(state, delta, (inside | emptied).to(delta.dtype), measure)
    new = new * (room / (TINY + measure.root(measure.total(new, -2, -1))))
    delta = torch.addcmul(new, delta, (~(inside | emptied)).to(delta.dtype))  # `new` is zero outside its window
    return _settled(state.x0.unsqueeze(1).expand_as(delta), delta, state.eps, norm)


def _room(state: SquareState, delta: Tensor, freed: Tensor, measure: Measure) -> Tensor:
    """(row, ahead, c, 1, 1): the norm that the new change may have in a channel.

    It is what the two windows hold, and the channel's share of what the image has not spent. In l1 the reference then
    multiplies by the number of channels; the projection takes back what is too much.
    """
    sizes, channels = measure.each(delta), delta.shape[-3]
    unspent = (measure.each(spread(state.eps, delta)) - sizes.sum((-3, -2, -1), keepdim=True)).clamp_min(0)
    room = measure.root(unspent / channels + (sizes * freed).sum((-2, -1), keepdim=True))
    return room * channels if measure.power == 1 else room


def _tiles(start: Start, noise: Noise, norm: str) -> Tensor:
    """The start of l2 and l1: tiles of bumps with random signs and turns."""
    x0 = start.x0
    _, c, h, w = x0.shape
    side = max(h // 5, 1)
    first = (h - 5 * side) // 2 if h >= 5 else 0  # also of the columns, as in the reference
    down, across = (min(extent // side, max(math.ceil((extent - first) / side), 0)) for extent in (h, w))
    if down * across == 0:  # so narrow that no tile fits: the reference starts at x0 too
        return x0
    signs = noise.signs((down, across, c), START).to(x0.dtype)
    turned = noise.uniform((down, across), TILE_TURNS) > 0.5
    tiles = tiled(MEASURES[norm], side, signs, turned)[:, :, : h - first, : w - first]
    delta = torch.zeros_like(x0)
    delta[:, :, first : first + tiles.shape[2], first : first + tiles.shape[3]] = tiles
    return _settled(x0.unsqueeze(1), delta.unsqueeze(1), start.eps, norm).squeeze(1)


def _settled(x0: Tensor, delta: Tensor, eps: Tensor, norm: str) -> Tensor:
    """(row, ahead, c, h, w): x0 + delta brought to length eps and clipped (l2), or projected (l1)."""
    rows, shape = delta.shape[:2], delta.shape
    x0, delta = x0.flatten(0, 1), delta.flatten(0, 1)
    eps = eps.repeat_interleave(rows[1])
    if norm == "l1":
        return NORMS[norm].project(x0 + delta, x0, eps * (1 - L1_MARGIN)).view(shape)
    length = NORMS[norm].size(delta) + TINY
    return torch.addcmul(x0, delta, spread(eps / length, x0)).clamp_(0, 1).view(shape)
