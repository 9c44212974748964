"""T2T-ViT: Vision Transformers whose tokens are made in steps from overlapping patches (arXiv:2101.11986)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.helpers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.author_keys.t2t_vit import from_authors
from robustbench_vit.models.builder import built, require_heads
from robustbench_vit.models.t2t_tokens import IMAGENET_SPLITS, LAYERS, Norm, Split, T2TTokens

SMALL_SPLITS = (Split(5, 2, 2), Split(3, 2, 1), Split(3, 1, 1))
"""32×32 → 16×16 → 8×8 → 8×8; 28×28 → 14×14 → 7×7 → 7×7."""
DIGITS_SPLITS = (Split(3, 1, 1), Split(3, 2, 1), Split(3, 1, 1))
"""8×8 → 8×8 → 4×4 → 4×4."""

PASSED_ON = {
    *("in_chans", "num_classes", "global_pool", "depth", "mlp_ratio", "dynamic_img_size", "device", "dtype"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
}
"""Settings that mean here what they mean for timm's VisionTransformer; its others don't fit this architecture."""


class T2TViT(VisionTransformer):
    """timm's Vision Transformer behind a T2T tokenizer, on a frozen table of positions.

    `tokens` names the token-to-token layers ('performer', 'transformer'), `token_dim` is their width, `token_gain` the
    gain of their Xavier initialisation; None leaves timm's, normal with deviation 0.02. The table is the 1-D sinusoid
    for images of `native_size`; for another `img_size` its map part is interpolated, as for a trained model. The other
    settings are timm's. Raises InputError for image sizes that are no multiple of the tokenizer's stride, for heads
    that don't divide the width, and for settings that are not there.
    """

    from_authors = staticmethod(from_authors)

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] | None = None,
        native_size: int = 224,
        embed_dim: int = 384,
        num_heads: int = 6,
        tokens: str = "performer",
        token_dim: int = 64,
        token_gain: float | None = None,
        splits: tuple[Split, ...] = IMAGENET_SPLITS,
        **settings: Any,
    ) -> None:
        require_heads("T2T-ViT", embed_dim, num_heads)
        if tokens not in LAYERS:
            raise InputError(f"T2T-ViT: tokens is one of {', '.join(LAYERS)}, got '{tokens}'")
        if unknown := sorted(set(settings) - PASSED_ON):
            raise InputError(f"T2T-ViT has no setting '{unknown[0]}'")
        super().__init__(
            img_size=native_size,
            patch_size=math.prod(split.stride for split in splits),
            embed_dim=embed_dim,
            num_heads=num_heads,
            qkv_bias=False,
            norm_layer=Norm,
            embed_layer=partial(T2TTokens, layer=tokens, token_dim=token_dim, splits=splits, gain=token_gain),
            **settings,
        )
        if img_size is not None:
            self.set_input_size(to_2tuple(img_size))

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """timm's initialisation, and the table of positions, which is never trained."""
        super().init_weights(mode, needs_reset)
        with torch.no_grad():
            self._table().copy_(sinusoid(self._table().shape[1], self.embed_dim))
        self._table().requires_grad_(False)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Another image size: the table's map part is interpolated (bicubic), that of the class token stays."""
        super().set_input_size(img_size, patch_size)
        self._table().requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay must leave alone."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {"cls_token", *frozen}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into groups by depth, as timm's layer decay wants them."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def _table(self) -> nn.Parameter:
        return self.get_parameter("pos_embed")


