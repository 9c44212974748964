"""LTD, low-temperature distillation (arXiv:2111.02331)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.attacks.losses import kl_divergence
from robustbench_vit.cards import AlgorithmCard, Loaded, Number, Workspace
from robustbench_vit.defenses.losses.inner import Attacked, InnerAttack, away_from_clean, inner_card, moving_card
from robustbench_vit.defenses.losses.pgd_at import clean_count
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings
from robustbench_vit.defenses.teachers import Teacher, load_teacher, require_same_classes, weights_digest


@register("loss", "ltd")
@settings
class LowTemperature(Attacked):
    """CE(q, f(x')) with a teacher's soft labels q = softmax(z_T(x)/τ) of the clean image (arXiv:2111.02331).

    The attack makes its card's own loss large (`objective: card`, the true class) or CE(q, f(x')) (`soft-labels`). The
    student's own temperature is 1.
    """

    objective: Literal["card", "soft-labels"]
    teacher: Teacher
    temperature: Annotated[Number, Field(gt=0)]

    def relies_on(self, workspace: Workspace, where: str) -> dict[str, Any]:
        return {"teacher_sha256": weights_digest(self.teacher, workspace, where)}

    def bind(self, workspace: Workspace, where: str) -> LowTemperatureLoss:
        teacher = load_teacher(self.teacher, workspace, where)
        return LowTemperatureLoss(self.inner(workspace, where), self, teacher)


@register("loss", "ltd-trades")
@settings
class LowTemperatureTrades(Attacked):
    """CE(q, f(x)) + β·KL(p(x) ‖ p(x')): TRADES with a teacher's soft labels q (arXiv:2111.02331).

    The attack makes that KL large (`objective: kl`), or its card's own loss (`card`).
    """

    objective: Literal["card", "kl"]
    teacher: Teacher
    temperature: Annotated[Number, Field(gt=0)]
    beta: Annotated[Number, Field(ge=0)]

    def attack_card(self, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
        find = moving_card if self.objective == "kl" else inner_card
        return find(self.attack, workspace, where)

    def relies_on(self, workspace: Workspace, where: str) -> dict[str, Any]:
        return {"teacher_sha256": weights_digest(self.teacher, workspace, where)}

    def bind(self, workspace: Workspace, where: str) -> LowTemperatureTradesLoss:
        teacher = load_teacher(self.teacher, workspace, where)
        return LowTemperatureTradesLoss(self.inner(workspace, where), self, teacher)


@dataclass(frozen=True)
class LowTemperatureLoss(StepLoss):
    """`LowTemperature` with its attack and its teacher."""

    inner: InnerAttack
    settings: LowTemperature
    teacher: nn.Module  # in eval mode, wants no gradient

    def start(self, model: nn.Module, image: Tensor) -> LowTemperatureLoss:
        return dataclasses.replace(self, teacher=require_same_classes(self.teacher, model, image))

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        labels, seen = soft_labels(self.teacher, batch.x, self.settings.temperature), clean_count(model, batch)
        soft = self.settings.objective == "soft-labels"
        attacked = self.inner(model, batch, (lambda *_: partial(soft_cross_entropy, q=labels)) if soft else None)
        return lambda model: self._value(model, batch, attacked, labels, seen)

    def _value(
        self, model: nn.Module, batch: Batch, attacked: Tensor, labels: Tensor, clean_correct: Tensor
    ) -> LossValue:
        robust = logits_of(model, attacked)
        loss = soft_cross_entropy(robust, labels).mean()
        return LossValue(loss, clean_correct, correct(robust, batch.y))


@dataclass(frozen=True)
class LowTemperatureTradesLoss(StepLoss):
    """`LowTemperatureTrades` with its attack and its teacher."""

    inner: InnerAttack
    settings: LowTemperatureTrades
    teacher: nn.Module  # in eval mode, wants no gradient

    def start(self, model: nn.Module, image: Tensor) -> LowTemperatureTradesLoss:
        return dataclasses.replace(self, teacher=require_same_classes(self.teacher, model, image))

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        labels = soft_labels(self.teacher, batch.x, self.settings.temperature)
        attacked = self.inner(model, batch, away_from_clean if self.settings.objective == "kl" else None)
        return lambda model: self._value(model, batch, attacked, labels)

    def _value(self, model: nn.Module, batch: Batch, attacked: Tensor, labels: Tensor) -> LossValue:
        clean, robust = logits_of(model, batch.x), logits_of(model, attacked)
        loss = soft_cross_entropy(clean, labels) + self.settings.beta * kl_divergence(robust, clean)
        return LossValue(loss.mean(), correct(clean, batch.y), correct(robust, batch.y))


@torch.no_grad()
def soft_labels(teacher: nn.Module, x: Tensor, temperature: float) -> Tensor:
    """(row, classes) softmax(z_T(x)/τ)."""
    return (logits_of(teacher, x) / temperature).softmax(1)


def soft_cross_entropy(z: Tensor, q: Tensor) -> Tensor:
    """(row,) -Σ_k q_k log softmax(z)_k; its gradient with respect to z is softmax(z) - q."""
    return F.cross_entropy(z, q, reduction="none")
