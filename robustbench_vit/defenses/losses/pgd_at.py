"""Adversarial training (arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_vit.cards import Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack, in_mode
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings


@register("loss", "pgd-at")
@settings
class PGDAdversarialTraining(Attacked):
    """Cross-entropy at the last point of an inner PGD attack (arXiv:1706.06083)."""

    def bind(self, workspace: Workspace, where: str) -> AdversarialLoss:
        return AdversarialLoss(self.inner(workspace, where))


@dataclass(frozen=True)
class AdversarialLoss(StepLoss):
    """`PGDAdversarialTraining` with its attack."""

    inner: InnerAttack

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        attacked, clean_correct = self.inner(model, batch), clean_count(model, batch)
        return lambda model: at_attacked(model, batch, attacked, clean_correct)


@torch.no_grad()
def clean_count(model: nn.Module, batch: Batch) -> Tensor:
    """How many clean images the model classifies right in eval mode."""
    with in_mode(model, "eval"):
        return correct(logits_of(model, batch.x), batch.y)


def at_attacked(model: nn.Module, batch: Batch, attacked: Tensor, clean_correct: Tensor) -> LossValue:
    """Cross-entropy at the attacked images (row, c, h, w)."""
    logits = logits_of(model, attacked)
    return LossValue(F.cross_entropy(logits, batch.y), clean_correct, correct(logits, batch.y))
