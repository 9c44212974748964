"""Wilson's interval against published values and against its definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import wilson


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


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 5)])
def test_no_proportion(counts: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{counts[0]} of {counts[1]} is no proportion"):
        wilson(*counts)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_lies_between_0_and_1(confidence: float) -> None:
    with pytest.raises(InputError, match=f"confidence lies between 0 and 1, got {confidence}"):
        wilson(1, 2, confidence)
