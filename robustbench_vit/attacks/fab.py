"""FAB, the fast adaptive boundary attack (arXiv:1907.02044), towards target classes or the nearest class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.attacks.losses import margin_targeted
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS, TINY
from robustbench_vit.attacks.projection import onto_hyperplane
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import (
    Access,
    Candidates,
    Cost,
    Gradient,
    Oracles,
    Start,
    TargetOracle,
    pick,
    spread,
)
from robustbench_vit.cards import Number

START = 0  # noise stream
FIRST_RADIUS = 0.5
"""Radius of the random starts in units of eps (the reference's)."""


@dataclass(frozen=True)
class FABState:
    """State of FAB rows."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    target: Tensor  # (row,) -1 when untargeted
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w)
    steps_taken: Tensor  # int64 (row,)
    adversarial: Tensor  # (row, c, h, w) the nearest misclassified point, else x0
    distance: Tensor  # (row,) of it; infinite while there is none


@algorithms.register("fab")
@settings
class FAB:
    """Walks along the linearised boundary between the true and another class, always pulled towards x0.

    With `targets: 0` the other class is, at every step, the one whose linearised boundary is nearest. That takes a
    forward and a backward pass for each other class, as in the reference (999 of each a step with 1,000 classes), but
    the planes are compared one after the other, so that memory holds two of them at most, not one per class.

    It minimises the distance, but a row is a success as soon as that distance is at most eps, which is all that a
    budget asks. The first restart begins at x0, the others at a random point eps / 2 away.
    """

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.GRADIENT
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    steps: Annotated[StrictInt, Field(ge=1)]
    target_count: Annotated[StrictInt, Field(ge=0, alias="targets")]  # 0: untargeted
    restart_count: Annotated[StrictInt, Field(ge=1, alias="restarts")]
    bias: Annotated[Number, Field(ge=0, le=1)]  # alpha_max, the largest weight of the step from x0
    overshoot: Annotated[Number, Field(ge=1)]  # eta, how far beyond the hyperplane
    pull_back: Annotated[Number, Field(gt=0, lt=1)]  # beta, how near to x0 a success returns

    def restarts(self) -> int:
        return self.restart_count

    def targets(self, num_classes: int) -> int:
        return min(self.target_count, num_classes - 1)

    def cost(self, num_classes: int) -> Cost:
        steps = self.steps * self.restart_count
        if self.target_count == 0:
            return Cost(steps * num_classes, steps * (num_classes - 1))
        steps *= self.targets(num_classes)
        return Cost(2 * steps, steps)

    def init(self, start: Start, noise: Noise) -> FABState:
        rows, device = len(start.x0), start.x0.device
        return FABState(
            x0=start.x0,
            y=start.y,
            target=start.target,
            eps=start.eps,
            x=start.x0 if self.restart_count == 1 else self._begin(start, noise),
            steps_taken=torch.zeros(rows, dtype=torch.int64, device=device),
            adversarial=start.x0,
            distance=torch.full((rows,), torch.inf, dtype=start.x0.dtype, device=device),
        )

    def _begin(self, start: Start, noise: Noise) -> Tensor:
        """x0 for the first restart, else a point at eps / 2 from it, clipped to the box."""
        x0, shape = start.x0, tuple(start.x0.shape[1:])
        drawn = 2 * noise.uniform(shape, START) - 1 if self.norm == "linf" else noise.normal(shape, START)
        drawn = drawn.to(x0.dtype)
        length = NORMS[self.norm].size(drawn).clamp_min(TINY)
        away = (x0 + spread(start.eps * FIRST_RADIUS / length, x0) * drawn).clamp(0, 1)
        return pick(start.restart == 0, x0, away)

    def step(self, state: FABState, oracles: Oracles, noise: Noise) -> FABState:
        """One linearisation, one move, one check of the class."""
        x0, x, ball = state.x0, state.x, NORMS[self.norm]
        from_x, from_x0 = self._projections(x, x0, self._plane(state, oracles.target))
        near, far = (ball.size(d).clamp_min(1e-8) for d in (from_x, from_x0))
        a = spread((near / (near + far)).clamp(0, self.bias), x)
        x = ((x + self.overshoot * from_x) * (1 - a) + (x0 + self.overshoot * from_x0) * a).clamp(0, 1)

        # Most iterations end correctly classified and need no gradient here, so the check is a forward pass.
        wrong = oracles.target.scores(x).argmax(1) != state.y
        distance = ball.size(x - x0)
        nearer = wrong & (distance < state.distance)
        return dataclasses.replace(
            state,
            x=pick(wrong, x0 + (x - x0) * self.pull_back, x),
            steps_taken=state.steps_taken + 1,
            adversarial=pick(nearer, x, state.adversarial),
            distance=torch.where(nearer, distance, state.distance),
        )

    def forget(self, state: FABState) -> FABState:
        """The rows without the point they hold for the nearest misclassified one; the next one counts as such."""
        return dataclasses.replace(
            state, adversarial=state.x0.clone(), distance=torch.full_like(state.distance, torch.inf)
        )

    def _plane(self, state: FABState, oracle: TargetOracle) -> Gradient:
        """z_t - z_y at x and its gradient, for the target t or the class t whose boundary is nearest to first order."""
        if self.target_count > 0:
            return _towards(state, oracle, state.target)
        nearest = _towards(state, oracle, _other(state.y, 0))
        least = self._distance(nearest)
        for rank in range(1, nearest.logits.shape[1] - 1):
            plane = _towards(state, oracle, _other(state.y, rank))
            distance = self._distance(plane)
            nearer = distance < least
            least = torch.where(nearer, distance, least)
            value = torch.where(nearer, plane.value, nearest.value)
            nearest = Gradient(plane.logits, value, pick(nearer, plane.grad, nearest.grad))
        return nearest

    def _distance(self, plane: Gradient) -> Tensor:
        """(row,): how far the plane is from x when the box plays no part."""
        return plane.value.abs() / (NORMS[self.norm].dual(plane.grad) + TINY)

    def _projections(self, x: Tensor, x0: Tensor, plane: Gradient) -> tuple[Tensor, Tensor]:
        """Steps from x and from x0 to the hyperplane where the linearised z_t - z_y is zero."""
        w = plane.grad.flatten(1)
        b = (w * x.flatten(1)).sum(1) - plane.value
        both = torch.cat([x.flatten(1), x0.flatten(1)])
        d = onto_hyperplane(both, torch.cat([w, w]), torch.cat([b, b]), self.norm)
        from_x, from_x0 = d.chunk(2)
        return from_x.view_as(x), from_x0.view_as(x)

    def finished(self, state: FABState) -> Tensor:
        return state.steps_taken >= self.steps

    def best(self, state: FABState) -> Candidates:
        return Candidates(state.adversarial, state.distance <= state.eps, state.distance)


def _towards(state: FABState, oracle: TargetOracle, target: Tensor) -> Gradient:
    """z_t - z_y at x and its gradient; one forward and one backward pass."""
    return oracle.gradient(state.x, lambda z, at: margin_targeted(z, state.y[at], target[at]))


def _other(y: Tensor, rank: int) -> Tensor:
    """int64 (row,): the class other than y that comes `rank`-th, from 0."""
    return rank + (y <= rank).long()
