"""A paired test that may be looked at after every sample, and stops as soon as it knows.

Each of two hypotheses is bet against with a capital of 1 that would not grow on average if the hypothesis held. By
Ville's inequality it then ever reaches 1/alpha with probability alpha at most, whenever one looks (testing by betting;
Shafer 2021; Waudby-Smith and Ramdas 2024, arXiv:2010.09686). x is what a sample loses: 1 robust in the baseline only,
-1 in the candidate only, else 0. The capital is spread over several constant bets, so it only depends on counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from robustbench_vit.statistics.checks import check_share
from robustbench_vit.statistics.paired import Flips

BETS = 16


class Decision(StrEnum):
    """What a paired comparison found."""

    WORSE = "worse"
    NOT_WORSE = "not worse"


def bets(max_drop: float, largest: float) -> np.ndarray:
    """Constant bets (bet,), from cautious to bold: the best one is near max_drop divided by the rate of flips."""
    return np.geomspace(max_drop, 0.99 * largest, BETS)


def log_against_no_drop(lost: np.ndarray, gained: np.ndarray, max_drop: float) -> np.ndarray:
    """Log capital of the bets against 'the drop is at most 0': mean over bets of (1 + bet)^lost (1 - bet)^gained."""
    bet = bets(max_drop, 1.0)
    return _log_mean(np.multiply.outer(lost, np.log1p(bet)) + np.multiply.outer(gained, np.log1p(-bet)))


def log_against_drop(lost: np.ndarray, gained: np.ndarray, n: np.ndarray, max_drop: float) -> np.ndarray:
    """Log capital of the bets against 'the drop is at least max_drop': mean over bets of ∏(1 + bet (max_drop - x))."""
    bet = bets(max_drop, 1 / (1 - max_drop))
    lose, gain, same = (np.log1p(bet * (max_drop - x)) for x in (1, -1, 0))
    unchanged = np.asarray(n) - lost - gained
    return _log_mean(
        np.multiply.outer(lost, lose) + np.multiply.outer(gained, gain) + np.multiply.outer(unchanged, same)
    )


def _log_mean(logs: np.ndarray) -> np.ndarray:
    """log(mean(exp(logs))) over the last dimension."""
    top = logs.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(logs - top).mean(-1))


@dataclass(frozen=True)
class DropTest:
    """A sequential paired test; `take` gives the test after one more sample.

    *worse*: a drop of 0 or less is excluded at level alpha, and the drop seen is above max_drop. *not worse*: a drop of
    max_drop or more is excluded at level alpha. Samples must come in an order that doesn't depend on their verdicts.
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
        """What flipped in the samples so far, of which there must be one at least."""
        return Flips(self.lost, self.gained, self.n)

    def take(self, baseline: bool, candidate: bool) -> DropTest:
        """The test after one more sample, with its verdicts (True is robust). Once decided it stays so."""
        lost, gained = self.lost + (baseline and not candidate), self.gained + (candidate and not baseline)
        later = replace(self, lost=int(lost), gained=int(gained), n=self.n + 1)
        return later if self.decision is not None else replace(later, decision=later._decide())

    def _decide(self) -> Decision | None:
        needed = -math.log(self.alpha)
        lost, gained, n = (np.array(count) for count in (self.lost, self.gained, self.n))
        if log_against_drop(lost, gained, n, self.max_drop) >= needed:
            return Decision.NOT_WORSE
        if self.flips.drop > self.max_drop and log_against_no_drop(lost, gained, self.max_drop) >= needed:
            return Decision.WORSE
        return None
