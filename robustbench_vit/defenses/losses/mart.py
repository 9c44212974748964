"""MART, misclassification-aware adversarial training (Wang et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.attacks.losses import kl_divergence, logit
from robustbench_vit.cards import Number, Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings


@register("loss", "mart")
@settings
class Mart(Attacked):
    """BCE(f(x'), y) + β·(1 - p_y(x))·KL(p(x) ‖ p(x')): images the model is unsure of count more (eq. 13).

    Nothing is detached, neither the weights 1 - p_y(x) nor the clean answer, as in the authors' code.
    """

    beta: Annotated[Number, Field(ge=0)]

    def bind(self, workspace: Workspace, where: str) -> MartLoss:
        return MartLoss(self.inner(workspace, where), self.beta)


@dataclass(frozen=True)
class MartLoss(StepLoss):
    """`Mart` with its attack."""

    inner: InnerAttack
    beta: float

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        attacked = self.inner(model, batch)
        return lambda model: self._value(model, batch, attacked)

    def _value(self, model: nn.Module, batch: Batch, attacked: Tensor) -> LossValue:
        y, clean, robust = batch.y, logits_of(model, batch.x), logits_of(model, attacked)
        unsure = 1 - logit(clean.softmax(1), y)
        loss = boosted_cross_entropy(robust, y) + self.beta * unsure * kl_divergence(robust, clean)
        return LossValue(loss.mean(), correct(clean, y), correct(robust, y))


def boosted_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """(row,) -log p_y - log(1 - max_{k≠y} p_k) from logits z (row, classes).

    1 - p_k is the sum of the other classes' probabilities, so that no difference of nearly equal numbers is taken and
    no constant has to keep the logarithm finite.
    """
    log_p = z.log_softmax(1)
    rival = log_p.scatter(1, y.unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
    return -logit(log_p, y) - log_p.scatter(1, rival, -torch.inf).logsumexp(1)
