"""Looks at a model before any attack: what would make every number wrong is refused here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import InputError, ModelError
from robustbench_vit.records import Finding

PROBE = 16
"""Images asked about."""
SUM_TOLERANCE = 1e-3
"""How close to 1 every row must sum for outputs in [0, 1] to be taken for probabilities."""


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


def intake(model: Any, x: Tensor, y: Tensor) -> list[Finding]:
    """What was looked at and found in order; raises ModelError for what must be refused. Changes nothing."""
    return list(_checks(model, x[:PROBE], y))


def _checks(model: Any, x: Tensor, y: Tensor) -> Iterator[Finding]:
    yield _eval_mode(model)
    output = _answer(model, x)
    yield _is_logits(output, len(x))
    yield _finite(output)
    yield _classes(output, y)
    yield _not_probabilities(output)


def _eval_mode(model: Any) -> Finding:
    if isinstance(model, nn.Module):
        training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
        if training:
            shown = ", ".join(training[:3]) + (", …" if len(training) > 3 else "")
            raise ModelError(
                f"the model is in train mode ({shown}): dropout and batch statistics would be on; call model.eval()"
            )
    return Finding("eval-mode", "pass", "no module is in train mode")


def _answer(model: Any, x: Tensor) -> Any:
    try:
        with torch.no_grad():
            return unwrap(model(x))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot take images of shape {tuple(x.shape[1:])} (channels, height, width): {first}"
        ) from error


def _is_logits(output: Any, n: int) -> Finding:
    if isinstance(output, (tuple, list, dict)):
        raise ModelError(
            f"the model returns a {type(output).__name__}; expected logits (n, classes). Wrap it: lambda x: model(x)[0]"
        )
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != n:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"the model returns {got} for {n} images; expected logits of shape ({n}, classes)")
    if not output.is_floating_point():
        raise ModelError(f"the model returns {output.dtype}; expected floating-point logits, not decisions")
    return Finding("logits", "pass", f"logits for {output.shape[1]} classes")


def _finite(output: Tensor) -> Finding:
    if not bool(output.isfinite().all()):
        raise ModelError("the model returns NaN or infinite logits on clean images")
    return Finding("finite", "pass", "finite logits")


def _classes(output: Tensor, y: Tensor) -> Finding:
    classes, largest = output.shape[1], int(y.max())
    if classes < 2:
        raise ModelError("the model has one output; expected logits for at least two classes")
    if largest >= classes:
        raise ModelError(
            f"the model has {classes} classes, but the labels go up to {largest}: wrong model or wrong data"
        )
    return Finding("classes", "pass", f"labels 0..{largest} fit {classes} classes")


def _not_probabilities(output: Tensor) -> Finding:
    in_range = bool(((output >= 0) & (output <= 1)).all())
    if in_range and bool(((output.sum(1) - 1).abs() < SUM_TOLERANCE).all()):
        raise ModelError(
            "the model returns probabilities; gradients of saturated ones vanish. Return logits: drop the softmax"
        )
    return Finding("not-probabilities", "pass", "outputs are not probabilities")
