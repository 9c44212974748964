"""An interval of a proportion that holds at all sample sizes at once: a run may stop when it is narrow enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from robustbench_vit.statistics.checks import check_share

HALVINGS = 50


@dataclass(frozen=True)
class ConfidenceSequence:
    """Intervals of a proportion that all hold at once with probability 1 - alpha; `take` gives the next.

    A mean m is excluded when the capital of bets against it reaches 1/alpha (Waudby-Smith and Ramdas 2024,
    arXiv:2010.09686).
    """

    alpha: float
    half_width: float = 0.02  # where the bets are at their best; the interval holds whatever it is
    successes: int = 0
    n: int = 0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_share("half_width", self.half_width)

    def take(self, success: bool) -> ConfidenceSequence:
        """The sequence after one more sample."""
        successes, n = self.successes + bool(success), self.n + 1
        low = lower_limit(successes, n, self.half_width, self.alpha / 2)
        high = 1 - lower_limit(n - successes, n, self.half_width, self.alpha / 2)
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        return replace(self, successes=successes, n=n, interval=(low, high) if low <= high else self.interval)

    def take_many(self, successes: Iterable[bool]) -> ConfidenceSequence:
        """The sequence after these samples, in their order."""
        later = self
        for success in successes:
            later = later.take(bool(success))
        return later


def lower_limit(successes: int, n: int, half_width: float, alpha: float) -> float:
    """The smallest mean that the bets on a higher one don't exclude at level alpha."""
    low, high = 0.0, successes / n
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        excluded = log_capital(successes, n, middle, half_width) >= -math.log(alpha)
        low, high = (middle, high) if excluded else (low, middle)
    return low


def log_capital(successes: int, n: int, mean: float, half_width: float) -> float:
    """Log capital of the bets that the true mean is higher than `mean`, in (0, 1).

    The capital is the likelihood ratio of `mean + step` and `mean`, averaged over steps; it falls as `mean` grows.
    """
    logs = [math.log(weight) + _log_ratio(successes, n, mean, step) for step, weight in _steps(half_width)]
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs)) if top > -math.inf else top


def _steps(half_width: float) -> list[tuple[float, float]]:
    """Steps with their shares of the capital: half of it for the width that is asked for."""
    others = [k for k in range(-4, 5) if k and half_width * 2.0**k < 1]
    return [(half_width, 0.5), *((half_width * 2.0**k, 0.5 / len(others)) for k in others)]


def _log_ratio(successes: int, n: int, mean: float, step: float) -> float:
    other = min(mean + step, 1.0)
    if mean <= 0:
        return math.inf if successes else n * math.log1p(-other)
    failures = n - successes
    if failures and other >= 1:
        return -math.inf
    return successes * math.log(other / mean) + (failures and failures * math.log((1 - other) / (1 - mean)))
