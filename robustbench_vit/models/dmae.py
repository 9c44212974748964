"""DMAE classifiers: Vision Transformers fine-tuned from denoising masked autoencoders (arXiv:2210.06983)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.builder import built, require_heads, require_square_patches

BASE = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}
SMALL = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
DIGITS = {"patch_size": 2, "embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}


class NormalisedPatchEmbed(PatchEmbed):
    """timm's patch embedding behind (x - mean) / std, which is no part of the state dict; images are in [0, 1]."""

    mean: Tensor  # (c, 1, 1)
    std: Tensor  # (c, 1, 1)

    def __init__(self, mean: Sequence[float], std: Sequence[float], **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.normalise(x))


class DMAEClassifier(VisionTransformer):
    """timm's ViT with a class token, the mean over patches, `fc_norm` and the normalisation inside.

    Its keys are the authors'. The class token takes part in attention and is left out of the mean. Positions start as
    the autoencoder's fixed table and are trained. `mean` and `std` default to ImageNet's for three channels, else to
    0.5.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        num_heads: int = 12,
        global_pool: str = "avg",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        require_square_patches("DMAEClassifier", img_size, patch_size)
        require_heads("DMAEClassifier", embed_dim, num_heads)
        super().__init__(
            img_size=img_size,
            patch_size=cast(Any, patch_size),
            in_chans=in_chans,
            embed_dim=embed_dim,
            num_heads=num_heads,
            global_pool=cast(Any, global_pool),
            embed_layer=embedding(in_chans, mean, std),
            **settings,
        )
        if self.pos_embed is not None and self.has_class_token and not self.no_embed_class:
            with torch.no_grad():
                self.pos_embed.copy_(position_table(self.patch_embed.grid_size, embed_dim))


def embedding(
    in_chans: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> partial[NormalisedPatchEmbed]:
    """The patch embedding with that normalisation, or the default one. Raises InputError for one that doesn't fit."""
    mean = tuple(mean or (IMAGENET_DEFAULT_MEAN if in_chans == 3 else [0.5] * in_chans))
    std = tuple(std or (IMAGENET_DEFAULT_STD if in_chans == 3 else [0.5] * in_chans))
    if len(mean) != in_chans or len(std) != in_chans or min(std) <= 0:
        raise InputError(f"mean {mean} and std {std}: give a number for each of {in_chans} channels, std above 0")
    return partial(NormalisedPatchEmbed, mean, std)


def position_table(grid: tuple[int, int], width: int) -> Tensor:
    """MAE's fixed sine and cosine positions, (1, 1 + h·w, width): zeros for the class token, then patches row by row.

    The first half of the channels tells the column and the second the row; each is sines, then cosines, of
    p / 10000^(j / (width / 4)). Raises InputError when four doesn't divide the width.
    """
    if width % 4:
        raise InputError(f"a position table has four equal parts, which a width of {width} doesn't divide into")
    rows_first = build_sincos2d_pos_embed(list(grid), width, interleave_sin_cos=True)
    patches = rows_first.roll(width // 2, dims=1)
    return torch.cat([patches.new_zeros(1, width), patches]).unsqueeze(0)


def _cfg(input_size: tuple[int, int, int] = (3, 224, 224), num_classes: int = 1000) -> dict[str, Any]:
    """The normalisation is the model's own, so that nothing is left for a loader to do."""
    return {
        "num_classes": num_classes,
        "input_size": input_size,
        "fixed_input_size": True,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.0,) * input_size[0],
        "std": (1.0,) * input_size[0],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {
        "dmae_vit_base": _cfg(),
        "dmae_vit_large": _cfg(),
        "small_dmae_vit": _cfg((3, 32, 32), 10),
        "digits_dmae_vit": _cfg((1, 8, 8), 10),
    }
)


def _create(name: str, pretrained: bool, size: dict[str, Any], given: dict[str, Any]) -> DMAEClassifier:
    features = {"out_indices": 3, "feature_cls": "getter"}
    return built(DMAEClassifier, name, pretrained, size, given, feature_cfg=features)


@register_model
def dmae_vit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DMAE's ViT-B/16 classifier for 224×224 images, normalisation inside, 86,567,656 parameters."""
    return _create("dmae_vit_base", pretrained, BASE, kwargs)


@register_model
def dmae_vit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DMAE's ViT-L/16 classifier for 224×224 images, normalisation inside."""
    return _create("dmae_vit_large", pretrained, LARGE, kwargs)


@register_model
def small_dmae_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DMAE classifier for 32×32 images: 4×4 patches, 6 blocks of width 128."""
    return _create("small_dmae_vit", pretrained, SMALL, kwargs)


@register_model
def digits_dmae_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DMAE classifier for 8×8 grey images: 2×2 patches, 3 blocks of width 64."""
    return _create("digits_dmae_vit", pretrained, DIGITS, kwargs)
