"""Optimisers. Weight decay acts on weights of two or more dimensions only, never on biases or normalisation."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, StrictBool
from torch import nn

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings

Positive = Annotated[Number, Field(gt=0)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
NotNegative = Annotated[Number, Field(ge=0)]


@register("optimiser", "sgd")
@settings
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: Positive
    momentum: Fraction
    nesterov: StrictBool
    weight_decay: NotNegative

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = _groups(model, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@register("optimiser", "adamw")
@settings
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    lr: Positive
    beta1: Fraction
    beta2: Fraction
    weight_decay: NotNegative

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(_groups(model, self.weight_decay), lr=self.lr, betas=(self.beta1, self.beta2))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