def sinusoid(positions: int, width: int) -> Tensor:
    """The table (1, positions, width): sin (even j) or cos (odd j) of p / 10000^(2⌊j/2⌋ / width)."""
    j = torch.arange(width)
    angle = torch.arange(positions).double()[:, None] / 10000 ** (2 * (j // 2) / width).double()
    return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()[None]


def _cfg(side: int = 224, channels: int = 3, classes: int = 1000, **other: Any) -> dict[str, Any]:
    """A model's card for timm; no weights come with it. The first layer is no convolution that timm could adapt."""
    return {
        "input_size": (channels, side, side),
        "num_classes": classes,
        "pool_size": None,
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": None,
        "classifier": "head",
        **other,
    }


_IMAGENET = ("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24", "14_resnext", "14_wide")
default_cfgs = generate_default_cfgs(
    {
        **{f"t2t_vit_{variant}": _cfg() for variant in _IMAGENET},
        "small_t2t_vit": _cfg(32, 3, 10, crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3),
        "digits_t2t_vit": _cfg(8, 1, 10, crop_pct=1.0, mean=(0.0,), std=(1.0,)),
    }
)


def _built(name: str, pretrained: bool, given: dict[str, Any], **defaults: Any) -> nn.Module:
    """The model; with `features_only=True` timm's wrapper that gives maps of its last three blocks."""
    maps = {"out_indices": 3, "feature_cls": "getter"}
    return built(T2TViT, name, pretrained, defaults, given, feature_cfg=maps)


_TINY = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2}
_14 = {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3}
_19 = {"embed_dim": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3}
_24 = {"embed_dim": 512, "depth": 24, "num_heads": 8, "mlp_ratio": 3}


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-7 for 224×224, performer tokens: 4,310,222 parameters, 1.1 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_7", pretrained, kwargs, **_TINY, depth=7)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-10 for 224×224, performer tokens: 5.9 M parameters, 1.5 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_10", pretrained, kwargs, **_TINY, depth=10)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-12 for 224×224, performer tokens: 6.9 M parameters, 1.8 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_12", pretrained, kwargs, **_TINY, depth=12)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-14 for 224×224, performer tokens: 21,545,550 parameters, 4.8 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_14", pretrained, kwargs, **_14)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-19 for 224×224, performer tokens: 39.2 M parameters, 8.5 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_19", pretrained, kwargs, **_19)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-24 for 224×224, performer tokens: 64.1 M parameters, 13.7 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_24", pretrained, kwargs, **_24)


@register_model
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-14 for 224×224, transformer tokens: 21,541,070 parameters, 6.1 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_t_14", pretrained, kwargs, **_14, tokens="transformer")


@register_model
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-19 for 224×224, transformer tokens: 39.2 M parameters, 9.8 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_t_19", pretrained, kwargs, **_19, tokens="transformer")


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-24 for 224×224, transformer tokens: 64.1 M parameters, 15.0 GMACs (arXiv:2101.11986)."""
    return _built("t2t_vit_t_24", pretrained, kwargs, **_24, tokens="transformer")


@register_model
def t2t_vit_14_resnext(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-14 for 224×224 with 32 heads of width 12 instead of 6 of 64 (arXiv:2101.11986, section 3.2)."""
    return _built("t2t_vit_14_resnext", pretrained, kwargs, **{**_14, "num_heads": 32})


@register_model
def t2t_vit_14_wide(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-14 for 224×224, wide and shallow: 4 blocks of width 768, 25,156,302 parameters (arXiv:2101.11986)."""
    return _built("t2t_vit_14_wide", pretrained, kwargs, **{**_14, "embed_dim": 768, "depth": 4, "num_heads": 12})


@register_model
def small_t2t_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT for 32×32 or 28×28: 6 blocks of width 128, tokens of 4×4 pixels from performer layers of width 32."""
    settings = {"embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2, "token_dim": 32, "token_gain": 1.0}
    return _built("small_t2t_vit", pretrained, kwargs, native_size=32, splits=SMALL_SPLITS, **settings)


@register_model
def digits_t2t_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT for 8×8 grey images: 3 blocks of width 64, tokens of 2×2 pixels from performer layers of width 16."""
    settings = {"embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 2, "token_dim": 16, "token_gain": 1.0}
    return _built("digits_t2t_vit", pretrained, kwargs, native_size=8, splits=DIGITS_SPLITS, **settings)
