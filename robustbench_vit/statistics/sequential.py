"""A paired test that may be looked at after every sample, and stops as soon as it knows.

Each of two hypotheses is bet against with a capital of 1 that doesn't grow on average if the hypothesis holds. By
Ville's inequality the capital then ever reaches 1/alpha with probability alpha at most, however often one looks
(testing by betting: Waudby-Smith and Ramdas 2024, arXiv:2010.09686). x is what a sample loses: 1 when it is robust in
the baseline only, -1 in the candidate only, else 0. The capital is split among constant bets, so that it depends on
counts only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np

from robustbench_vit.statistics.checks import check_share
from robustbench_vit.statistics.paired import Flips

BETS = 6
BOLDEST = 0.85
"""As a share of the largest bet that can't ruin: capital that a single sample can take away is soon of no use."""


class Decision(StrEnum):
    """What a paired comparison found."""

    WORSE = "worse"
    NOT_WORSE = "not worse"


@lru_cache(maxsize=64)
def bets(max_drop: float, largest: float) -> np.ndarray:
    """The constant bets (bet,), from cautious to bold, among which the capital is split evenly.

    Where f is the share of samples that flip and the hypothesis is wrong by max_drop, the best bet is about
    max_drop / f (Kelly's, to second order); so these suit an f from 1/2 down.
    """
    boldest = BOLDEST * largest
    found = np.geomspace(min(2 * max_drop, boldest), boldest, BETS)
    found.flags.writeable = False  # shared by all callers
    return found


def log_against_no_drop(lost: np.ndarray, gained: np.ndarray, max_drop: float) -> np.ndarray:
    """Log capital of the bets against 'the drop is at most 0': the mean over bets of ∏(1 + bet x).

    The counts are arrays of one shape, which is also that of the result.
    """
    bet = bets(max_drop, 1.0)
    return _log_mean(np.multiply.outer(lost, np.log1p(bet)) + np.multiply.outer(gained, np.log1p(-bet)))


def log_against_drop(lost: np.ndarray, gained: np.ndarray, n: np.ndarray, max_drop: float) -> np.ndarray:
    """Log capital of the bets against 'the drop is at least max_drop': the mean over bets of ∏(1 + bet (max_drop - x)).

    The counts are arrays of one shape, which is also that of the result.
    """
    bet = bets(max_drop, 1 / (1 - max_drop))
    lose, gain, same = (np.log1p(bet * (max_drop - x)) for x in (1, -1, 0))
    kept = np.multiply.outer(n - lost - gained, same)
    return _log_mean(kept + np.multiply.outer(lost, lose) + np.multiply.outer(gained, gain))


def _log_mean(logs: np.ndarray) -> np.ndarray:
    """log(mean(exp(logs))) over the last dimension."""
    top = logs.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(logs - top).mean(-1))


@dataclass(frozen=True)
class DropTest:
    """A sequential paired test; `take` gives the test after one more sample.

    *worse*: a drop of 0 or less is excluded at level alpha, and the drop seen is above max_drop. *not worse*: a drop of
    max_drop or more is excluded at level alpha. Samples must come in an order that has nothing to do with their
    verdicts, such as `sample_order` kept by `InOrder`.
    """

    max_drop: float
    alpha: float
    lost: int = 0
    gained: int = 0
    n: int = 0
    decision: Decision | None = None

    def __post_init__(self) -> None:
        check_share("max_drop", self.max_drop)
        check_share("alpha", self.alpha)

    @property
    def flips(self) -> Flips:
        """What flipped among the samples so far; InputError before the first."""
        return Flips(self.lost, self.gained, self.n)

    def take(self, baseline: bool, candidate: bool) -> DropTest:
        """The test after one more sample, with its two verdicts (True is robust). Once decided it stays so."""
        lost = self.lost + int(bool(baseline) and not candidate)
        gained = self.gained + int(bool(candidate) and not baseline)
        later = replace(self, lost=lost, gained=gained, n=self.n + 1)
        return later if self.decision is not None else replace(later, decision=later._decide())

    def _decide(self) -> Decision | None:
        needed = -math.log(self.alpha)
        lost, gained, n = np.array(self.lost), np.array(self.gained), np.array(self.n)
        if log_against_drop(lost, gained, n, self.max_drop) >= needed:
            return Decision.NOT_WORSE
        if self.flips.drop > self.max_drop and log_against_no_drop(lost, gained, self.max_drop) >= needed:
            return Decision.WORSE
        return None
