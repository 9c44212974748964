"""ALP, adversarial logit pairing (arXiv:1803.06373)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.cards import Number, Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings


@register("loss", "alp")
@settings
class LogitPairing(Attacked):
    """½CE(f(x), y) + ½CE(f(x'), y) + β·MSE(f(x), f(x')), the mean over all logits (arXiv:2009.08435, section 5).

    Both sets of logits are pulled towards each other; nothing is detached.
    """

    beta: Annotated[Number, Field(ge=0)]

    def bind(self, workspace: Workspace, where: str) -> LogitPairingLoss:
        return LogitPairingLoss(self.inner(workspace, where), self.beta)


@dataclass(frozen=True)
class LogitPairingLoss(StepLoss):
    """`LogitPairing` with its attack."""

    inner: InnerAttack
    beta: float

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        attacked = self.inner(model, batch)
        return lambda model: self._value(model, batch, attacked)

    def _value(self, model: nn.Module, batch: Batch, attacked: Tensor) -> LossValue:
        y, clean, robust = batch.y, logits_of(model, batch.x), logits_of(model, attacked)
        entropies = F.cross_entropy(clean, y) + F.cross_entropy(robust, y)
        loss = 0.5 * entropies + self.beta * F.mse_loss(robust, clean)
        return LossValue(loss, correct(clean, y), correct(robust, y))
