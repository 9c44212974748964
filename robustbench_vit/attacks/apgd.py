"""Auto-PGD (arXiv:2003.01690, alg. 1) with the cross-entropy, DLR or targeted DLR loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor

from robustbench_vit.attacks.losses import LOSSES, TARGETED
from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Access, Candidates, Cost, Gradient, Oracles, Start, pick, spread
from robustbench_vit.cards import Number

START = 0  # noise stream


@dataclass(frozen=True)
class APGDState:
    """State of APGD rows; `x` is the point the next step asks about.

    The reference keeps the whole loss history to count rises at a checkpoint. Counting them as they come is the same
    and lets a row join a running batch at any time.
    """

    x0: Tensor  # (row, c, h, w)
    y: Tensor  # (row,)
    target: Tensor  # (row,)
    eps: Tensor  # (row,)
    x: Tensor  # (row, c, h, w)
    x_previous: Tensor  # (row, c, h, w) the point the momentum looks back to
    step_size: Tensor  # (row,)
    asked: Tensor  # int64 (row,) points asked about so far; the start is the first
    loss_previous: Tensor  # (row,) of the point asked about last; 0 for the start, which the history leaves out
    x_best: Tensor  # (row, c, h, w) where the loss was largest
    grad_best: Tensor  # (row, c, h, w)
    loss_best: Tensor  # (row,)
    rises: Tensor  # int64 (row,) since the last checkpoint
    window: Tensor  # int64 (row,) steps from the last checkpoint to the next
    since: Tensor  # int64 (row,) steps since the last checkpoint
    halved: Tensor  # bool (row,) at the last checkpoint; starts true, so that stagnation cannot be blamed first
    loss_best_checkpoint: Tensor  # (row,)
    adversarial: Tensor  # (row, c, h, w) the last misclassified point, else x0
    found: Tensor  # bool (row,)


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """What every form of Auto-PGD states on its card, and how it asks the model."""

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.GRADIENT
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    loss: Literal["ce", "dlr", "dlr-targeted"]
    steps: Annotated[StrictInt, Field(ge=1)]
    restart_count: Annotated[StrictInt, Field(ge=1, alias="restarts")]
    target_count: Annotated[StrictInt, Field(ge=0, alias="targets")]  # 0: untargeted
    draws: Annotated[StrictInt, Field(ge=1)]  # of a random model, over which a gradient is averaged
    step_size: Annotated[Number, Field(gt=0)]  # the first one, times eps

    def __post_init__(self) -> None:
        if (self.loss in TARGETED) != (self.target_count > 0):
            raise ValueError(f"loss '{self.loss}' needs targets {'≥ 1' if self.loss in TARGETED else '= 0'}")

    def restarts(self) -> int:
        return self.restart_count

    def targets(self, num_classes: int) -> int:
        return min(self.target_count, num_classes - 1)

    def cost_of(self, points: int, num_classes: int) -> Cost:
        """Passes when every row asks about this many points."""
        passes = self.restart_count * max(self.targets(num_classes), 1) * points * self.draws
        return Cost(passes, passes)

    def ask(self, oracles: Oracles, x: Tensor, y: Tensor, target: Tensor) -> Gradient:
        """The model's answer at `x` (row, c, h, w) with the loss as objective."""
        loss, several = LOSSES[self.loss], {"draws": self.draws} if self.draws > 1 else {}
        return oracles.target.gradient(x, lambda z, at: loss(z, y[at], target[at]), **several)


