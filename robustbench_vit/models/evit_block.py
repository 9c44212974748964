"""A ViT block that drops the image tokens its class token looks at least (EViT, arXiv:2202.07800), and what it saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from robustbench_vit.errors import InputError

FUSED = -1
"""The patch number of a fused token, which is a sum over patches."""


@dataclass(frozen=True)
class Attended:
    """What one dropping block saw in one forward pass; token i is the i-th one after the prefix (class token, …)."""

    block: int  # number of the block, from 0
    a: Tensor  # (n, tokens) the class token's attention, mean over heads; differentiable
    patches: Tensor  # int64 (n, tokens) each token's patch in row-major order, FUSED for a fused one
    kept: Tensor  # int64 (n, k) the tokens that stayed, ascending

    @property
    def kept_patches(self) -> Tensor:
        """int64 (n, k): the patches that stayed, FUSED for a fused token of an earlier block."""
        return self.patches.gather(1, self.kept)

    def first(self, n: int) -> Attended:
        """The same of the first n images."""
        return Attended(self.block, self.a[:n], self.patches[:n], self.kept[:n])


class Recorder:
    """Collects what dropping blocks see, and follows every token back to its patch."""

    def __init__(self) -> None:
        self.seen: list[Attended] = []
        self._patches: Tensor | None = None  # of the tokens that enter the next dropping block

    def add(self, block: DroppingBlock, a: Tensor, kept: Tensor, fused: bool) -> None:
        if block.location == 0 or self._patches is None:
            self._patches = torch.arange(a.shape[1], device=a.device).expand(a.shape)
        seen = Attended(block.index, a, self._patches, kept)
        self.seen.append(seen)
        one_more = (0, 1) if fused else (0, 0)
        self._patches = F.pad(seen.kept_patches, one_more, value=FUSED)


class DroppingBlock(nn.Module):
    """timm's pre-norm block, with the same parameters; the FFN runs on the most attended tokens only.

    Attention and its residual are computed for all tokens; then ⌈keep_rate · tokens⌉ image tokens stay. The others are
    dropped or, with `fuse_token`, become one token Σ a_i·x_i at the end. Nothing happens when all of them stay.
    """

    def __init__(
        self, block: Block, index: int, location: int, prefix: int, keep_rate: float, fuse_token: bool
    ) -> None:
        super().__init__()
        self.index = index
        self.location = location  # 0 for the first dropping block of a model, then 1, …
        self.prefix = prefix  # tokens in front that always stay; the class token is the first of them
        self.keep_rate = keep_rate
        self.fuse_token = fuse_token
        self.recorder: Recorder | None = None
        self.norm1, self.attn, self.ls1, self.drop_path1 = block.norm1, block.attn, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """(n, prefix + tokens, width) to (n, prefix + fewer tokens, width)."""
        y, a = attend(self.attn, self.norm1(x), self.prefix)  # type: ignore[arg-type]
        x = x + self.drop_path1(self.ls1(y))
        x = self._drop(x, a)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _drop(self, x: Tensor, a: Tensor) -> Tensor:
        tokens = a.shape[1]
        keep = tokens_kept(self.keep_rate, tokens)
        if keep < tokens:
            x, kept = keep_most_attended(x, a, keep, self.prefix, self.fuse_token)
        else:
            kept = torch.arange(tokens, device=a.device).expand(a.shape)
        if self.recorder is not None:
            self.recorder.add(self, a, kept, self.fuse_token and keep < tokens)
        return x

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate:g}, fuse_token={self.fuse_token}"


def tokens_kept(keep_rate: float, tokens: int) -> int:
    """⌈keep_rate · tokens⌉, where a product above an integer by rounding alone counts as that integer (.55 · 100)."""
    return math.ceil(keep_rate * tokens - 1e-9)


def keep_most_attended(x: Tensor, a: Tensor, keep: int, prefix: int, fuse: bool) -> tuple[Tensor, Tensor]:
    """The tokens (n, prefix + keep (+ 1), width) that stay, in their order, and which ones: int64 (n, keep), ascending.

    `x` is (n, prefix + tokens, width), `a` (n, tokens). Of equally attended tokens the first ones stay. With `fuse` the
    others are summed, weighted by `a` and not divided by its sum (as the paper's code does it), into a last token.
    """
    order = a.argsort(dim=1, descending=True, stable=True)
    kept = order[:, :keep].sort(dim=1).values
    image = x[:, prefix:]
    parts = [x[:, :prefix], _take(image, kept)]
    if fuse:
        others = order[:, keep:]
        weighted = a.gather(1, others).unsqueeze(-1) * _take(image, others)
        parts.append(weighted.sum(dim=1, keepdim=True).to(x.dtype))
    return torch.cat(parts, dim=1), kept


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    return torch.take_along_dim(tokens, index.unsqueeze(-1), dim=1)


def attend(attn: Attention, x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """`attn(x)`, and the class token's attention to the tokens after the prefix (n, tokens), mean over heads.

    timm's fused attention stays in use: of its weights only the class token's row is computed beside it.
    """
    n, tokens, _ = x.shape
    q, k, v = attn.qkv(x).reshape(n, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if attn.fused_attn:
        row = (q[:, :, :1] * attn.scale @ k.mT).softmax(dim=-1)
        dropout = attn.attn_drop.p if attn.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        weights = (q * attn.scale @ k.mT).softmax(dim=-1)
        row = weights[:, :, :1]
        y = attn.attn_drop(weights) @ v
    return _project(attn, x, y.transpose(1, 2).flatten(2)), row[..., prefix:].mean(dim=(1, 2))


def _project(attn: Attention, x: Tensor, y: Tensor) -> Tensor:
    """What follows the weighted sum of values; norm and gate are options of newer versions of timm."""
    y = attn.norm(y) if hasattr(attn, "norm") else y
    gate = getattr(attn, "gate", None)
    y = y if gate is None else y * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))


def dropping_blocks(model: nn.Module) -> list[DroppingBlock]:
    """The dropping blocks anywhere in `model` (which may wrap the ViT); InputError when there are none."""
    blocks = [module for module in model.modules() if isinstance(module, DroppingBlock)]
    if not blocks:
        raise InputError(f"this {type(model).__name__} has no block that drops tokens; turn a ViT into one with evit()")
    return blocks


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Attended]]:
    """A list that fills while the block runs: what each dropping block of `model` saw, in the order of its passes.

    Works through anything the ViT is wrapped in (normalisation, averaging over draws). Nothing is left behind in the
    model. InputError when no block of it drops tokens.
    """
    blocks = dropping_blocks(model)
    before = [block.recorder for block in blocks]
    recorder = Recorder()
    try:
        for block in blocks:
            block.recorder = recorder
        yield recorder.seen
    finally:
        for block, previous in zip(blocks, before, strict=True):
            block.recorder = previous


def forward_attention(model: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Attended, ...]]:
    """`model(x)` and what its dropping blocks saw on the way, differentiably.

    A loss on `Attended.a` reaches the image, which the choice of tokens by itself does not. Raises InputError for a
    model whose forward pass went through no dropping block.
    """
    with recording(model) as seen:
        logits = model(x)
    if not seen:
        raise InputError(f"the forward pass of this {type(model).__name__} went through none of its dropping blocks")
    return logits, tuple(seen)
