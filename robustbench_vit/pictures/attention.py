"""Where a Vision Transformer looks: the attention of its last block, read without changing the model for good.

Fused attention computes no weights, so hooks on it see nothing. While a map is read, timm's attention modules compute
it openly (`fused_attn = False`), and what enters their `attn_drop` is the map after the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.models.xcit import XCA
from torch import Tensor, nn

from robustbench_vit.engine.float32 import ieee_float32
from robustbench_vit.errors import ModelError
from robustbench_vit.models.evit_block import FUSED, Attended, DroppingBlock, forward_attention
from robustbench_vit.pictures.tokens import Tokens, tokens_of

BATCH = 8
"""Images asked about at a time; maps of large models are large."""
WINDOWS = "its attention stays within windows of an image"


@dataclass(frozen=True)
class Attention:
    """How attention spreads over the patches of each image, and which of them a model that drops tokens keeps."""

    shares: Tensor  # (n, rows, columns), each image's sum to 1
    whose: str  # in words
    where: str  # the module it was read from
    passed: Tensor | None = None  # int64 (n, rows, columns): how many of the dropping blocks left the patch in
    places: int = 0  # dropping blocks


@dataclass(frozen=True)
class NoAttention:
    """Why a model's attention isn't shown, in words."""

    reason: str


@dataclass
class _Seen:
    """What the hooks of one batch noticed."""

    tokens: dict[str, int] = field(default_factory=dict)  # that entered an attention module
    shares: dict[str, tuple[Tokens, Tensor]] = field(default_factory=dict)  # of maps that could be read
    refused: dict[str, str] = field(default_factory=dict)  # why a map could not


def read_attention(model: Any, x: Tensor) -> Attention | NoAttention:
    """The attention of the last block that has a map from every token to every token, for images x (n, c, h, w).

    The mean over heads; of the class token, else the mean over all patches (or tokens). Only the patches' weights are
    kept, scaled to sum 1. Of a model that drops tokens it is the first dropping block's, which still sees all patches.
    Models without such maps (CNNs, windows, cross-covariance) give the reason. Raises ModelError when attention modules
    are there and none of them let its map be seen.
    """
    if isinstance(model, nn.Module) and any(isinstance(module, DroppingBlock) for module in model.modules()):
        return _dropping(model, x)
    found = attention_modules(model)
    if not found:
        return NoAttention(f"{_name(model)} has no attention modules of timm's kind")
    if any(isinstance(module, XCA) for module in found.values()):
        return NoAttention(f"{_name(model)} attends between channels (cross-covariance), not between patches")
    batches = [_read(model, found, chunk) for chunk in x.split(BATCH)]
    first = batches[0]
    if WINDOWS in first.refused.values() or not first.shares:
        reasons = list(first.refused.values())
        return NoAttention(f"{_name(model)}: {WINDOWS if WINDOWS in reasons else reasons[-1]}")
    last = list(first.shares)[-1]
    layout, _ = first.shares[last]
    shares = torch.cat([seen.shares[last][1] for seen in batches])
    return Attention(shares.unflatten(1, layout.grid), layout.whose, last)


def attention_modules(model: Any) -> dict[str, nn.Module]:
    """Modules by name that hand their attention map to a submodule `attn_drop`, as timm's do."""
    if not isinstance(model, nn.Module):
        return {}
    return {name: m for name, m in model.named_modules() if isinstance(getattr(m, "attn_drop", None), nn.Module)}


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """While open, attention is computed openly; afterwards each module does as it did."""
    fused = [(m, m.fused_attn) for m in attention_modules(model).values() if hasattr(m, "fused_attn")]
    try:
        for module, _ in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module, was in fused:
            module.fused_attn = was


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While open, the model is in eval mode; afterwards each of its modules is in its own."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _read(model: nn.Module, found: dict[str, nn.Module], x: Tensor) -> _Seen:
    """One batch through the model with hooks; raises ModelError when none of them fired."""
    seen = _Seen()
    with ExitStack() as stack, evaluating(model), unfused(model), torch.no_grad(), ieee_float32():
        for name, module in found.items():
            noted = module.register_forward_pre_hook(partial(_note_tokens, seen, name))
            mapped = module.attn_drop.register_forward_pre_hook(partial(_note_map, seen, name, model, x))  # type: ignore
            stack.callback(noted.remove)
            stack.callback(mapped.remove)
        model(x)
    if not seen.shares and not seen.refused:
        raise ModelError(
            f"the attention of {_name(model)} could not be read: it has {len(found)} attention modules"
            f" ({', '.join(list(found)[:3])}{', …' if len(found) > 3 else ''}) and none handed its map to `attn_drop`"
            " (a fused kernel?); ask for pictures without attention"
        )
    return seen


def _note_tokens(seen: _Seen, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 3:
        seen.tokens[name] = inputs[0].shape[1]


def _note_map(seen: _Seen, name: str, model: nn.Module, x: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Keeps the patches' shares of a map (n, heads, token, token), or why that isn't one."""
    weights: Tensor = inputs[0]
    n = len(x)
    if len(weights) != n and len(weights) % n == 0:
        seen.refused[name] = WINDOWS
        return
    if weights.dim() != 4 or weights.shape[-2:] != (seen.tokens.get(name), seen.tokens.get(name)):
        seen.refused[name] = "its attention isn't one from every token to every token"
        return
    if weights.min() < 0:
        seen.refused[name] = "its attention weights are no shares (some are negative)"
        return
    layout = tokens_of(model, weights.shape[-1], (x.shape[-2], x.shape[-1]))
    if layout is None:
        seen.refused[name] = f"its {weights.shape[-1]} tokens are no grid of patches"
        return
    received = weights.mean(1)[:, layout.asking].mean(1)[:, layout.prefix :]
    seen.shares[name] = layout, _shares(received)


def _shares(received: Tensor) -> Tensor:
    return received / received.sum(1, keepdim=True).clamp_min(torch.finfo(received.dtype).tiny)


def _dropping(model: nn.Module, x: Tensor) -> Attention | NoAttention:
    """The class token's attention in the first dropping block, and how far each patch gets."""
    parts = []
    with evaluating(model), torch.no_grad(), ieee_float32():
        for chunk in x.split(BATCH):
            parts.append(forward_attention(model, chunk)[1])
    first = parts[0][0]
    prefix = next(module.prefix for module in model.modules() if isinstance(module, DroppingBlock))
    layout = tokens_of(model, prefix + first.a.shape[1], (x.shape[-2], x.shape[-1]))
    if layout is None:
        return NoAttention(f"{_name(model)}: its {first.a.shape[1]} patches are no grid")
    shares = torch.cat([_shares(seen[0].a) for seen in parts])
    passed = torch.cat([_passed(seen) for seen in parts])
    dropped = bool((passed < len(parts[0])).any())
    return Attention(
        shares.unflatten(1, layout.grid),
        "of the class token",
        f"block {first.block}, the first that drops tokens",
        passed.unflatten(1, layout.grid) if dropped else None,
        len(parts[0]),
    )


def _passed(seen: Sequence[Attended]) -> Tensor:
    """int64 (n, patches): in how many of the blocks the patch stayed."""
    counts = torch.zeros_like(seen[0].patches)
    for attended in seen:
        patches = attended.kept_patches
        counts.scatter_add_(1, patches.clamp_min(0), (patches != FUSED).long())
    return counts


def _name(model: Any) -> str:
    return type(getattr(model, "model", model)).__name__
