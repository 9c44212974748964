"""An interval of a proportion that holds at all sample sizes at once: a run may stop when it is narrow enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from robustbench_vit.statistics.checks import check_share

HALVINGS = 40
TUNED = 0.8
"""The share of the capital whose bets are at their best when the interval is about as wide as asked for."""
SCALES = tuple(2.0**k for k in range(-4, 5) if k)
"""The other bets, for narrower and wider intervals, as multiples of the half-width asked for."""


@dataclass(frozen=True)
class ConfidenceSequence:
    """Intervals of a proportion that all hold at once with probability 1 - alpha; `take` gives the next one.

    A mean is excluded for good as soon as bets that the true one is higher, or lower, have made 2/alpha out of 1
    (Waudby-Smith and Ramdas 2024, arXiv:2010.09686; with constant bets the capital is a likelihood ratio: Wald 1945,
    Robbins 1970). The interval holds whatever half_width is, but needs fewest samples to become that narrow.
    """

    alpha: float
    half_width: float = 0.02
    successes: int = 0
    n: int = 0
    interval: tuple[float, float] = (0.0, 1.0)  # of all sample sizes up to n

    def __post_init__(self) -> None:
        check_share("alpha", self.alpha)
        check_share("half_width", self.half_width)

    @property
    def narrow(self) -> bool:
        """Whether the interval is narrower than half_width to either side of its middle."""
        low, high = self.interval
        return high - low < 2 * self.half_width

    def take(self, success: bool) -> ConfidenceSequence:
        """The sequence after one more sample."""
        later = replace(self, successes=self.successes + bool(success), n=self.n + 1)
        low = later._raised(later.successes, self.interval[0])
        high = 1 - later._raised(later.n - later.successes, 1 - self.interval[1])
        # An empty intersection (rarer than alpha) would say nothing; the last interval still holds as it did.
        return replace(later, interval=(low, high) if low < high else self.interval)

    def take_many(self, successes: Iterable[bool]) -> ConfidenceSequence:
        """The sequence after all these samples, one by one."""
        later = self
        for success in successes:
            later = later.take(success)
        return later

    def _raised(self, successes: int, low: float) -> float:
        """The smallest mean from `low` on that isn't excluded; the capital falls as the mean grows."""
        needed = math.log(2 / self.alpha)
        if log_capital(successes, self.n, low, self.half_width) < needed:
            return low
        high = successes / self.n
        if high <= low:  # excluded from above as well: nothing is left here
            return low
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if log_capital(successes, self.n, middle, self.half_width) < needed:
                high = middle
            else:
                low = middle
        return low


def log_capital(successes: int, n: int, mean: float, half_width: float) -> float:
    """Log of what bets that the true mean is above `mean`, in [0, 1), have made out of 1.

    A bet of step / (mean (1 - mean)) per unit of (success - mean), kept up over all samples, makes the likelihood ratio
    of mean + step and mean. The capital is split among several steps.
    """
    if mean <= 0:
        return math.inf if successes else 0.0
    failures = n - successes
    logs = []
    for step, share in _steps(half_width):
        other = min(mean + step, 1.0)
        if other < 1 or not failures:
            lost = failures * math.log((1 - other) / (1 - mean)) if failures else 0.0
            logs.append(share + successes * math.log(other / mean) + lost)
    top = max(logs, default=-math.inf)
    return top + math.log(sum(math.exp(log - top) for log in logs)) if logs else top


@lru_cache(maxsize=64)
def _steps(half_width: float) -> tuple[tuple[float, float], ...]:
    """Steps from a mean to the one that is bet on, with the log of their shares of the capital."""
    others = tuple((half_width * scale, math.log((1 - TUNED) / len(SCALES))) for scale in SCALES)
    return ((half_width, math.log(TUNED)), *others)
