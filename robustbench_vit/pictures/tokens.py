"""Which of a Vision Transformer's tokens are patches, where they lie in the image, and which give the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Tokens:
    """The layout of a sequence of tokens: prefix (class, registers, …), then the patches row by row."""

    prefix: int
    grid: tuple[int, int]  # rows, columns
    asking: slice  # the tokens that the answer is read from
    whose: str  # attention of these, in words


def tokens_of(model: nn.Module, n: int, size: tuple[int, int]) -> Tokens | None:
    """The layout of n tokens of images of that height and width, or None when they are no grid behind a prefix."""
    host = _host(model)
    prefix = _prefix(host)
    grid = _grid(host, n - prefix, size)
    if grid is None:
        return None
    if _classifies_by_token(host):
        distilled = getattr(host, "dist_token", None) is not None
        whose = "of the class and distillation tokens" if distilled else "of the class token"
        return Tokens(prefix, grid, slice(2 if distilled else 1), whose)
    everyone = prefix == 0 or bool(getattr(host, "pool_include_prefix", False))
    whose = "of all tokens, on average," if everyone and prefix else "of all patches, on average,"
    return Tokens(prefix, grid, slice(0 if everyone else prefix, None), whose)


def _host(model: nn.Module) -> Any:
    """The outermost module that knows of tokens; wrappers (a normalisation) don't."""
    known = (m for m in model.modules() if hasattr(m, "num_prefix_tokens") or hasattr(m, "cls_token"))
    return next(known, model)


def _prefix(host: Any) -> int:
    counted = getattr(host, "num_prefix_tokens", None)
    return int(counted) if counted is not None else int(getattr(host, "cls_token", None) is not None)


def _classifies_by_token(host: Any) -> bool:
    if getattr(host, "cls_token", None) is None:
        return False
    return getattr(host, "global_pool", "token") == "token"


def _grid(host: Any, patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The patch embedding's grid, else the one with square patches."""
    held = getattr(getattr(host, "patch_embed", None), "grid_size", None)
    if held is not None and math.prod(held) == patches:
        return int(held[0]), int(held[1])
    height, width = size
    rows = round(math.sqrt(max(patches, 0) * height / width))
    columns = patches // rows if rows else 0
    square = rows * columns == patches and rows * width == columns * height
    return (rows, columns) if rows and square else None
