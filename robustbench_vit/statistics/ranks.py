"""Ranks of rows that were judged on the same samples, with a correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.statistics.checks import check_share
from robustbench_vit.statistics.paired import mcnemar_p


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted so that the chance of any false finding among them is bounded (Holm 1979)."""
    return _adjusted(np.asarray(p_values, dtype=float)).tolist()


def _adjusted(p: np.ndarray) -> np.ndarray:
    if not np.all((p >= 0) & (p <= 1)):  # NaN as well
        raise InputError("p values lie between 0 and 1")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def ranks(robust: np.ndarray, alpha: float) -> list[int]:
    """For each row 1 + the number of rows significantly above it; `robust`: bool (row, sample).

    A row is above another when more of its samples are robust and the exact McNemar test between the two, adjusted
    after Holm over all pairs of rows, has p < alpha. Equal ranks are therefore common, and gaps too.
    """
    robust = np.asarray(robust)
    check_share("alpha", alpha)
    if robust.ndim != 2 or robust.dtype != bool or (len(robust) and not robust.shape[1]):
        raise InputError(f"ranks come from a bool array (row, sample), got {robust.dtype} {robust.shape}")
    above = _wins(robust)
    one, two = np.triu_indices(len(robust), 1)
    significant = _adjusted(mcnemar_p(above[one, two], above[two, one])) < alpha
    rank = np.ones(len(robust), dtype=int)
    lower = np.where(above[one, two] > above[two, one], two, one)
    np.add.at(rank, lower[significant], 1)
    return rank.tolist()


def _wins(robust: np.ndarray) -> np.ndarray:
    """Int (row, row): samples that are robust in the first row and not in the second."""
    wide = robust.astype(np.float32)  # counts up to 2^24 are exact, and the product runs at full speed
    shared = wide @ wide.T
    return (np.diag(shared)[:, None] - shared).astype(np.int64)
