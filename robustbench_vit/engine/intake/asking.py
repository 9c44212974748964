"""How intake asks a model: without a trace, in fixed physical batches, with draws that can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.engine.float32 import ieee_float32
from robustbench_vit.engine.oracle import frozen, unwrap

PROBE = 16
"""Images in a batch that looks at behaviour; always full, so that matrix products take one path for all of them."""
CHUNK = 64
"""Most images in a batch that only counts correct answers."""


@contextmanager
def traceless(model: Any, device: torch.device) -> Iterator[None]:
    """While open, float32 is IEEE's and parameters are frozen; afterwards every generator is where it was."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [] if device.type == "cpu" else [device.index or 0]
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with torch.random.fork_rng(devices, device_type=kind), ieee_float32(), frozen(model):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def reseed(device: torch.device) -> None:
    """Sets the generators a model may draw from; not by torch.manual_seed, which reaches every device."""
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(0)
    elif device.type != "cpu":
        getattr(torch, device.type).manual_seed(0)


def answer(model: Any, x: Tensor) -> Any:
    """What the model returns for a copy of `x`, unwrapped and without a gradient; it need not be a tensor."""
    with torch.no_grad():
        return unwrap(model(x.clone()))


def logits(model: Any, x: Tensor) -> Tensor:
    """float64 (n, classes) on the CPU, of any number of images, asked in chunks padded to a multiple of the probe."""
    return torch.cat([answer(model, _padded(chunk))[: len(chunk)].cpu().double() for chunk in x.split(CHUNK)])


def spread_out(n: int, most: int) -> Tensor:
    """int64 (min(n, most),): positions evenly spaced over n samples, which may be sorted by class."""
    count = min(n, most)
    return torch.arange(count) * n // count


def filled(x: Tensor) -> Tensor:
    """A probe batch: `x` (at most a probe long) and, behind it, strangers to its images."""
    at = torch.arange(PROBE - len(x), device=x.device) % len(x)
    return torch.cat([x, strangers(x[at])])


def strangers(x: Tensor) -> Tensor:
    """Other images in [0, 1] of the same shape: mirrored negatives at half the contrast."""
    return (1 - x).flip(-1) / 2


def _padded(x: Tensor) -> Tensor:
    missing = -len(x) % PROBE
    return x if missing == 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
