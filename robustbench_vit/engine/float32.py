"""What float32 means in matrix products and convolutions: IEEE's arithmetic, or factors rounded to TF32 first.

PyTorch has several switches for it, which a user may have set to anything: one for each operation of a backend
(`fp32_precision`, torch 2.9 and later), and two older ones that stand for several of those:
`set_float32_matmul_precision`, by which a CPU may multiply in bfloat16, and `cudnn.allow_tf32`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_OPERATIONS = {"cuda": ("matmul",), "cudnn": ("conv", "rnn"), "mkldnn": ("matmul", "conv", "rnn")}


@contextmanager
def ieee_float32() -> Iterator[None]:
    """While open, float32 is IEEE's on every device, whatever the user chose; their choice comes back."""
    with _choice_kept():
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for operation in _operations():
            operation.fp32_precision = "ieee"
        yield


@contextmanager
def tf32_float32() -> Iterator[None]:
    """While open, CUDA rounds the factors of float32 products to TF32 (10 bits of mantissa, sums in float32)."""
    with _choice_kept():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        yield


@contextmanager
def _choice_kept() -> Iterator[None]:
    matmul = _readable(torch.get_float32_matmul_precision)
    cudnn = _readable(lambda: torch.backends.cudnn.allow_tf32)
    each = [(operation, operation.fp32_precision) for operation in _operations()]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul or "highest")  # torch's default
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for operation, precision in each:
            operation.fp32_precision = precision


def _readable(switch: Callable[[], Any]) -> Any | None:
    """The value of an older switch; None where torch won't tell, because newer ones have been used."""
    try:
        return switch()
    except RuntimeError:
        return None


def _operations() -> list[Any]:
    """Those of this version of torch that have a switch of their own."""
    pairs = [(getattr(torch.backends, backend), name) for backend, names in _OPERATIONS.items() for name in names]
    found = [getattr(backend, name, None) for backend, name in pairs]
    return [operation for operation in found if hasattr(operation, "fp32_precision")]
