"""What samples must look like before anything is asked about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustbench_vit.errors import InputError


def check_samples(x: Any, y: Any) -> None:
    """Raises InputError unless x is a batch of images in [0, 1] (n, c, h, w) and y their labels (n,)."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise InputError(f"x and y are torch tensors, got {type(x).__name__} and {type(y).__name__}")
    if not x.is_floating_point():
        raise InputError(f"x has type {x.dtype}; expected floats in [0, 1] (for uint8 images: x.float() / 255)")
    if x.dim() != 4 or len(x) == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; expected (n, channels, height, width) with n ≥ 1")
    if y.shape != (len(x),):
        raise InputError(f"y has shape {tuple(y.shape)}; expected one label for each of the {len(x)} images")
    if y.is_floating_point() or y.dtype is torch.bool:
        raise InputError(f"y has type {y.dtype}; expected integer class numbers (int64)")
    if not bool(x.isfinite().all()):
        raise InputError("x holds NaN or infinite pixels")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        hint = (
            "divide by 255?"
            if high > 2 and low >= 0
            else "undo the normalisation and use rbv.normalised(model, mean, std)"
        )
        raise InputError(f"x ranges from {low:g} to {high:g}; expected pixels in [0, 1] ({hint})")
    if int(y.min()) < 0:
        raise InputError(f"y holds the label {int(y.min())}; classes are numbered from 0")
