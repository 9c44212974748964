"""What tests of EViT share: images, and models whose tokens differ."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from robustbench_vit.models.build import build_model


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(name: str, seed: int = 0, **args) -> Any:
    """A model with weights large enough that tokens differ in how much they are attended to."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(name, **args)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 0.3)
    return model


def with_attention(model: Any, fused: bool) -> Any:
    """The model with timm's fused attention, or with plain products, which the counter of operations knows."""
    for module in model.modules():
        if isinstance(module, Attention):
            setattr(module, "fused_attn", fused)  # noqa: B010 (Final to type checkers)
    return model


def on_meta(name: str, **args) -> Any:
    with torch.device("meta"):
        return with_attention(build_model(name, **args), fused=False)
