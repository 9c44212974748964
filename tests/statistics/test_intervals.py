"""Intervals against published values, other packages and their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import INTERVALS, clopper_pearson, wilson

Interval = Callable[..., tuple[float, float]]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I (method 3)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_its_ends_solve_the_score_equation(counts: tuple[int, int], confidence: float) -> None:
    from statistics import NormalDist

    k, n = counts
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = wilson(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert abs(k / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize("interval", INTERVALS.values())
@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 5)])
def test_no_proportion(interval: Interval, counts: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{counts[0]} of {counts[1]} is no proportion"):
        interval(*counts)


@pytest.mark.parametrize("interval", INTERVALS.values())
@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_lies_between_0_and_1(interval: Interval, confidence: float) -> None:
    with pytest.raises(InputError, match=f"confidence lies between 0 and 1, got {confidence}"):
        interval(1, 2, confidence)


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (20, 20), (1, 1), (3, 17), (8, 500), (9_950, 10_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_clopper_pearson_equals_scipys(successes: int, n: int, confidence: float) -> None:
    theirs = binomtest(successes, n).proportion_ci(confidence, "exact")
    assert clopper_pearson(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(("successes", "n"), [(0, 20), (20, 20), (3, 17), (8, 500)])
def test_intervals_equal_those_of_statsmodels(interval: str, successes: int, n: int) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    theirs = proportion.proportion_confint(
        successes, n, 0.05, {"wilson": "wilson", "clopper-pearson": "beta"}[interval]
    )
    assert INTERVALS[interval](successes, n) == pytest.approx(theirs, abs=1e-12)


def test_nothing_and_everything_are_ends() -> None:
    assert clopper_pearson(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1))
    assert clopper_pearson(0, 20)[0] == 0
    assert clopper_pearson(20, 20)[1] == 1


@pytest.mark.parametrize("n", [50, 500])
def test_coverage(n: int) -> None:
    """Over 4,000 models: Clopper-Pearson covers at least 95 % whatever the accuracy, Wilson about 95 % on average."""
    generator = np.random.default_rng(n)
    intervals = {name: np.array([make(k, n) for k in range(n + 1)]) for name, make in INTERVALS.items()}
    covered: dict[str, list[float]] = {name: [] for name in INTERVALS}
    for share in (0.005, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        drawn = generator.binomial(n, share, 4000)
        for name, ends in intervals.items():
            low, high = ends[drawn].T
            covered[name].append(float(((low <= share) & (share <= high)).mean()))
    assert min(covered["clopper-pearson"]) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000)
    assert np.mean(covered["wilson"]) == pytest.approx(0.95, abs=0.015)
    assert min(covered["wilson"]) > 0.9
