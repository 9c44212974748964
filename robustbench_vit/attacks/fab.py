"""FAB, the fast adaptive boundary attack, towards target classes (arXiv:1907.02044)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.attacks.losses import margin_targeted
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.projection import onto_hyperplane
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Access, Candidates, Cost, Oracles, Start, pick, spread
from robustbench_vit.cards import Number


@dataclass(frozen=True)
class FABState:
    """State of FAB rows."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    target: Tensor  # (row,)
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w)
    steps_taken: Tensor  # int64 (row,)
    adversarial: Tensor  # (row, c, h, w) the nearest misclassified point, else x0
    distance: Tensor  # (row,) of it; infinite while there is none


@algorithms.register("fab")
@settings
class FAB:
    """Walks along the linearised boundary between the true and the target class, always pulled towards x0.

    It minimises the distance, but a row is a success as soon as that distance is at most eps, which is all that a
    budget asks. One restart from x0 itself: there is no randomness.
    """

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.GRADIENT
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    steps: Annotated[StrictInt, Field(ge=1)]
    target_count: Annotated[StrictInt, Field(ge=1, alias="targets")]
    bias: Annotated[Number, Field(ge=0, le=1)]  # alpha_max, the largest weight of the step from x0
    overshoot: Annotated[Number, Field(ge=1)]  # eta, how far beyond the hyperplane
    pull_back: Annotated[Number, Field(gt=0, lt=1)]  # beta, how near to x0 a success returns

    def restarts(self) -> int:
        return 1

    def targets(self, num_classes: int) -> int:
        return min(self.target_count, num_classes - 1)

    def cost(self, num_classes: int) -> Cost:
        steps = self.steps * self.targets(num_classes)
        return Cost(2 * steps, steps)

    def init(self, start: Start, noise: Noise) -> FABState:
        rows, device = len(start.x0), start.x0.device
        return FABState(
            x0=start.x0,
            y=start.y,
            target=start.target,
            eps=start.eps,
            x=start.x0,
            steps_taken=torch.zeros(rows, dtype=torch.int64, device=device),
            adversarial=start.x0,
            distance=torch.full((rows,), torch.inf, dtype=start.x0.dtype, device=device),
        )

    def step(self, state: FABState, oracles: Oracles, noise: Noise) -> FABState:
        """One linearisation, one move, one check of the class."""
        x0, x = state.x0, state.x
        answer = oracles.target.gradient(x, lambda z, at: margin_targeted(z, state.y[at], state.target[at]))
        from_x, from_x0 = self._projections(x, x0, answer.grad, answer.value)
        ball = NORMS[self.norm]
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

    def _projections(self, x: Tensor, x0: Tensor, grad: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Steps from x and from x0 to the hyperplane where the linearised z_t - z_y is zero."""
        w = grad.flatten(1)
        b = (w * x.flatten(1)).sum(1) - value
        both = torch.cat([x.flatten(1), x0.flatten(1)])
        d = onto_hyperplane(both, torch.cat([w, w]), torch.cat([b, b]), self.norm)
        from_x, from_x0 = d.chunk(2)
        return from_x.view_as(x), from_x0.view_as(x)

    def finished(self, state: FABState) -> Tensor:
        return state.steps_taken >= self.steps

    def best(self, state: FABState) -> Candidates:
        return Candidates(state.adversarial, state.distance <= state.eps, state.distance)
