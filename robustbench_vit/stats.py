"""Intervals and tests on counts of samples; scipy does the sums."""

from __future__ import annotations

from robustbench_vit.errors import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no proportion")
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1, got {confidence}")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
