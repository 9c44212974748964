"""The keep rate over the epochs of training (EViT, arXiv:2202.07800); no torch here."""

from __future__ import annotations

import math

from robustbench_vit.errors import InputError


def check_keep_rate(keep_rate: float) -> float:
    """`keep_rate` as a float in (0, 1]; InputError for anything else."""
    number = isinstance(keep_rate, int | float) and not isinstance(keep_rate, bool)
    if not number or not 0 < keep_rate <= 1:
        raise InputError(f"the keep rate is a share of the image tokens in (0, 1], got {keep_rate!r}")
    return float(keep_rate)


def keep_rate_at(epoch: float, keep_rate: float, start: float = 10, length: float = 100) -> float:
    """The keep rate at `epoch` (epochs done, with fraction): 1 until `start`, then half a cosine down to `keep_rate`.

    r + (1 - r)·(1 + cos(π·(epoch - start) / length)) / 2, and r from `start + length` on. The defaults are the paper's,
    for 300 epochs. Raises InputError for a rate outside (0, 1] and for times below 0.
    """
    r = check_keep_rate(keep_rate)
    if not (epoch >= 0 and start >= 0 and length > 0):
        raise InputError(f"epoch ({epoch:g}) and start ({start:g}) are 0 or more, length ({length:g}) is above 0")
    done = min(max(epoch - start, 0.0) / length, 1.0)
    return r + (1 - r) * (1 + math.cos(math.pi * done)) / 2
