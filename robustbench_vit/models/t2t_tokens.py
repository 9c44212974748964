"""The tokenizer of T2T-ViT: tokens are split softly and attended to, layer by layer (arXiv:2101.11986, section 3.1).

A soft split unfolds a map into overlapping patches; a token-to-token layer attends over them and gives `token_dim`
channels per token, which are laid out as the next, smaller map. Two such layers, a last soft split, a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.helpers import to_2tuple
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from robustbench_vit.errors import InputError

EPS = 1e-5
"""Of every layer normalisation."""
DROP = 0.1
"""Dropout of the performer layers, in training."""

Norm = partial(LayerNorm, eps=EPS)


class Split(NamedTuple):
    """A soft split: the patches' side, their distance and the zero padding, in positions of the map."""

    kernel: int
    stride: int
    padding: int


IMAGENET_SPLITS = (Split(7, 4, 2), Split(3, 2, 1), Split(3, 2, 1))
"""224×224 → 56×56 → 28×28 → 14×14."""


class PerformerLayer(nn.Module):
    """Tokens (n, t, inputs) → (n, t, outputs) by attention with random features: time and memory are linear in t.

    φ(z) = exp(w z - |z|²/2) / √m with m = outputs / 2 frozen features w (m, outputs), a parameter without gradient. Its
    rows are orthogonal, of norm √m: shorter than a Gaussian's √outputs, so the kernel is the authors', not softmax's.
    The values are the residual, as tokens change their width here. Where |z| passes about 20, φ underflows in float32,
    and the gradient through the attention is 0.
    """

    def __init__(self, inputs: int, outputs: int, **dd: Any) -> None:
        super().__init__()
        features = outputs // 2
        self.norm1 = Norm(inputs, **dd)
        self.kqv = nn.Linear(inputs, 3 * outputs, **dd)
        self.proj = nn.Linear(outputs, outputs, **dd)
        self.proj_drop = nn.Dropout(DROP)
        self.norm2 = Norm(outputs, **dd)
        self.mlp = Mlp(outputs, outputs, drop=(0.0, DROP), **dd)
        self.w = nn.Parameter(torch.empty(features, outputs, **dd), requires_grad=False)
        nn.init.orthogonal_(self.w, gain=math.sqrt(features))

    def forward(self, x: Tensor) -> Tensor:
        v, attended = self.attend(self.norm1(x))
        x = v + self.proj_drop(self.proj(attended))
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their averages, both (n, t, outputs): y_t = φ(q_t)·Σ φ(k_s) v_sᵀ / (φ(q_t)·Σ φ(k_s) + 1e-8)."""
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        k, q = self.random_features(k), self.random_features(q)
        total = q @ k.sum(1, keepdim=True).transpose(1, 2)  # (n, t, 1)
        return v, (q @ (k.transpose(1, 2) @ v)) / (total + 1e-8)

    def random_features(self, z: Tensor) -> Tensor:
        """φ(z): (n, t, outputs) → (n, t, m), all positive."""
        half_square = z.square().sum(-1, keepdim=True) / 2
        return torch.exp(F.linear(z, self.w) - half_square) / math.sqrt(len(self.w))


class TransformerLayer(nn.Module):
    """Tokens (n, t, inputs) → (n, t, outputs) by softmax attention with one head.

    The scale is inputs^-½, that of the width before the projection (the authors'). The values are the residual.
    """

    def __init__(self, inputs: int, outputs: int, **dd: Any) -> None:
        super().__init__()
        self.scale = inputs**-0.5
        self.norm1 = Norm(inputs, **dd)
        self.qkv = nn.Linear(inputs, 3 * outputs, bias=False, **dd)
        self.proj = nn.Linear(outputs, outputs, **dd)
        self.norm2 = Norm(outputs, **dd)
        self.mlp = Mlp(outputs, outputs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unsqueeze(1).chunk(3, dim=-1)  # (n, 1 head, t, outputs)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = (v + self.proj(attended)).squeeze(1)
        return x + self.mlp(self.norm2(x))


LAYERS: dict[str, Callable[..., nn.Module]] = {"performer": PerformerLayer, "transformer": TransformerLayer}
"""Token-to-token layers by name."""


class T2TTokens(nn.Module):
    """Images (n, c, h, w) → tokens (n, h·w / stride², embed_dim); takes the place of timm's `PatchEmbed`.

    `patch_size` is the product of the splits' strides, and image sizes must be multiples of it. Everything here runs in
    the precision of the parameters, under autocast too: random features underflow in float16 and lose most of their
    digits in bfloat16. With `output_fmt="NHWC"` the tokens stay laid out as a map (n, h, w, embed_dim).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        layer: str,
        token_dim: int,
        splits: Sequence[Split] = IMAGENET_SPLITS,
        gain: float | None = None,
        strict_img_size: bool = True,
        output_fmt: str | None = None,
        device: Any = None,
        dtype: Any = None,
        **_: Any,  # timm's PatchEmbed has settings (bias, padding) that mean nothing here
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.splits, self.in_chans, self.strict_img_size = tuple(splits), in_chans, strict_img_size
        self.patch_size = _pair(patch_size)
        self.as_map = output_fmt == "NHWC"
        widths = [in_chans * splits[0].kernel ** 2, *(token_dim * split.kernel**2 for split in splits[1:])]
        self.layers = nn.ModuleList(LAYERS[layer](width, token_dim, **dd) for width in widths[:-1])
        self.proj = nn.Linear(widths[-1], embed_dim, **dd)
        self.gain = gain
        self.init_weights()
        self.set_input_size(img_size)

    def init_weights(self) -> None:
        """Xavier initialisation of the linear layers' weights where a gain was given; timm calls this after its own.

        timm's deviation of 0.02 makes tokens that drown in the table of positions, and small models start slowly.
        """
        for layer in self.modules():
            if self.gain is not None and isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, self.gain)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Another image size; the patch size follows from the splits and cannot be changed."""
        if patch_size is not None and _pair(patch_size) != self.patch_size:
            raise InputError(f"the tokenizer's stride is {self.patch_size[0]}; its patch_size cannot be {patch_size}")
        if img_size is not None:
            self.img_size = _pair(img_size)
        self.grid_size = self._grid(*self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token along a side."""
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The map of tokens of images of that size."""
        return self._grid(*img_size)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        with _without_autocast(x.device.type):
            x, size = x.to(self.proj.weight.dtype), (x.shape[2], x.shape[3])
            for split, layer in zip(self.splits, self.layers, strict=False):
                tokens = layer(soft_split(x, split))
                size = tuple(side // split.stride for side in size)
                x = tokens.transpose(1, 2).unflatten(2, size)
            tokens = self.proj(soft_split(x, self.splits[-1]))
        last = self.splits[-1].stride
        return tokens.unflatten(1, (size[0] // last, size[1] // last)) if self.as_map else tokens

    def _check(self, x: Tensor) -> None:
        if x.shape[1] != self.in_chans:
            raise InputError(f"the images have {x.shape[1]} channels, the model takes {self.in_chans}")
        given = (x.shape[2], x.shape[3])
        if self.strict_img_size and given != self.img_size:
            raise InputError(f"the images are {_size(given)}, the model takes {_size(self.img_size)}")
        self._grid(*given)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        stride = self.patch_size[0]
        if height < stride or width < stride or height % stride or width % stride:
            raise InputError(f"img_size {_size((height, width))} is not a multiple of the tokenizer's stride {stride}")
        return height // stride, width // stride


def soft_split(x: Tensor, split: Split) -> Tensor:
    """Overlapping patches of a map (n, c, h, w) as tokens (n, h·w / stride², c·kernel²), ordered (c, kh, kw) inside."""
    patches = F.unfold(x, split.kernel, padding=split.padding, stride=split.stride)
    return patches.transpose(1, 2)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


def _pair(size: Any) -> tuple[int, int]:
    height, width = to_2tuple(size)
    return int(height), int(width)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
