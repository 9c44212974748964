"""The confidence sequence: its arithmetic, its coverage at all sample sizes at once, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import ConfidenceSequence, wilson
from robustbench_vit.statistics.confidence_sequence import SCALES, TUNED, log_capital

RUNS, SAMPLES = 2000, 1000
MARGIN = 3 * math.sqrt(0.05 * 0.95 / RUNS)


def capital(successes: int, n: int, mean: float, half_width: float) -> float:
    """The capital as the definition says: bets on success - mean, multiplied up."""
    total = 0.0
    for scale, share in [(1.0, TUNED), *((scale, (1 - TUNED) / len(SCALES)) for scale in SCALES)]:
        step = min(half_width * scale, 1 - mean)
        bet = step / (mean * (1 - mean))
        total += share * (1 + bet * (1 - mean)) ** successes * (1 - bet * mean) ** (n - successes)
    return total


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.01, 0.99), st.sampled_from([0.01, 0.02, 0.1, 0.5]))
def test_capital_is_that_of_bets(successes: int, failures: int, mean: float, half_width: float) -> None:
    n = successes + failures
    expected = capital(successes, n, mean, half_width)
    found = math.exp(log_capital(successes, n, mean, half_width))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.98), st.floats(0.001, 0.3))
def test_capital_falls_as_the_mean_grows(successes: int, failures: int, mean: float, half_width: float) -> None:
    n = successes + failures
    higher = mean + (1 - mean) / 3
    assert log_capital(successes, n, higher, half_width) <= log_capital(successes, n, mean, half_width) + 1e-9


@pytest.mark.parametrize(("p", "seed"), [(0.0, 0), (0.02, 1), (0.5, 2), (0.9, 3), (1.0, 4)])
def test_intervals_are_what_the_capital_does_not_exclude(p: float, seed: int) -> None:
    """At each sample size the ends are where the bets make 2/alpha, or where they were before."""
    needed = math.log(2 / 0.05)
    sequence = ConfidenceSequence(0.05)
    for success in np.random.default_rng(seed).random(300) < p:
        before, sequence = sequence, sequence.take(bool(success))
        (low, high), failures = sequence.interval, sequence.n - sequence.successes
        assert before.interval[0] <= low < high <= before.interval[1]
        for count, end, earlier in (
            (sequence.successes, low, before.interval[0]),
            (failures, 1 - high, 1 - before.interval[1]),
        ):
            reached = log_capital(count, sequence.n, end, 0.02)
            assert reached < needed if end == earlier else reached == pytest.approx(needed, abs=1e-6)


def test_it_counts_and_never_changes() -> None:
    first = ConfidenceSequence(0.05)
    assert (first.n, first.interval, first.narrow) == (0, (0.0, 1.0), False)
    later = first.take_many([True, False, True])
    assert (later.n, later.successes, first.n) == (3, 2, 0)
    assert later == first.take(True).take(False).take(True)
    assert first.take_many(np.array([True, False, True])) == later
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.n = 1  # type: ignore[misc]


def test_successes_and_failures_mirror_each_other() -> None:
    draws = np.random.default_rng(5).random(400) < 0.2
    low, high = ConfidenceSequence(0.05).take_many(draws).interval
    assert ConfidenceSequence(0.05).take_many(~draws).interval == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("p", [0.002, 0.05, 0.5, 0.9])
def test_all_intervals_of_a_run_hold_at_once(p: float) -> None:
    """The interval excludes p exactly when the capital of bets against p has ever reached 2/alpha."""
    draws = np.random.default_rng(17).random((RUNS, SAMPLES)) < p
    successes = draws.cumsum(1, dtype=np.int32)
    n = np.arange(1, SAMPLES + 1)
    excluded = reached(successes, n, p) | reached(n - successes, n, 1 - p)
    assert excluded.any(1).mean() <= 0.05 + MARGIN
    for run in (0, 1, *np.flatnonzero(excluded.any(1))[:1]):
        sequence = ConfidenceSequence(0.05)
        first = SAMPLES
        for count, success in enumerate(draws[run, :300]):
            sequence = sequence.take(bool(success))
            if not sequence.interval[0] <= p <= sequence.interval[1]:
                first = count
                break
        expected = excluded[run, :300]
        assert first == (expected.argmax() if expected.any() else SAMPLES)


def reached(successes: np.ndarray, n: np.ndarray, mean: float) -> np.ndarray:
    """Bool (run, sample): whether bets that the true mean is above `mean` have made 2/alpha; like log_capital."""
    total = np.zeros(successes.shape)
    for scale, share in [(1.0, TUNED), *((scale, (1 - TUNED) / len(SCALES)) for scale in SCALES)]:
        other = mean + 0.02 * scale
        if other < 1:
            win, lose = math.log(other / mean), math.log((1 - other) / (1 - mean))
            total += share * np.exp(np.minimum(successes * win + (n - successes) * lose, 700))
        else:
            total += share * np.where(successes == n, mean ** -successes.astype(float).clip(max=600), 0)
    return total >= 2 / 0.05


@pytest.mark.parametrize(("p", "half_width"), [(0.03, 0.02), (0.5, 0.06)])
def test_it_costs_about_twice_the_samples_of_an_interval_for_a_fixed_number(p: float, half_width: float) -> None:
    generator = np.random.default_rng(23)
    needed = []
    for _ in range(7):
        sequence = ConfidenceSequence(0.05, half_width)
        while not sequence.narrow:
            sequence = sequence.take(bool(generator.random() < p))
        needed.append(sequence.n)
    fixed = next(n for n in range(100, 5000) if _half(round(p * n), n) <= half_width)
    assert 1.2 * fixed < np.median(needed) < 2.2 * fixed


def _half(successes: int, n: int) -> float:
    low, high = wilson(successes, n)
    return (high - low) / 2


def test_another_width_is_reached_sooner_when_asked_for() -> None:
    draws = np.random.default_rng(29).random(2000) < 0.4
    widths = {}
    for half_width in (0.02, 0.05):
        low, high = ConfidenceSequence(0.05, half_width).take_many(draws[:700]).interval
        widths[half_width] = high - low
    assert widths[0.05] < widths[0.02]


def test_samples_that_no_mean_explains_leave_the_interval_as_it_is() -> None:
    """First only successes, then only failures: nothing is left in the intersection."""
    sequence = ConfidenceSequence(0.05).take_many([True] * 200 + [False] * 800)
    assert 0.8 < sequence.interval[0] < sequence.interval[1] <= 1


@pytest.mark.parametrize(("alpha", "half_width"), [(0.0, 0.02), (1.0, 0.02), (0.05, 0.0), (0.05, 2.0)])
def test_levels_lie_between_0_and_1(alpha: float, half_width: float) -> None:
    with pytest.raises(InputError, match=r"(alpha|half_width) lies between 0 and 1, got"):
        ConfidenceSequence(alpha, half_width)
