"""Refiner-ViT: Vision Transformers whose attention maps are refined by convolutions (arXiv:2106.03714)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.helpers import to_2tuple
from timm.layers.weight_init import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustbench_vit.errors import InputError
from robustbench_vit.models.author_keys.refiner_vit import from_authors
from robustbench_vit.models.builder import built
from robustbench_vit.models.refiner_attention import RefinerBlock, alternating

DENSE_WEIGHT = 0.5
"""What the dense head's strongest patch counts beside the class token."""
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "token": lambda x: x[:, 0],
    "avg": lambda x: x[:, 1:].mean(1),
    "": lambda x: x,
}
"""What of the tokens (row, 1 + patches, dim) the head sees: the class token, the patches' mean, all of them."""


class ConvStem(nn.Module):
    """Patches through three convolutions with BN and ReLU, the first with a stride, and one without overlap.

    (row, c, h, w) ↦ (row, patch, dim), patches in reading order. No biases but the last convolution's.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        widths: tuple[int, int, int],
        kernel: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.conv1 = ConvNormAct(in_chans, widths[0], kernel, stride)
        self.conv2 = ConvNormAct(widths[0], widths[1], 3)
        self.conv3 = ConvNormAct(widths[1], widths[2], 3)
        self.proj = nn.Conv2d(widths[2], embed_dim, patch_size // stride, patch_size // stride)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.img_size:
            given, wanted = (f"{h}×{w}" for h, w in (x.shape[-2:], self.img_size))
            raise InputError(f"the images are {given}, this model was built for {wanted}; see img_size=")
        return self.proj(self.conv3(self.conv2(self.conv1(x)))).flatten(2).transpose(1, 2)


class RefinerViT(nn.Module):
    """Stem, class token, learned positions, and blocks that alternate: one makes an attention map, one refines it.

    With `dense_head` the logits gain ½·max over patches of a second classifier, in train and eval mode alike (in
    train mode the authors' code returns both answers apart, for token labels). The maximum is not smooth: gradients
    reach a class only through its strongest patch, so attacks without gradients belong to an evaluation.
    Settings are timm's. Raises InputError for sizes that don't fit together.
    """

    from_authors = staticmethod(from_authors)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 12,
        mlp_ratio: float = 3.0,
        init_values: float = 1e-5,
        dense_head: bool = False,
        stem_widths: tuple[int, int, int] = (32, 64, 128),
        stem_kernel: int = 7,
        stem_stride: int = 2,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size: tuple[int, int] = to_2tuple(img_size)  # type: ignore[assignment]
        _check_sizes(size, patch_size, stem_stride, embed_dim, num_heads, depth)
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.in_chans, self.num_prefix_tokens, self.dense_head = in_chans, 1, dense_head
        self.grad_checkpointing = False
        self.patch_embed = ConvStem(size, patch_size, in_chans, embed_dim, stem_widths, stem_kernel, stem_stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        attentions = alternating(depth, embed_dim, num_heads, attn_drop_rate, proj_drop_rate)
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            RefinerBlock(embed_dim, attention, mlp_ratio, init_values, proj_drop_rate, drop_path)
            for attention, drop_path in zip(attentions, drop_paths, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init()

    def _init(self) -> None:
        """Starts the linear layers at a truncated normal of 0.02 with zero biases; convolutions are as torch made."""
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)

    def no_weight_decay(self) -> set[str]:
        """The parameters that weight decay leaves alone."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass instead of kept: less memory, the same gradients.

        In train mode the running statistics of a refining block then see every batch twice.
        """
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The head, with a dense head both; as timm's distilled models do."""
        return (self.head, self.aux_head) if self.dense_head else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for that many classes, 0 for none; the dense head likewise."""
        self.global_pool = _pool(self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        self.head = self._classifier(num_classes)
        if self.dense_head:
            self.aux_head = self._classifier(num_classes)

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        token = self.cls_token
        head = nn.Linear(self.embed_dim, num_classes, device=token.device, dtype=token.dtype)
        _init_linear(head)
        return head.train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised tokens (row, 1 + patches, dim), the class token first."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.pos_drop(x + self.pos_embed)
        handed: Tensor | None = None
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, handed = checkpoint(block, x, handed, use_reentrant=False)  # type: ignore[misc]
            else:
                x, handed = block(x, handed)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of forward_features' tokens; with `pre_logits` what the head would see."""
        pooled = self.head_drop(POOLS[self.global_pool](x))
        if pre_logits or self.num_classes == 0:
            return pooled
        if not (self.dense_head and self.global_pool):
            return self.head(pooled)
        return self.head(pooled) + DENSE_WEIGHT * self.aux_head(x[:, 1:]).amax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _init_linear(layer: nn.Linear) -> None:
    trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)


