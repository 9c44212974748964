"""Two recipes, each trained with the same seeds and judged on the same samples: which one is more robust?

Two things are random: the draw of the test samples, and the training. The first is judged pair by pair of trainings
with one seed, by the intervals and tests of `robustbench_vit.statistics`; the second by Student's t over the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import Flips, drop_interval, flips, holm, mcnemar

Verdicts = Mapping[int, np.ndarray]
"""bool (n,) by training seed: for which samples something holds; the samples are the same for all."""

NOTHING_LEFT = 0.02
"""Where both recipes are robust on a smaller share of the samples than this, their difference says nothing."""


class Effect(StrEnum):
    """What is said of a recipe beside another."""

    COSTS = "costs"  # the interval between trainings lies above 0
    HELPS = "helps"  # it lies below 0
    LEANS_COST = "leans to cost"  # it holds 0, but in every pair of trainings chance doesn't explain the loss
    LEANS_HELP = "leans to help"
    OPEN = "open"
    NOTHING_LEFT = "nothing left"


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student's t interval (low, high) of the mean of independent values (1908); raises InputError for fewer than 2."""
    from scipy.special import stdtrit

    if len(values) < 2:
        raise InputError(f"an interval of a mean needs at least 2 values, got {len(values)}")
    half = stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True)
class Difference:
    """A recipe beside the one it is compared with; a drop is how much lower its share of samples is."""

    plain: str  # names of the recipes
    other: str
    seeds: tuple[int, ...]  # that both were trained with
    pairs: tuple[Flips, ...]  # a pair of trainings each
    shares: tuple[float, float]  # means over these trainings
    confidence: float

    @property
    def drop(self) -> float:
        """The mean over the pairs of trainings, in [-1, 1]."""
        return float(self.drops.mean())

    @property
    def drops(self) -> np.ndarray:
        """(pair,)."""
        return np.array([pair.drop for pair in self.pairs])

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean drop, over the draw of the trainings."""
        return mean_interval(self.drops, self.confidence)

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """Of each pair's drop, over the draw of the samples (Tango's)."""
        return [drop_interval(pair, self.confidence) for pair in self.pairs]

    @property
    def significant(self) -> int:
        """In how many pairs chance doesn't explain the flips: exact McNemar, Holm over the pairs."""
        return sum(p < 1 - self.confidence for p in holm([mcnemar(pair) for pair in self.pairs]))

    @property
    def effect(self) -> Effect:
        """What may be said of it."""
        if max(self.shares) < NOTHING_LEFT:
            return Effect.NOTHING_LEFT
        low, high = self.interval
        if low > 0 or high < 0:
            return Effect.COSTS if low > 0 else Effect.HELPS
        if self.significant == len(self.pairs) and abs(np.sign(self.drops).sum()) == len(self.pairs):
            return Effect.LEANS_COST if self.drop > 0 else Effect.LEANS_HELP
        return Effect.OPEN


def difference(plain: str, other: str, verdicts: Mapping[str, Verdicts], confidence: float) -> Difference | None:
    """The difference of two recipes in `verdicts`; None unless both were trained with the same two seeds or more."""
    one, two = verdicts.get(plain, {}), verdicts.get(other, {})
    seeds = tuple(sorted(one.keys() & two.keys()))
    if len(seeds) < 2:
        return None
    means = tuple(float(np.mean([side[seed].mean() for seed in seeds])) for side in (one, two))
    pairs = tuple(flips(one[seed], two[seed]) for seed in seeds)
    return Difference(plain, other, seeds, pairs, (means[0], means[1]), confidence)
