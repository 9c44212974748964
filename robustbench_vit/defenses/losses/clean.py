"""Cross-entropy on clean images."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from robustbench_vit.cards import Number, Workspace
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings


@register("loss", "cross-entropy")
@settings
class CrossEntropy(StepLoss):
    """Cross-entropy on clean images, with label smoothing in [0, 1)."""

    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]

    def attack_card(self, workspace: Workspace, where: str) -> None:
        """None: no attack takes part."""

    def bind(self, workspace: Workspace, where: str) -> CrossEntropy:
        return self

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        return lambda model: self._value(model, batch)

    def _value(self, model: nn.Module, batch: Batch) -> LossValue:
        logits = logits_of(model, batch.x)
        loss = F.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing)
        return LossValue(loss, correct(logits, batch.y), None)
