"""Changes of a model's architecture that are a defense."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings
from robustbench_vit.models.ic_layer import IC, with_ic_layers


@register("architecture", "ic-layer")
@settings
class ICLayers:
    """An IC layer before every weight layer but the first convolution and 1×1 shortcuts (arXiv:1905.05928).

    A model that has IC layers already (`digits_ic_cnn`) is left as it is.
    """

    dropout: Annotated[Number, Field(ge=0, lt=1)]

    def apply(self, model: nn.Module) -> nn.Module:
        if any(isinstance(module, IC) for module in model.modules()):
            return model
        return with_ic_layers(model, self.dropout)
