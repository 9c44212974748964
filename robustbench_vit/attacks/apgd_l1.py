"""Auto-PGD for l1 (arXiv:2103.01208): sparse steps, and stages in shrinking balls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustbench_vit.attacks.apgd import START, Ascent
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import algorithms, settings
from robustbench_vit.attacks.rows import Candidates, Cost, Gradient, Oracles, Start, pick, spread
from robustbench_vit.cards import Number


@dataclass(frozen=True)
class APGDL1State:
    """State of rows of Auto-PGD for l1; `x` is the point the next step asks about."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    target: Tensor  # (row,)
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w)
    stage: Tensor  # int64 (row,)
    asked: Tensor  # int64 (row,) points asked about in this stage; where it starts is the first
    since: Tensor  # int64 (row,) steps since the last check
    step_size: Tensor  # (row,)
    share: Tensor  # (row,) of the pixel values, moved by a step
    moved: Tensor  # (row,) pixel values in which the best point differed from x0 at the last check
    x_best: Tensor  # (row, c, h, w) where the loss was largest in this stage
    grad_best: Tensor  # (row, c, h, w)
    loss_best: Tensor  # (row,)
    adversarial: Tensor  # (row, c, h, w) the last misclassified point inside the budget, else x0
    found: Tensor  # bool (row,)


@algorithms.register("apgd-l1")
@settings
class APGDL1(Ascent):
    """Steps along the signs of the largest gradient entries; how many follows the sparsity of the best point.

    The stages run in balls of `radii` times eps, each from the best point of the one before, projected on its ball.
    What is found on the way counts where it lies within eps.
    """

    norms: ClassVar[tuple[str, ...]] = ("l1",)
    algorithm_version: ClassVar[int] = 1

    step_decrease: Annotated[Number, Field(gt=1)]
    smallest_step: Annotated[Number, Field(gt=0, le=1)]  # times the first one
    radii: Annotated[tuple[Annotated[Number, Field(ge=1)], ...], Field(min_length=1)]  # times eps, one for each stage
    stage_shares: tuple[Annotated[Number, Field(gt=0, le=1)], ...]  # of the steps, rounded up; the last: what is left
    first_share: Annotated[Number, Field(gt=0, le=1)] | None  # None: what the start moved / share_decrease
    share_decrease: Annotated[Number, Field(ge=1)]
    sparser: Annotated[Number, Field(gt=0, le=1)]  # a best point that moved less than this times what it did is sparser
    window: Annotated[Number, Field(gt=0, le=1)]  # times the stage's steps, from check to check

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radii[-1] != 1:
            raise ValueError(f"the last of the radii has to be 1, the budget itself, got {list(self.radii)}")
        if len(self.stage_shares) != len(self.radii) or abs(sum(self.stage_shares) - 1) > 1e-6:
            raise ValueError(
                f"stage_shares have to be {len(self.radii)} numbers with sum 1, got {list(self.stage_shares)}"
            )
        if self.steps < len(self.radii):
            raise ValueError(f"{len(self.radii)} stages need as many steps, got {self.steps}")

    def cost(self, num_classes: int) -> Cost:
        return self.cost_of(self.steps + len(self.radii), num_classes)

    def stage_steps(self) -> list[int]:
        """Steps of every stage, at least one each."""
        stages, left = [], self.steps
        for later, share in zip(range(len(self.radii) - 1, 0, -1), self.stage_shares, strict=False):
            stages.append(min(math.ceil(share * self.steps - 1e-9), left - later))
            left -= stages[-1]
        return [*stages, left]

    def init(self, start: Start, noise: Noise) -> APGDL1State:
        x0, eps = start.x0, start.eps.to(start.x0.dtype)
        rows, device = len(x0), x0.device
        stage = torch.zeros(rows, dtype=torch.int64, device=device)
        radius = self._of(self.radii, stage, x0) * eps
        drawn = x0 + noise.normal(tuple(x0.shape[1:]), START).to(x0.dtype)
        x = NORMS[self.norm].project(drawn, x0, radius)
        zero = torch.zeros_like(radius)
        state = APGDL1State(
            x0=x0,
            y=start.y,
            target=start.target,
            eps=eps,
            x=x,
            stage=stage,
            asked=stage,
            since=stage,
            step_size=self.step_size * radius,
            share=zero,
            moved=zero,
            x_best=x,
            grad_best=torch.zeros_like(x),
            loss_best=zero,
            adversarial=x0,
            found=torch.zeros(rows, dtype=torch.bool, device=device),
        )
        if self.first_share is None:
            return self._sparsity(state, torch.ones_like(state.found), _moved(x, x0, drawn))
        return dataclasses.replace(
            state, share=torch.full_like(zero, self.first_share), moved=torch.full_like(zero, x0[0].numel())
        )

    def step(self, state: APGDL1State, oracles: Oracles, noise: Noise) -> APGDL1State:
        """Asks about `x`, keeps the books, and moves on, at the end of a stage to where the next one starts."""
        answer = self.ask(oracles, state.x, state.y, state.target)
        state = self._note(state, answer)
        state, restarted = self._check(state)
        x = pick(restarted, state.x_best, state.x)
        grad = pick(restarted, state.grad_best, answer.grad)
        ended = (state.asked > self._of(self.stage_steps(), state.stage, state.asked)) & (state.stage < self._last)
        stage = state.stage + ended
        radius = self._of(self.radii, stage, x) * state.eps
        goal = pick(ended, state.x_best, x + spread(state.step_size, x) * sparse_sign(grad, state.share))
        state = dataclasses.replace(
            state,
            x=NORMS[self.norm].project(goal, state.x0, radius),
            stage=stage,
            asked=state.asked.masked_fill(ended, 0),
            since=state.since.masked_fill(ended, 0),
            step_size=torch.where(ended, self.step_size * radius, state.step_size),
        )
        return self._sparsity(state, ended, _moved(state.x, state.x0, goal))

    def _note(self, state: APGDL1State, answer: Gradient) -> APGDL1State:
        """The state with the answer in its books."""
        inside = (state.stage == self._last) | (NORMS[self.norm].size(state.x - state.x0) <= state.eps)
        success = (answer.logits.argmax(1) != state.y) & inside
        first = state.asked == 0
        better = first | (answer.value > state.loss_best)
        return dataclasses.replace(
            state,
            adversarial=pick(success, state.x, state.adversarial),
            found=state.found | success,
            asked=state.asked + 1,
            since=state.since + ~first,
            x_best=pick(better, state.x, state.x_best),
            grad_best=pick(better, answer.grad, state.grad_best),
            loss_best=torch.where(better, answer.value, state.loss_best),
        )

    def _check(self, state: APGDL1State) -> tuple[APGDL1State, Tensor]:
        """The state after this step's check, where one is due, and which rows restart from their best point."""
        windows = [max(int(self.window * steps + 1e-9), 1) for steps in self.stage_steps()]
        due = state.since == self._of(windows, state.stage, state.since)
        moved = _count(state.x_best != state.x0, state.x)
        sparser = due & (moved / state.moved < self.sparser)
        largest = self.step_size * self._of(self.radii, state.stage, state.x) * state.eps
        smaller = (state.step_size / self.step_decrease).maximum(self.smallest_step * largest)
        step_size = torch.where(sparser, largest, torch.where(due, smaller, state.step_size))
        state = dataclasses.replace(state, step_size=step_size, since=state.since.masked_fill(due, 0))
        return self._sparsity(state, due, moved), sparser

    def _sparsity(self, state: APGDL1State, at: Tensor, moved: Tensor) -> APGDL1State:
        """The state in which rows `at` (row,) take their sparsity from a point that `moved` (row,) pixel values."""
        share = moved / state.x0[0].numel() / self.share_decrease
        return dataclasses.replace(
            state, share=torch.where(at, share, state.share), moved=torch.where(at, moved, state.moved)
        )

    @property
    def _last(self) -> int:
        return len(self.radii) - 1

    def _of(self, per_stage: Sequence[float], stage: Tensor, like: Tensor) -> Tensor:
        """(row,) each row's entry of a list over the stages, in the precision of `like`."""
        return torch.tensor(per_stage, dtype=like.dtype, device=like.device)[stage]

    def finished(self, state: APGDL1State) -> Tensor:
        return (state.stage == self._last) & (state.asked > self.stage_steps()[-1])

    def best(self, state: APGDL1State) -> Candidates:
        return Candidates(state.adversarial, state.found)


