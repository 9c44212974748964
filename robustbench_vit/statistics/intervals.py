"""Intervals on counts of samples. Importing scipy.stats would double the time in which `rbvit table` answers."""

from __future__ import annotations

import math
from statistics import NormalDist

from robustbench_vit.errors import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no proportion")
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the interval ends exactly there; rounding may leave a speck.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


INTERVALS = {"wilson": wilson}
"""The intervals of a proportion that a board may choose: (successes, n, confidence) -> (low, high)."""
