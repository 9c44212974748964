"""RayS: search for the nearest decision boundary along sign directions, from decisions only (arXiv:2006.12792)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Access, Candidates, Cost, Oracles, Start, pick, spread
from robustbench_vit.cards import Number

START = 0  # noise stream
LOST_AFTER = 127
"""Directions (blocks down to a 64th of the pixels) after which a row without any adversarial image starts elsewhere."""


@dataclass(frozen=True)
class RayState:
    """State of RayS rows. The direction on trial is `sign` with block number `trial` flipped."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    eps: Tensor  # (row,)
    sign: Tensor  # (row, c, h, w) of -1 and 1, the best direction so far
    trial: Tensor  # int64 (row,) counts the directions tried; 0 is the start itself
    searching: Tensor  # bool (row,): the direction on trial is adversarial at `distance`, a smaller one is sought
    low: Tensor  # (row,) where that search has to look no further down
    asked: Tensor  # int64 (row,) queries
    adversarial: Tensor  # (row, c, h, w) the nearest misclassified image so far, else x0
    distance: Tensor  # (row,) its distance from x0, infinite while there is none


@algorithms.register("rays")
@settings
class RayS:
    """Flips blocks of the direction's signs, half as large on every level, and keeps what brings the boundary nearer.

    A direction is first asked about at the smallest distance known (the fast check) and only when that is adversarial
    is its own boundary found by bisection. Every step asks one query of every row.

    Differs from the paper: distances are those of the image clipped to the box, so that in l2 and l1 pixels at a wall
    cost nothing; the tolerance is relative; bisection doesn't go below the budget, where nothing more is to be gained;
    after the single pixels come the large blocks again;
    and a row that has seen nothing adversarial for a while goes on from a random direction.
    """

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.DECISIONS
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    queries: Annotated[StrictInt, Field(ge=1)]
    tolerance: Annotated[Number, Field(ge=1e-4, lt=0.5)]  # of bisection, times the distance
    restart_count: Annotated[StrictInt, Field(ge=1, alias="restarts")]  # the first from all ones, others at random

    def restarts(self) -> int:
        return self.restart_count

    def targets(self, num_classes: int) -> int:
        return 0

    def cost(self, num_classes: int) -> Cost:
        return Cost(self.restart_count * self.queries, 0)

    def init(self, start: Start, noise: Noise) -> RayState:
        x0, rows = start.x0, len(start.x0)
        random = noise.signs(tuple(x0.shape[1:]), START).to(x0.dtype)
        none = torch.zeros(rows, dtype=torch.int64, device=x0.device)
        return RayState(
            x0=x0,
            y=start.y,
            eps=start.eps,
            sign=pick(start.restart == 0, torch.ones_like(x0), random),
            trial=none,
            searching=none.bool(),
            low=torch.zeros_like(start.eps),
            asked=none.clone(),
            adversarial=x0,
            distance=torch.full_like(start.eps, torch.inf),
        )

    def step(self, state: RayState, oracles: Oracles, noise: Noise) -> RayState:
        """One query of every row that has some left."""
        rows = (~self.finished(state)).nonzero().flatten()
        if len(rows) == 0:
            return state
        sign = self._on_trial(state)
        size = torch.where(state.searching, (state.low + state.distance) / 2, state.distance)
        x = self._along(sign, state.x0, size)
        wrong = torch.zeros_like(state.searching)
        wrong[rows] = oracles.target.decisions(x[rows], rows) != state.y[rows]
        asked = state.asked.index_add(0, rows, torch.ones_like(rows))
        return self._restarted(self._judged(dataclasses.replace(state, asked=asked), sign, x, size, wrong), noise)

    def _on_trial(self, state: RayState) -> Tensor:
        """(row, c, h, w): the direction each row asks about."""
        pixels, device = state.sign[0].numel(), state.sign.device
        blocks = _blocks(pixels, str(device))
        begin, end = blocks[(state.trial - 1) % len(blocks)].unsqueeze(2).unbind(1)
        place = torch.arange(pixels, device=device)
        inside = (place >= begin) & (place < end) & (state.trial > 0).unsqueeze(1)
        return torch.where(inside.view_as(state.sign), -state.sign, state.sign)

    def _along(self, sign: Tensor, x0: Tensor, size: Tensor) -> Tensor:
        """(row, c, h, w): the image in the box in this direction at distance `size`, or as far as the box allows."""
        room = torch.where(sign > 0, 1 - x0, x0).flatten(1)
        pace = size.clamp_max(1) if self.norm == "linf" else _pace(room, size, 1 if self.norm == "l1" else 2)
        return (x0 + spread(pace, x0) * sign).clamp(0, 1)

    def _judged(self, state: RayState, sign: Tensor, x: Tensor, size: Tensor, wrong: Tensor) -> RayState:
        """The state after the answers: the direction is searched on, adopted or given up."""
        measured = NORMS[self.norm].size(x - state.x0)
        nearer = wrong & (measured < state.distance)
        distance = torch.where(nearer, measured, state.distance)
        # Just inside the budget, so that bisection from above ends there and not at its rim.
        floor = (1 - 2 * self.tolerance) * state.eps
        low = torch.where(state.searching, torch.where(wrong, state.low, size), floor)
        searching = state.searching | wrong
        settled = searching & (distance - low <= self.tolerance * distance)
        return dataclasses.replace(
            state,
            sign=pick(settled, sign, state.sign),
            trial=state.trial + (settled | ~searching),
            searching=searching & ~settled,
            low=low,
            adversarial=pick(nearer, x, state.adversarial),
            distance=distance,
        )

    def _restarted(self, state: RayState, noise: Noise) -> RayState:
        """The state with a new random direction for the rows that are lost."""
        lost = (state.trial >= LOST_AFTER) & state.distance.isinf()
        if not bool(lost.any()):
            return state
        random = noise.signs(tuple(state.sign.shape[1:]), START, state.asked).to(state.sign.dtype)
        trial = state.trial.masked_fill(lost, 0)
        return dataclasses.replace(state, sign=pick(lost, random, state.sign), trial=trial)

    def finished(self, state: RayState) -> Tensor:
        return state.asked >= self.queries

    def best(self, state: RayState) -> Candidates:
        return Candidates(state.adversarial, state.distance <= state.eps, state.distance)


@lru_cache(maxsize=16)
def _blocks(pixels: int, device: str) -> Tensor:
    """int64 (block, 2): first place of each block and the place after its last; all, halves, quarters, …, single."""
    blocks, parts = [], 1
    while parts < 2 * pixels:
        edges = [part * pixels // parts for part in range(parts + 1)]
        blocks += [(begin, end) for begin, end in pairwise(edges) if begin < end]
        parts *= 2
    unique = list(dict.fromkeys(blocks))
    return torch.tensor(unique, device=device)


def _pace(room: Tensor, size: Tensor, power: int) -> Tensor:
    """(row,): the t in [0, 1] at which Σ min(t, room)^power is size^power; 1 when all room is not enough.

    `room` (row, pixel) is what the box leaves each pixel.
    """
    rising = room.sort(1).values.pow(power)
    used = rising.cumsum(1) - rising  # by the pixels that stop before this one
    moving = torch.arange(room.shape[1], 0, -1, device=room.device)
    goal = size.pow(power).unsqueeze(1)
    at = (used + moving * rising < goal).sum(1, keepdim=True)  # pixels that stop before the goal is reached
    last = at.clamp_max(room.shape[1] - 1)
    pace = (goal - used.gather(1, last)) / moving[last]
    return torch.where(at < room.shape[1], pace.clamp(0, 1).pow(1 / power), 1.0).squeeze(1)