@algorithms.register("apgd")
@settings
class APGD(Ascent):
    """Momentum steps whose size halves where the loss stops improving."""

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    algorithm_version: ClassVar[int] = 1

    momentum: Annotated[Number, Field(ge=0, le=1)]  # weight of the new step; 1 is no momentum
    rise_fraction: Annotated[Number, Field(ge=0, le=1)]  # a window with at most this share of rises halves the step
    first_window: Annotated[Number, Field(gt=0, le=1)]  # times steps
    window_decrease: Annotated[Number, Field(gt=0, le=1)]  # times steps
    last_window: Annotated[Number, Field(gt=0, le=1)]  # times steps

    def cost(self, num_classes: int) -> Cost:
        return self.cost_of(self.steps + 1, num_classes)

    def init(self, start: Start, noise: Noise) -> APGDState:
        ball, x0 = NORMS[self.norm], start.x0
        rows, device = len(x0), x0.device
        x = ball.on_sphere(x0, start.eps, noise, START).clamp(0, 1)
        zero = torch.zeros(rows, dtype=x0.dtype, device=device)
        none = torch.zeros(rows, dtype=torch.int64, device=device)
        return APGDState(
            x0=x0,
            y=start.y,
            target=start.target,
            eps=start.eps,
            x=x,
            x_previous=x,
            step_size=self.step_size * start.eps.to(x0.dtype),
            asked=none,
            loss_previous=zero,
            x_best=x,
            grad_best=torch.zeros_like(x),
            loss_best=zero,
            rises=none,
            window=torch.full_like(none, self._window(self.first_window)),
            since=none,
            halved=torch.ones(rows, dtype=torch.bool, device=device),
            loss_best_checkpoint=zero,
            adversarial=x0,
            found=torch.zeros(rows, dtype=torch.bool, device=device),
        )

    def step(self, state: APGDState, oracles: Oracles, noise: Noise) -> APGDState:
        """Asks about `x`, keeps the books, and moves on."""
        answer = self.ask(oracles, state.x, state.y, state.target)
        wrong = answer.logits.argmax(1) != state.y
        first = state.asked == 0
        better = first | (answer.value > state.loss_best)
        state = dataclasses.replace(
            state,
            adversarial=pick(wrong, state.x, state.adversarial),
            found=state.found | wrong,
            rises=state.rises + (~first & (answer.value > state.loss_previous)),
            since=state.since + ~first,
            loss_previous=torch.where(first, 0, answer.value),
            x_best=pick(better, state.x, state.x_best),
            grad_best=pick(better, answer.grad, state.grad_best),
            loss_best=torch.where(better, answer.value, state.loss_best),
            loss_best_checkpoint=torch.where(first, answer.value, state.loss_best_checkpoint),
        )
        state, restarted = self._checkpoint(state)
        x = pick(restarted, state.x_best, state.x)
        grad = pick(restarted, state.grad_best, answer.grad)
        return dataclasses.replace(state, x=self._move(state, x, grad), x_previous=x, asked=state.asked + 1)

    def _checkpoint(self, state: APGDState) -> tuple[APGDState, Tensor]:
        """The state after this step's checkpoint, where one is due, and which rows restart from their best point."""
        due = state.since == state.window
        oscillates = state.rises <= self.rise_fraction * state.window
        stagnates = ~state.halved & (state.loss_best_checkpoint >= state.loss_best)
        halve = due & (oscillates | stagnates)
        shorter = (state.window - self._window(self.window_decrease)).clamp_min(self._window(self.last_window))
        state = dataclasses.replace(
            state,
            step_size=torch.where(halve, state.step_size / 2, state.step_size),
            halved=torch.where(due, halve, state.halved),
            loss_best_checkpoint=torch.where(due, state.loss_best, state.loss_best_checkpoint),
            window=torch.where(due, shorter, state.window),
            since=state.since.masked_fill(due, 0),
            rises=state.rises.masked_fill(due, 0),
        )
        return state, halve

    def _move(self, state: APGDState, x: Tensor, grad: Tensor) -> Tensor:
        """The next point: a projected step, mixed with the last move (eq. 1 of the paper)."""
        ball = NORMS[self.norm]
        way = ball.steepest(grad).mul_(spread(state.step_size, x))  # a tensor of its own, as projections are
        z = ball.project(way.add_(x), state.x0, state.eps)
        a = spread(torch.where(state.asked == 0, 1.0, self.momentum).to(x.dtype), x)
        last = (x - state.x_previous).mul_(1 - a)
        return ball.project(z.sub_(x).mul_(a).add_(x).add_(last), state.x0, state.eps)

    def _window(self, fraction: float) -> int:
        """A share of the steps in whole steps, at least one; the tiny term undoes .29 * 100 = 28.999999999999996."""
        return max(int(fraction * self.steps + 1e-9), 1)

    def finished(self, state: APGDState) -> Tensor:
        return state.asked > self.steps

    def best(self, state: APGDState) -> Candidates:
        return Candidates(state.adversarial, state.found)
