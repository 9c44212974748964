"""Small classifiers for 8×8 grey images, in timm's registry: a Vision Transformer and two residual CNNs."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.ic_layer import with_ic_layers

_TIMM_ONLY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""What timm's `create_model` hands to every builder and models without pretrained weights have no use for."""


class ResidualBlock(nn.Module):
    """x ↦ shortcut(x) + Conv(ReLU(Conv(ReLU(x)))), both convolutions 3×3; the shortcut is 1×1 when the shape changes.

    Without batch normalisation it trains because the second convolution starts at zero: every block starts as its
    shortcut (arXiv:1901.09321).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(F.relu(self.conv1(F.relu(x))))


class DigitsCNN(nn.Module):
    """Stem, three residual blocks, global average pooling, one linear layer; no batch normalisation."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, 16, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 32, 1))
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


@register_model
def digits_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vision Transformer for 8×8 grey images: 2×2 patches, 3 blocks of width 64, average pooling."""
    settings = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 2,
        "class_token": False,
        "global_pool": "avg",
    }
    model = VisionTransformer(**{**settings, **_own("digits_vit", pretrained, kwargs)})
    if model.pos_embed is not None:
        # timm's 0.02 drowns in embeddings of bare pixels: all positions look alike and training takes ages to start.
        nn.init.normal_(model.pos_embed, std=0.3)
    return model


@register_model
def digits_cnn(pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, **kwargs: Any) -> nn.Module:
    """Residual CNN without batch normalisation for 8×8 grey images, 38,058 parameters."""
    _none_left("digits_cnn", _own("digits_cnn", pretrained, kwargs))
    return DigitsCNN(num_classes, in_chans)


@register_model
def digits_ic_cnn(
    pretrained: bool = False, num_classes: int = 10, in_chans: int = 1, dropout: float = 0.05, **kwargs: Any
) -> nn.Module:
    """`digits_cnn` with an IC layer before every weight layer but the stem and the shortcuts."""
    _none_left("digits_ic_cnn", _own("digits_ic_cnn", pretrained, kwargs))
    return with_ic_layers(DigitsCNN(num_classes, in_chans), dropout)


def _own(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that mean something to the model."""
    if pretrained:
        raise InputError(f"{name} has no pretrained weights; load a file, or train it with `rbvit train`")
    return {key: value for key, value in kwargs.items() if key not in _TIMM_ONLY}


def _none_left(name: str, left: dict[str, Any]) -> None:
    if left:
        raise InputError(f"{name} has no setting '{next(iter(left))}'")
