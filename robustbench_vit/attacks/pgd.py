"""Projected gradient descent (arXiv:1706.06083), and with one step FGSM (arXiv:1412.6572)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor

from robustbench_vit.attacks.losses import LOSSES
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import (
    Access,
    Candidates,
    Cost,
    Objective,
    Oracles,
    Start,
    pick,
    probe,
    spread,
)
from robustbench_vit.cards import Number

START = 0  # noise stream


@dataclass(frozen=True)
class PGDState:
    """State of PGD rows; `x` is the point the next step asks about."""

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w)
    steps_taken: Tensor  # int64 (row,)
    adversarial: Tensor  # (row, c, h, w) the last misclassified point, else x0
    found: Tensor  # bool (row,)


@dataclass(frozen=True)
class Asked:
    """What a step learns about the points `x` of its rows."""

    wrong: Tensor  # bool (row,): misclassified
    grad: Tensor  # (row, c, h, w) the way to go; 0 where the point is the last


@algorithms.register("pgd")
@settings
class PGD:
    """Untargeted steps along the steepest direction, each projected on the ball and the box.

    Attacks that go another way for some of the steps override `ask`.
    """

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.GRADIENT
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    loss: Literal["ce", "margin", "dlr"]
    steps: Annotated[StrictInt, Field(ge=1)]
    step_size: Annotated[Number, Field(gt=0)]  # times eps
    random_start: StrictBool  # uniform in the ball
    restart_count: Annotated[StrictInt, Field(ge=1, alias="restarts")]

    def restarts(self) -> int:
        return self.restart_count

    def targets(self, num_classes: int) -> int:
        return 0

    def cost(self, num_classes: int) -> Cost:
        return Cost(self.restart_count * (self.steps + 1), self.restart_count * self.steps)

    def init(self, start: Start, noise: Noise) -> PGDState:
        ball = NORMS[self.norm]
        x = start.x0
        if self.random_start:
            x = ball.project(ball.in_ball(start.x0, start.eps, noise, START), start.x0, start.eps)
        rows = len(x)
        return PGDState(
            x0=start.x0,
            y=start.y,
            eps=start.eps,
            x=x,
            steps_taken=torch.zeros(rows, dtype=torch.int64, device=x.device),
            adversarial=start.x0,
            found=torch.zeros(rows, dtype=torch.bool, device=x.device),
        )

    def step(self, state: PGDState, oracles: Oracles, noise: Noise) -> PGDState:
        """Asks about `x` and moves on; after the last step the point reached is asked about once more."""
        ball, asked = NORMS[self.norm], self.ask(state, oracles)
        x = state.x + spread(self.step_size * state.eps, state.x) * ball.steepest_from(state.x, asked.grad)
        return dataclasses.replace(
            state,
            x=ball.project(x, state.x0, state.eps),
            steps_taken=state.steps_taken + 1,
            adversarial=pick(asked.wrong, state.x, state.adversarial),
            found=state.found | asked.wrong,
        )

    def ask(self, state: PGDState, oracles: Oracles) -> Asked:
        """What the model says about `x`, and where its loss grows; at a row's last point a forward pass is enough."""
        want_gradient = state.steps_taken < self.steps
        answer = probe(oracles.target, state.x, self.objective(state.y), want_gradient)
        return Asked(answer.logits.argmax(1) != state.y, answer.grad)

    def objective(self, y: Tensor) -> Objective:
        """The loss of rows with the classes `y` (row,)."""
        loss = LOSSES[self.loss]
        return lambda z, at: loss(z, y[at], y[at])

    def finished(self, state: PGDState) -> Tensor:
        return state.steps_taken > self.steps

    def best(self, state: PGDState) -> Candidates:
        return Candidates(state.adversarial, state.found)
