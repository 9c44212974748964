"""Norm decay: a pull on the weights that make a layer's l1 or linf norm (arXiv:2009.08435)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings
from robustbench_vit.diagnostics.operator_norm import Order, WeightLayer, extreme_entries, input_sizes


@register("regulariser", "norm-decay")
@settings
class NormDecay:
    """Adds β·G to the gradient of every Linear and Conv weight before each step; weights are never touched.

    G is sign(W) on the entries that make the layer's norm and μ·G (G of the step before) elsewhere, so that entries
    that have just stopped being the largest are let go slowly. Batch normalisation is left out.
    """

    norm: Order
    beta: Annotated[Number, Field(gt=0)]
    mu: Annotated[Number, Field(ge=0, lt=1)]

    def attach(self, model: nn.Module, image: Tensor) -> RunningNormDecay:
        sizes = input_sizes(model, image)
        layers = [Pulled(path, layer, size, torch.zeros_like(layer.weight)) for path, (layer, size) in sizes.items()]
        return RunningNormDecay(self, layers)


@dataclass
class Pulled:
    """A layer under norm decay; `pull` is G."""

    path: str
    layer: WeightLayer
    input_size: tuple[int, ...]
    pull: Tensor  # shaped like the weight


@dataclass(frozen=True)
class RunningNormDecay:
    """Norm decay at work on one model."""

    settings: NormDecay
    layers: list[Pulled]

    @torch.no_grad()
    def before_step(self) -> None:
        for pulled in self.layers:
            weight = pulled.layer.weight
            if weight.grad is None:
                continue
            extreme = extreme_entries(pulled.layer, pulled.input_size, self.settings.norm).bool()
            pulled.pull = torch.where(extreme, weight.sign(), self.settings.mu * pulled.pull)
            weight.grad.add_(pulled.pull, alpha=self.settings.beta)

    def state(self) -> dict[str, Tensor]:
        return {pulled.path: pulled.pull for pulled in self.layers}

    def restore(self, state: dict[str, Tensor]) -> None:
        for pulled in self.layers:
            pulled.pull = state[pulled.path].to(pulled.layer.weight.device)
