"""Intervals of a proportion. Importing scipy.stats would double the time in which `rbvit table` answers."""

from __future__ import annotations

import math
from statistics import NormalDist

from robustbench_vit.statistics.checks import check_counts, check_share


def quantile(confidence: float) -> float:
    """The standard normal quantile z that leaves (1 - confidence) / 2 on either side."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion (Wilson 1927)."""
    check_counts(successes, n)
    check_share("confidence", confidence)
    z = quantile(confidence)
    share, weight = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the interval ends exactly there; rounding may leave a speck.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval (low, high) of a proportion (Clopper and Pearson 1934): it covers at least `confidence`."""
    from scipy.special import betaincinv

    check_counts(successes, n)
    check_share("confidence", confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


INTERVALS = {"wilson": wilson, "clopper-pearson": clopper_pearson}
"""The intervals of a proportion that a board may choose: (successes, n, confidence) -> (low, high)."""
