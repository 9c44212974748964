"""From counts to grades: shares of probe samples against limits, and an exact test for rare events."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robustbench_vit.errors import InputError
from robustbench_vit.records.reliability import Evidence, Reason

FEWEST = 3
"""No grade rests on fewer samples."""
HONEST_RATE = 0.02
"""Share of the samples left by gradient attacks that Square or transfer may break on an honest model."""
WEAK_P, STRONG_P = 1e-2, 1e-4

ENOUGH_BACKWARDS = 30
"""Mean backward passes per sample that make an attack by gradients more than a formality."""
STRONGER = "use an attack with stronger gradient lanes, such as apgd-ce and apgd-t"


@dataclass(frozen=True)
class Limits:
    """Shares of the probe samples from which something seen is weak or strong evidence."""

    weak: float
    strong: float

    def grade(self, seen: int, n: int) -> Evidence:
        """The grade of `seen` among `n` samples."""
        if seen < FEWEST or seen < self.weak * n:
            return Evidence.NONE
        return Evidence.STRONG if seen >= self.strong * n else Evidence.WEAK


def binomial_tail(k: int, n: int, rate: float) -> float:
    """P(X ≥ k) for X ~ Binomial(n, rate), summed exactly; raises InputError unless 0 ≤ k ≤ n and 0 < rate < 1."""
    if not 0 <= k <= n or not 0 < rate < 1:
        raise InputError(f"no binomial tail for {k} of {n} at rate {rate}")
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(rate)
        + (n - i) * math.log1p(-rate)
        for i in range(k, n + 1)
    )
    return min(math.fsum(math.exp(value) for value in logs), 1.0)


def grade_breaks(broken: int, n: int) -> tuple[Evidence, float]:
    """The grade of `broken` among `n` samples that gradient attacks had left, and its p-value.

    One-sided exact binomial test against HONEST_RATE.
    """
    p = binomial_tail(broken, n, HONEST_RATE)
    if broken < FEWEST or p > WEAK_P:
        return Evidence.NONE, p
    return (Evidence.STRONG if p <= STRONG_P else Evidence.WEAK), p


def not_run(check: str, why: str) -> Reason:
    """The reason of a check that did not run."""
    return Reason(check, None, why)


def percent(part: float, whole: float) -> str:
    """'12 of 48 (25 %)'"""
    return f"{part:g} of {whole:g} ({100 * part / max(whole, 1):.0f} %)"
