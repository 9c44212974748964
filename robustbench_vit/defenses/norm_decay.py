"""Norm decay: a pull on the weights that make a layer's l1 or linf norm (arXiv:2009.08435)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings
from robustbench_vit.defenses.weight_layers import weight_layers
from robustbench_vit.diagnostics.layers import Placed, WeightLayer
from robustbench_vit.diagnostics.lines import Lines, lines_of
from robustbench_vit.diagnostics.operator_norm import SIDES


@register("regulariser", "norm-decay")
@settings
class NormDecay:
    """Adds β·G to the gradient of every Linear and Conv weight before each step; weights are never touched.

    G is sign(W) on the entries that make the layer's norm and μ·G (G of the step before) elsewhere, so that entries
    that have just stopped being the largest are let go slowly. Batch normalisation is left out. Attaching raises
    InputError for a model without such layers, or with one whose norms are not known.
    """

    norm: Literal["l1", "linf"]
    beta: Annotated[Number, Field(gt=0)]
    mu: Annotated[Number, Field(ge=0, lt=1)]

    def attach(self, model: nn.Module, image: Tensor) -> RunningNormDecay:
        placed = weight_layers(model, image, "norm-decay")
        return RunningNormDecay(self, [self._pulled(place) for place in placed])

    def _pulled(self, place: Placed) -> Pulled:
        layer: WeightLayer = place.layer  # type: ignore[assignment]
        lines = lines_of(layer, place.input_size, SIDES[self.norm])
        pull = torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
        return Pulled(place.path, layer, lines, pull, lines.blocks(pull))


@dataclass(frozen=True)
class Pulled:
    """A layer under norm decay; `pull` is G."""

    path: str
    layer: WeightLayer
    lines: Lines  # rows or columns of its matrix
    pull: Tensor  # shaped like the weight
    blocks: Tensor  # the same as (group, output channel, input channel, tap)

    def renew(self, number: int, sums: Tensor) -> None:
        """Sets G to the weight's signs in the row or column of that number in `sums`."""
        line, lines = self.lines.line(number, sums), self.lines
        signs = lines.entries(lines.blocks(self.layer.weight), line).sign()
        part = lines.entries(self.blocks, line)
        part.copy_(torch.where(line.taps, signs, part))


@dataclass(frozen=True)
class RunningNormDecay:
    """Norm decay at work on one model."""

    settings: NormDecay
    layers: list[Pulled]

    @torch.no_grad()
    def before_step(self) -> None:
        pulled = [each for each in self.layers if each.layer.weight.grad is not None]
        if not pulled:
            return
        sums = [each.lines.sums(each.layer.weight) for each in pulled]
        largest = torch.stack([each.argmax() for each in sums]).tolist()  # the device is waited for once
        for each, number, its in zip(pulled, largest, sums, strict=True):
            each.pull.mul_(self.settings.mu)
            each.renew(number, its)
            each.layer.weight.grad.add_(each.pull, alpha=self.settings.beta)  # type: ignore[union-attr]

    def after_step(self) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {each.path: each.pull for each in self.layers}

    def restore(self, state: dict[str, Tensor]) -> None:
        for each in self.layers:
            each.pull.copy_(state[each.path])
