"""Blocks of Refiner: an attention map is made, handed on, and refined by convolutions over it (arXiv:2106.03714)."""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn

EXPANSION = 3
"""Channels inside distributed local attention, per head."""
SHRINK = 0.5
"""What the input of a block's two branches is multiplied by; their outputs are divided by it."""


class DistributedLocalAttention(nn.Module):
    """An attention map plus what convolutions make of it; heads are channels, the map is an image of tokens × tokens.

    1×1 convolution to 3 channels per head, a 3×3 one within each channel, and 1×1 back, every one with batch
    normalisation, the first two with ReLU6 (section 3.2 of the paper). ReLU6 has no gradient outside (0, 6).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        width = EXPANSION * heads
        self.expand = ConvNormAct(heads, width, 1, act_layer=nn.ReLU6)
        self.local = ConvNormAct(width, width, 3, groups=width, act_layer=nn.ReLU6)
        self.reduce = ConvNormAct(width, heads, 1, apply_act=False)

    def forward(self, attention: Tensor) -> Tensor:  # (row, head, token, token)
        return attention + self.reduce(self.local(self.expand(attention)))


class HandingAttention(nn.Module):
    """Self-attention with the map P = softmax(q·k / √d) + handed / √d, which it applies and hands on.

    Without a handed map its rows sum to 1, with one to more. timm's Attention has no place for the handed map.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, handed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output (row, token, dim) and the map (row, head, token, token)."""
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        if handed is not None:
            attention = attention + self.scale * handed
        attention = self.attn_drop(attention)
        return self.proj_drop(self.proj(_merged(attention @ v))), attention


class RefiningAttention(nn.Module):
    """Attention that makes no map of its own: BN(DLA(handed)) / √d is applied, the handed map goes on unrefined.

    What is applied is no distribution: its rows don't sum to 1 and it has negative entries. Batch normalisation ties
    the rows of a batch together in train mode; under attack a model is in eval mode, where it is an affine map.
    """

    def __init__(self, dim: int, num_heads: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.v = nn.Linear(dim, dim)
        self.refine = DistributedLocalAttention(num_heads)
        self.norm = nn.BatchNorm2d(num_heads)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def refined(self, handed: Tensor) -> Tensor:
        """The map that is applied, of the handed one's shape (row, head, token, token)."""
        return self.norm(self.refine(handed)) * self.scale

    def forward(self, x: Tensor, handed: Tensor) -> tuple[Tensor, Tensor]:
        """The output (row, token, dim) and the map that was handed in."""
        n, tokens, _ = x.shape
        v = self.v(x).reshape(n, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        return self.proj_drop(self.proj(_merged(self.refined(handed) @ v))), handed


class RefinerBlock(nn.Module):
    """x += 2·Attention(LN(x/2)), then x += 2·γ·MLP(LN(x/2)), with γ per channel; the attention's map goes on."""

    def __init__(
        self,
        dim: int,
        attention: HandingAttention | RefiningAttention,
        mlp_ratio: float,
        init_values: float,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.ls2 = LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, handed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens (row, token, dim) and the map for the next block (row, head, token, token)."""
        out, attention = self.attn(self.norm1(x * SHRINK), handed)
        x = x + self.drop_path1(out) / SHRINK
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x * SHRINK)))) / SHRINK, attention


def alternating(
    depth: int, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0
) -> Iterator[HandingAttention | RefiningAttention]:
    """The attentions of `depth` blocks: one makes a map, the next refines it, and so on."""
    for i in range(depth):
        if i % 2 == 0:
            yield HandingAttention(dim, num_heads, attn_drop, proj_drop)
        else:
            yield RefiningAttention(dim, num_heads, proj_drop)


def _merged(x: Tensor) -> Tensor:
    """(row, head, token, channel) as (row, token, dim)."""
    return x.transpose(1, 2).flatten(2)
