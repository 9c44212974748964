"""EViT: Vision Transformers that go on with their most attended tokens only (arXiv:2202.07800).

Parameters and state-dict keys are those of timm's ViT and DeiT, so checkpoints of these, and the authors' own, load.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.builder import built, require_heads, require_square_patches
from robustbench_vit.models.evit_block import DroppingBlock, dropping_blocks
from robustbench_vit.models.evit_schedule import check_keep_rate

ViT = TypeVar("ViT", bound=nn.Module)


def evit(model: ViT, keep_rate: float = 0.7, fuse_token: bool = True, drop_layers: Sequence[int] = (3, 6, 9)) -> ViT:
    """`model`, one of timm's ViTs or DeiTs, changed in place: its blocks `drop_layers` (from 0) drop tokens.

    Parameters, state-dict keys, mode and device stay as they are. Tokens in front of the image's (class, distillation
    and register tokens) always stay. Feature maps (`forward_intermediates` in NCHW, `features_only`) no longer exist,
    since tokens are missing in them. Raises InputError for a model that has no class token, is not one of timm's
    Vision Transformers or drops tokens already, for a keep rate outside (0, 1] and for layers it doesn't have; the
    model is unchanged then.
    """
    rate, vit = check_keep_rate(keep_rate), _check_vit(model)
    if not isinstance(fuse_token, bool):
        raise InputError(f"fuse_token is true or false, got {fuse_token!r}")
    for location, (index, block) in enumerate(_check_layers(vit, drop_layers).items()):
        vit.blocks[index] = DroppingBlock(block, index, location, vit.num_prefix_tokens, rate, fuse_token)
    return model


def set_keep_rate(model: nn.Module, keep_rate: float) -> None:
    """Gives every dropping block in `model` this keep rate, as a training schedule does."""
    rate = check_keep_rate(keep_rate)
    for block in dropping_blocks(model):
        block.keep_rate = rate


def at_keep_rate(model: ViT, keep_rate: float) -> ViT:
    """A copy of `model` with this keep rate that shares all parameters and buffers with it.

    At 1.0 it is the ViT without dropping, an exact surrogate for attacks. `model` may wrap the ViT.
    """
    tensors = chain(model.parameters(), model.buffers())
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    set_keep_rate(other, keep_rate)
    return other


def _check_vit(model: nn.Module) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise InputError(f"token dropping needs one of timm's Vision Transformers, got a {type(model).__name__}")
    if not model.has_class_token:
        raise InputError(
            "token dropping needs a class token, whose attention says which tokens stay; build the model with "
            "class_token=True"
        )
    if any(isinstance(block, DroppingBlock) for block in model.blocks):
        raise InputError("this model drops tokens already; set_keep_rate() changes its keep rate")
    return model


def _check_layers(model: VisionTransformer, drop_layers: Sequence[int]) -> dict[int, Block]:
    """The blocks to replace by number, in ascending order."""
    if not isinstance(drop_layers, Sequence) or not 0 < len(set(drop_layers)) == len(drop_layers):
        raise InputError(f"drop_layers lists one or more blocks, each once, got {drop_layers!r}")
    depth, found = len(model.blocks), {}
    for layer in drop_layers:
        if type(layer) is not int or not 0 <= layer < depth:
            raise InputError(f"drop layer {layer!r} is not a block of this model: it has {depth}, 0 to {depth - 1}")
        block = model.blocks[layer]
        if type(block) is not Block or type(block.attn) is not Attention:
            kind = type(block).__name__ if type(block) is not Block else f"block with {type(block.attn).__name__}"
            raise InputError(f"block {layer} is a {kind}; tokens are dropped in timm's plain Block with Attention")
        found[layer] = block
    return dict(sorted(found.items()))


def _cfg(**changes: Any) -> dict[str, Any]:
    imagenet = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return imagenet | changes


def _unnormalised(channels: int, size: int) -> dict[str, Any]:
    """Ten classes of images in [0, 1] as they are."""
    mean, std = (0.0,) * channels, (1.0,) * channels
    return _cfg(num_classes=10, input_size=(channels, size, size), crop_pct=1.0, mean=mean, std=std)


default_cfgs = generate_default_cfgs(
    {
        "evit_tiny_patch16_224": _cfg(),
        "evit_small_patch16_224": _cfg(),
        "evit_base_patch16_224": _cfg(),
        "small_evit": _unnormalised(channels=3, size=32),
        "digits_evit": _unnormalised(channels=1, size=8),
    }
)


class EViT(VisionTransformer):
    """timm's ViT with token dropping; the settings that are not named here are timm's."""

    def __init__(
        self,
        keep_rate: float = 0.7,
        fuse_token: bool = True,
        drop_layers: Sequence[int] = (3, 6, 9),
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        num_heads: int = 12,
        **vit: Any,
    ) -> None:
        require_heads("EViT", embed_dim, num_heads)
        require_square_patches("EViT", img_size, patch_size)
        super().__init__(img_size=img_size, patch_size=patch_size, embed_dim=embed_dim, num_heads=num_heads, **vit)
        evit(self, keep_rate, fuse_token, drop_layers)


@register_model
def evit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> EViT:
    """EViT on DeiT-Ti: 12 blocks of width 192, tokens dropped in blocks 3, 6 and 9; keep_rate 0.7, fuse_token."""
    return _built("evit_tiny_patch16_224", pretrained, kwargs, embed_dim=192, num_heads=3)


@register_model
def evit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> EViT:
    """EViT on DeiT-S: 12 blocks of width 384, tokens dropped in blocks 3, 6 and 9; keep_rate 0.7, fuse_token."""
    return _built("evit_small_patch16_224", pretrained, kwargs, embed_dim=384, num_heads=6)


@register_model
def evit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> EViT:
    """EViT on DeiT-B: 12 blocks of width 768, tokens dropped in blocks 3, 6 and 9; keep_rate 0.7, fuse_token."""
    return _built("evit_base_patch16_224", pretrained, kwargs, embed_dim=768, num_heads=12)


@register_model
def small_evit(pretrained: bool = False, **kwargs: Any) -> EViT:
    """EViT for 32×32 images: 4×4 patches, 8 blocks of width 128, tokens dropped in blocks 2, 4 and 6."""
    settings = {"patch_size": 4, "embed_dim": 128, "depth": 8, "num_heads": 4, "mlp_ratio": 2}
    return _built("small_evit", pretrained, kwargs, drop_layers=(2, 4, 6), **settings)


@register_model
def digits_evit(pretrained: bool = False, **kwargs: Any) -> EViT:
    """EViT for 8×8 grey images: 2×2 patches, 4 blocks of width 64, tokens dropped in blocks 1, 2 and 3."""
    settings = {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 2, "mlp_ratio": 2}
    model = _built("digits_evit", pretrained, kwargs, drop_layers=(1, 2, 3), **settings)
    if model.pos_embed is not None:
        nn.init.normal_(model.pos_embed, std=0.3)  # as in digits_vit: bare pixels drown timm's 0.02
    return model


def _built(name: str, pretrained: bool, given: dict[str, Any], **defaults: Any) -> EViT:
    if given.get("features_only"):
        raise InputError(f"{name} has no feature maps (features_only): tokens are missing in them")
    return built(EViT, name, pretrained, defaults, given)