def sparse_sign(grad: Tensor, share: Tensor) -> Tensor:
    """Signs of the largest entries of `grad` (row, c, h, w), a `share` (row,) of them, divided by their number."""
    size = grad.flatten(1).abs()
    pixels = size.shape[1]
    smallest = ((1 - share) * pixels).clamp(0, pixels - 1).long()
    threshold = size.sort(dim=1).values.gather(1, smallest.unsqueeze(1)).squeeze(1)
    sign = grad.sign() * (grad.abs() >= spread(threshold, grad))
    return sign / (spread(_count(sign != 0, sign), sign) + 1e-10)


def _moved(x: Tensor, x0: Tensor, origin: Tensor) -> Tensor:
    """(row,) pixel values in which the projection `x` of `origin` on a ball around x0 counts as different from x0.

    The reference brings a pixel back to x0 by subtracting origin - x0 from origin, and where rounding leaves something
    it counts as moved. On photographs that makes the first steps of many rows far denser and a run slightly stronger,
    so it is kept. (A second projection of the reference's start sweeps it out of the rows that rounding put outside the
    ball, by chance about half of them; ours lie inside.)
    """
    left = origin - (origin - x0)
    return _count((x != x0) | (left != x0), x)


def _count(flags: Tensor, like: Tensor) -> Tensor:
    """(row,) how many are true, in the precision of `like`."""
    return flags.flatten(1).sum(1).to(like.dtype)
