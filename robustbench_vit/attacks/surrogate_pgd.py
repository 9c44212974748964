"""PGD that follows a surrogate, whose gradients show what the target's own hide (arXiv:1802.00420, section 3.1)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field, StrictStr
from torch import Tensor

from robustbench_vit.attacks.pgd import PGD, Asked, PGDState
from robustbench_vit.attacks.registry import algorithms, settings
from robustbench_vit.attacks.rows import Access, Cost, Oracles, positions
from robustbench_vit.cards import Number


@algorithms.register("transfer-pgd")
@settings
class TransferPGD(PGD):
    """Every step follows the surrogate's loss; the target is asked for a decision at each point, for nothing else."""

    access: ClassVar[Access] = Access.DECISIONS
    algorithm_version: ClassVar[int] = 1

    surrogate: StrictStr  # a model made from the target's weights

    @property
    def surrogates(self) -> tuple[str, ...]:
        """The models it asks beside the target."""
        return (self.surrogate,)

    @property
    def led_steps(self) -> int:
        """How many steps follow the surrogate."""
        return self.steps

    def cost(self, num_classes: int) -> Cost:
        own = super().cost(num_classes)
        return Cost(own.forwards + self.restart_count * self.led_steps, own.backwards)

    def ask(self, state: PGDState, oracles: Oracles) -> Asked:
        led, last = state.steps_taken < self.led_steps, state.steps_taken >= self.steps
        wrong, grad = torch.zeros_like(state.found), torch.zeros_like(state.x)
        if len(at := positions(led | last)):
            wrong[at] = oracles.target.decisions(state.x[at], at) != state.y[at]
        if len(at := positions(led)):
            grad[at] = oracles.surrogate[self.surrogate].gradient(state.x[at], self.objective(state.y[at]), at).grad
        if len(at := positions(~led & ~last)):
            wrong[at], grad[at] = self._on_target(state, at, oracles)
        return Asked(wrong, grad)

    def _on_target(self, state: PGDState, at: Tensor, oracles: Oracles) -> tuple[Tensor, Tensor]:
        """Which of the rows `at` are misclassified, and the gradient of the target's own loss."""
        answer = oracles.target.gradient(state.x[at], self.objective(state.y[at]), at)
        return answer.logits.argmax(1) != state.y[at], answer.grad


@algorithms.register("surrogate-pgd")
@settings
class SurrogatePGD(TransferPGD):
    """The first `surrogate_share` of the steps follow the surrogate's loss, the others the target's."""

    access: ClassVar[Access] = Access.GRADIENT

    surrogate_share: Annotated[Number, Field(gt=0, lt=1)]  # of the steps

    @property
    def led_steps(self) -> int:
        return round(self.surrogate_share * self.steps)