def _pool(name: str) -> str:
    if name not in POOLS:
        raise InputError(f"global_pool is 'token', 'avg' or '' (no pooling), got '{name}'")
    return name


def _check_sizes(
    img_size: tuple[int, int], patch_size: int, stem_stride: int, embed_dim: int, num_heads: int, depth: int
) -> None:
    """Raises InputError naming the first setting that doesn't fit."""
    if depth < 1:
        raise InputError(f"depth={depth}: a model has one block or more")
    if patch_size < 1 or stem_stride < 1 or patch_size % stem_stride:
        raise InputError(f"patch_size={patch_size} must be a multiple of the stem's stride, {stem_stride}")
    if min(img_size) < patch_size or any(side % patch_size for side in img_size):
        height, width = img_size
        raise InputError(f"img_size {height}×{width} must be a multiple of the patch size, {patch_size}, in both sides")
    if num_heads < 1 or embed_dim % num_heads:
        raise InputError(f"num_heads={num_heads} must divide the width, embed_dim={embed_dim}")


def _cfg(size: int, channels: int, classes: int, mean: float, std: float, crop_pct: float) -> dict[str, Any]:
    return {
        "num_classes": classes,
        "input_size": (channels, size, size),
        "fixed_input_size": True,
        "mean": (mean,) * channels,
        "std": (std,) * channels,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.conv1.conv",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {
        "refiner_vit_s": _cfg(224, 3, 1000, 0.5, 0.5, 0.9),
        "refiner_vit_m": _cfg(224, 3, 1000, 0.5, 0.5, 1.0),
        "refiner_vit_l": _cfg(224, 3, 1000, 0.5, 0.5, 1.0),
        "small_refiner_vit": _cfg(32, 3, 10, 0.0, 1.0, 1.0),
        "digits_refiner_vit": _cfg(8, 1, 10, 0.0, 1.0, 1.0),
    }
)


def _build(name: str, pretrained: bool, kwargs: dict[str, Any], **settings: Any) -> RefinerViT:
    """The model `name`; its features can't be taken block by block, as each needs the map of the one before."""
    if kwargs.get("features_only"):
        raise InputError(f"{name} has no setting 'features_only'; forward_features gives its last tokens")
    return built(RefinerViT, name, pretrained, settings, kwargs)


@register_model
def refiner_vit_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Refiner-ViT-S for 224×224 (arXiv:2106.03714): 16 blocks of width 384, 25 million parameters; `dense_head=`."""
    return _build("refiner_vit_s", pretrained, kwargs)


@register_model
def refiner_vit_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Refiner-ViT-M for 224×224 (arXiv:2106.03714): 32 blocks of width 420, 55 million parameters; `dense_head=`."""
    return _build("refiner_vit_m", pretrained, kwargs, embed_dim=420, depth=32)


@register_model
def refiner_vit_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Refiner-ViT-L for 224×224 (arXiv:2106.03714): 32 blocks of width 512, 81 million parameters; `dense_head=`."""
    return _build("refiner_vit_l", pretrained, kwargs, embed_dim=512, depth=32, num_heads=16)


@register_model
def small_refiner_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Refiner-ViT for 32×32 or 28×28 images: 4×4 patches, 6 blocks of width 128."""
    small = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "stem_widths": (16, 32, 64)}
    return _build("small_refiner_vit", pretrained, kwargs, **small, stem_kernel=3)


@register_model
def digits_refiner_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Refiner-ViT for 8×8 grey images: 2×2 patches, 4 blocks of width 48."""
    small = {"patch_size": 2, "embed_dim": 48, "depth": 4, "num_heads": 4, "stem_widths": (8, 16, 32)}
    return _build("digits_refiner_vit", pretrained, kwargs, **small, stem_kernel=3, stem_stride=1)
