"""Fast adversarial training with one step, and a guard against catastrophic overfitting (arXiv:2001.03994)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StrictInt
from torch import Tensor, nn

from robustbench_vit.attacks.registry import attack_faults, build_attack
from robustbench_vit.cards import AlgorithmCard, Loaded, Number, Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack, in_mode, inner_card
from robustbench_vit.defenses.losses.pgd_at import at_attacked, clean_count
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.recipe import PROSE
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings
from robustbench_vit.errors import CardError

_log = logging.getLogger(__name__)


@register("loss", "fast-at")
@settings
class FastAdversarialTraining(Attacked):
    """Cross-entropy at a single random step of 1.25·eps (FGSM-RS, arXiv:2001.03994), under guard.

    Such training can collapse within an epoch: the model learns to fool the single step, and a few smaller steps break
    it. So every `check_every` steps the batch is attacked by the card `check_attack` too. When the share of it that is
    right under the single step exceeds that under the check by more than `largest_gap`, this is said once and training
    goes on with the check's attack to its end; with `on_overfitting: back`, from the weights of the last check that was
    passed (the optimiser's state stays).
    """

    whole_batch: ClassVar[bool] = True  # the guard compares shares of them

    check_attack: str
    check_every: Annotated[StrictInt, Field(ge=1)]
    largest_gap: Annotated[Number, Field(gt=0, lt=1)]
    on_overfitting: Literal["multi-step", "back"]

    def relies_on(self, workspace: Workspace, where: str) -> dict[str, Any]:
        """The check's attack card."""
        loaded = self._check_card(workspace, where)
        if faults := attack_faults(loaded):
            raise CardError(faults)
        return {"check_attack": loaded.card.model_dump(exclude=PROSE)}

    def bind(self, workspace: Workspace, where: str) -> GuardedLoss:
        check = build_attack(self._check_card(workspace, where), self.norm)
        return GuardedLoss(self, self.inner(workspace, where), InnerAttack(self, check))

    def _check_card(self, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
        return inner_card(self.check_attack, workspace, where, "check_attack")


@dataclass(frozen=True)
class GuardedLoss:
    """`FastAdversarialTraining` with its attacks."""

    settings: FastAdversarialTraining
    single: InnerAttack
    check: InnerAttack

    def start(self, model: nn.Module, image: Tensor) -> RunningGuardedLoss:
        return RunningGuardedLoss(self)

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        return self.start(model, batch.x[:1]).prepare(model, batch)

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        return self.prepare(model, batch)(model)


@dataclass
class RunningGuardedLoss(StepLoss):
    """Fast adversarial training of one model."""

    bound: GuardedLoss
    overfitted: bool = False
    steps: int = 0
    passed: dict[str, Tensor] = field(default_factory=dict)  # the weights of the last check that was passed

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        if not self.overfitted and self.steps % self.bound.settings.check_every == 0:
            self._check(model, batch)
        self.steps += 1
        attack = self.bound.check if self.overfitted else self.bound.single
        attacked, clean_correct = attack(model, batch), clean_count(model, batch)
        return lambda model: at_attacked(model, batch, attacked, clean_correct)

    def _check(self, model: nn.Module, batch: Batch) -> None:
        """Compares the attacks on the batch; keeps the weights where they are good, else says so and acts."""
        single, multi = (self._accuracy(model, batch, attack) for attack in (self.bound.single, self.bound.check))
        back = self.bound.settings.on_overfitting == "back"
        if single - multi <= self.bound.settings.largest_gap:
            if back:
                self.passed = {key: value.detach().clone() for key, value in model.state_dict().items()}
            return
        self.overfitted = True
        if self.passed:
            model.load_state_dict(self.passed)
        self._say(batch.epochs_done, single, multi)
        self.passed = {}

    def _accuracy(self, model: nn.Module, batch: Batch, attack: InnerAttack) -> float:
        """The share of the batch that is right under an attack, in the mode the model is attacked in."""
        attacked = attack(model, batch)
        with in_mode(model, self.bound.settings.mode), torch.no_grad():
            return float(correct(logits_of(model, attacked), batch.y)) / len(batch.y)

    def _say(self, epochs_done: float, single: float, multi: float) -> None:
        fast, check = self.bound.settings.attack, self.bound.settings.check_attack
        back = "the weights of the last check that was passed are back, and " if self.passed else ""
        _log.warning(
            f"catastrophic overfitting after {epochs_done:.2f} epochs: {100 * single:.0f} % of a training batch are"
            f" right under '{fast}', {100 * multi:.0f} % under '{check}'; {back}training goes on with '{check}'"
        )

    def state(self) -> dict[str, Any]:
        return {"overfitted": self.overfitted, "steps": self.steps, "passed": self.passed}

    def restore(self, state: dict[str, Any]) -> None:
        self.overfitted, self.steps, self.passed = state["overfitted"], state["steps"], state["passed"]
