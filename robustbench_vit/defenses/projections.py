"""Projections: after the optimiser's step, weights are put back where a layer's norm is at most a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, StrictInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings
from robustbench_vit.defenses.weight_layers import weight_layers
from robustbench_vit.diagnostics.clipping import clipped
from robustbench_vit.diagnostics.layers import Placed
from robustbench_vit.errors import InputError

Bound = Annotated[Number, Field(gt=0)]


@register("regulariser", "bn-projection")
@settings
class BNProjection:
    """Batch normalisation's |γ|/√(var + eps) is at most `bound` after every step (arXiv:2009.08435 has 5).

    Channels above it get the γ of their sign that has it; var is the running variance, so this holds in eval mode.
    Attaching raises InputError for a model without batch normalisation that has a γ and a running variance.
    """

    bound: Bound

    def attach(self, model: nn.Module, image: Tensor) -> RunningBNProjection:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
        for layer in layers:
            if layer.running_var is None:
                raise InputError(f"bn-projection needs running variances, and a {type(layer).__name__} here keeps none")
        if not layers:
            raise InputError(f"bn-projection acts on batch normalisation, and this {type(model).__name__} has none")
        return RunningBNProjection(self.bound, layers)


@dataclass(frozen=True)
class RunningBNProjection:
    """BN projection at work on one model."""

    bound: float
    layers: list[_BatchNorm]

    def before_step(self) -> None:
        pass

    @torch.no_grad()
    def after_step(self) -> None:
        for layer in self.layers:
            largest = self.bound * (layer.running_var + layer.eps).sqrt()  # type: ignore[operator]
            layer.weight.clamp_(-largest, largest)

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass


@register("regulariser", "singular-value-clipping")
@settings
class SingularValueClipping:
    """After every `every` steps the singular values of every Linear and Conv are cut at `bound` (arXiv:1805.10408).

    A convolution counts as if its input were periodic and its stride 1; what the inverse transform has outside the
    kernel's taps is dropped. So the norm of the zero-padded layer comes near the bound and may lie over it; layers that
    keep it are not touched. Attaching raises InputError as that of norm decay does.
    """

    bound: Bound
    every: Annotated[StrictInt, Field(ge=1)]

    def attach(self, model: nn.Module, image: Tensor) -> RunningClipping:
        return RunningClipping(self, weight_layers(model, image, "singular-value-clipping"))


@dataclass
class RunningClipping:
    """Singular value clipping at work on one model."""

    settings: SingularValueClipping
    layers: list[Placed]
    steps: int = 0

    def before_step(self) -> None:
        pass

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        if self.steps % self.settings.every:
            return
        for place in self.layers:
            layer: Any = place.layer
            if (better := clipped(layer, place.input_size, self.settings.bound)) is not None:
                layer.weight.copy_(better)

    def state(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
