"""TRADES (arXiv:1901.08573)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.attacks.losses import kl_divergence
from robustbench_vit.cards import AlgorithmCard, Loaded, Number, Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack, away_from_clean, inner_card, moving_card
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings


@register("loss", "trades")
@settings
class Trades(Attacked):
    """CE(f(x), y) + β·KL(p(x) ‖ p(x')) (arXiv:1901.08573, eq. 5).

    The steps of the attack card make that KL large (`objective: kl`, as in the paper), or the card's own loss (`card`).
    Nothing is detached: the clean answer moves towards the attacked one too. The authors start from a normal draw of
    size 0.001 around the image, here the attack card's start is taken.
    """

    objective: Literal["card", "kl"]
    beta: Annotated[Number, Field(ge=0)]

    def attack_card(self, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
        find = moving_card if self.objective == "kl" else inner_card
        return find(self.attack, workspace, where)

    def bind(self, workspace: Workspace, where: str) -> TradesLoss:
        return TradesLoss(self.inner(workspace, where), self)


@dataclass(frozen=True)
class TradesLoss(StepLoss):
    """`Trades` with its attack."""

    inner: InnerAttack
    settings: Trades

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        attacked = self.inner(model, batch, away_from_clean if self.settings.objective == "kl" else None)
        return lambda model: self._value(model, batch, attacked)

    def _value(self, model: nn.Module, batch: Batch, attacked: Tensor) -> LossValue:
        clean, robust = logits_of(model, batch.x), logits_of(model, attacked)
        loss = F.cross_entropy(clean, batch.y) + self.settings.beta * kl_divergence(robust, clean).mean()
        return LossValue(loss, correct(clean, batch.y), correct(robust, batch.y))
