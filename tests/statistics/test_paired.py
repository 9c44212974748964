"""Paired comparisons against other packages, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import Flips, drop_interval, flips, mcnemar, samples_to_decide
from robustbench_vit.statistics.paired import constrained_variance

COUNTS = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(
        lambda lost: st.builds(Flips, st.just(lost), st.integers(0, n - lost), st.just(n)),
    )
)


def drawn(generator: np.random.Generator, n: int, lost: float, gained: float, runs: int) -> list[Flips]:
    """Flips of `runs` pairs of models on n samples each; `lost` and `gained` are rates."""
    counts = generator.multinomial(n, [lost, gained, 1 - lost - gained], runs)
    return [Flips(int(one), int(two), n) for one, two, _ in counts]


def test_flips_of_two_verdicts() -> None:
    baseline = np.array([True, True, True, False, False])
    candidate = np.array([True, False, False, True, False])
    found = flips(baseline, candidate)
    assert found == Flips(lost=2, gained=1, n=5)
    assert found.drop == pytest.approx(0.2)
    assert flips(candidate, baseline).drop == -found.drop


def test_verdicts_that_cannot_be_paired() -> None:
    three, two = np.array([True, False, True]), np.array([True, False])
    with pytest.raises(InputError, match=r"two bool arrays of one length, got bool \(3,\) and bool \(2,\)"):
        flips(three, two)
    with pytest.raises(InputError, match=r"got bool \(2,\) and int64 \(2,\)"):
        flips(two, np.array([1, 0]))
    with pytest.raises(InputError, match="no shared samples"):
        flips(two[:0], two[:0])


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_cannot_be(counts: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=f"{counts[0]} samples lost and {counts[1]} gained of {counts[2]} cannot be"):
        Flips(*counts)


@given(COUNTS)
def test_mcnemar_is_the_binomial_test_of_the_flips(counts: Flips) -> None:
    total = counts.lost + counts.gained
    expected = binomtest(counts.lost, total).pvalue if total else 1.0
    assert mcnemar(counts) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(Flips(counts.gained, counts.lost, counts.n)) == mcnemar(counts)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 7), (12, 5), (6, 6), (300, 241)])
def test_mcnemar_equals_that_of_statsmodels(lost: int, gained: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    theirs = tables.mcnemar([[50, lost], [gained, 50]], exact=True).pvalue if lost + gained else 1.0
    assert mcnemar(Flips(lost, gained, 1000)) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.4])
def test_mcnemar_finds_too_much_at_most_as_often_as_it_says(rate: float) -> None:
    runs = drawn(np.random.default_rng(1), 500, rate / 2, rate / 2, 4000)
    found = np.mean([mcnemar(counts) < 0.05 for counts in runs])
    assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(
    ("counts", "confidence", "interval"),
    [
        (Flips(1, 7, 21), 0.95, (-0.517, -0.026)),  # Fagerland, Lydersen and Laake 2014, Statist. Med. 33:2850-2875
        (Flips(28, 25, 618), 0.90, (-0.0148, 0.0247)),  # scoreci.mp(25, 28, 618, 0.90) of R's PropCIs
    ],
)
def test_published_drop_intervals(counts: Flips, confidence: float, interval: tuple[float, float]) -> None:
    decimals = 5e-4 if confidence == 0.95 else 5e-5
    assert drop_interval(counts, confidence) == pytest.approx(interval, abs=decimals)


@given(COUNTS, st.floats(0.5, 0.999))
def test_drop_intervals_are_intervals(counts: Flips, confidence: float) -> None:
    low, high = drop_interval(counts, confidence)
    assert -1 <= low <= counts.drop + 1e-12
    assert counts.drop - 1e-12 <= high <= 1
    assert drop_interval(Flips(counts.gained, counts.lost, counts.n), confidence) == (-high, -low)


@given(COUNTS, st.floats(-0.95, 0.95))
def test_the_variance_is_that_at_the_likeliest_rates(counts: Flips, drop: float) -> None:
    """Against a search for the rate of samples gained, the one unknown once the drop is given."""
    lost, gained = counts.lost / counts.n, counts.gained / counts.n
    kept = 1 - lost - gained

    def unlikely(q: float) -> float:
        terms = ((lost, q + drop), (gained, q), (kept, 1 - 2 * q - drop))
        return -sum(share * math.log(max(rate, 1e-300)) for share, rate in terms if share)

    ends = (max(0.0, -drop), (1 - drop) / 2)
    q = (constrained_variance(lost, gained, drop) - drop * (1 - drop)) / 2
    assert ends[0] - 1e-9 <= q <= ends[1] + 1e-9
    searched = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-10})
    assert unlikely(min(max(q, ends[0]), ends[1])) <= searched.fun + 1e-7


@given(COUNTS)
def test_the_interval_excludes_0_where_mcnemars_score_test_rejects(counts: Flips) -> None:
    z = 1.959963984540054
    score = (counts.lost - counts.gained) / math.sqrt(max(counts.lost + counts.gained, 1))
    low, high = drop_interval(counts)
    if abs(abs(score) - z) > 1e-6:
        assert (low <= 0 <= high) == (abs(score) < z)


def test_no_flips_and_nothing_but_flips() -> None:
    z2 = 1.959963984540054**2
    assert drop_interval(Flips(0, 0, 100)) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    low, high = drop_interval(Flips(100, 0, 100))
    assert 0.8 < low < 1
    assert high == 1
    assert drop_interval(Flips(0, 100, 100)) == (-1, -low)


def test_drop_intervals_cover() -> None:
    """4,000 pairs of models each; with a handful of flips coverage goes up and down by up to 3 points."""
    covered = []
    for n in (100, 500, 1000):
        for lost, gained in ((0.02, 0.02), (0.05, 0.01), (0.1, 0.08), (0.3, 0.1)):
            runs = drawn(np.random.default_rng(7), n, lost, gained, 4000)
            ends = {counts: drop_interval(counts) for counts in set(runs)}
            covered.append(np.mean([ends[counts][0] <= lost - gained <= ends[counts][1] for counts in runs]))
    assert min(covered) > 0.92
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("n", [200, 1000])
@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.03, 0.01), (0.06, 0.04), (0.16, 0.14)])
def test_a_drop_as_large_as_the_limit_is_rarely_excluded(n: int, lost: float, gained: float) -> None:
    runs = drawn(np.random.default_rng(5), n, lost, gained, 4000)
    assert np.mean([drop_interval(counts)[1] < 0.02 for counts in runs]) <= 0.05


@pytest.mark.parametrize(
    ("seen", "max_drop"),
    [
        (Flips(3, 3, 100), 0.05),
        (Flips(6, 4, 200), 0.05),
        (Flips(4, 8, 200), 0.02),
        (Flips(12, 4, 200), 0.02),
        (Flips(30, 20, 300), 0.02),
        (Flips(15, 8, 200), 0.03),
        (Flips(6, 1, 20), 0.02),
        (Flips(4, 1, 60), 0.02),
    ],
)
def test_that_many_samples_do_decide_four_times_in_five(seen: Flips, max_drop: float) -> None:
    n = samples_to_decide(seen, max_drop, 0.05)
    assert n is not None
    worse = seen.drop > max_drop
    runs = drawn(np.random.default_rng(3), n, seen.lost / seen.n, seen.gained / seen.n, 2000)
    decides = {
        counts: mcnemar(counts) < 0.05 and counts.drop > max_drop if worse else drop_interval(counts)[1] < max_drop
        for counts in set(runs)
    }
    assert 0.79 < np.mean([decides[counts] for counts in runs]) < 0.86  # rounded up, as counts are whole


def test_where_nothing_flips_the_next_sample_would_have_been_too_few() -> None:
    n = samples_to_decide(Flips(0, 0, 50), 0.02, 0.05)
    assert n is not None
    assert drop_interval(Flips(0, 0, n))[1] < 0.02 <= drop_interval(Flips(0, 0, n - 1))[1]


def test_no_number_of_samples_decides_when_the_drop_is_the_limit() -> None:
    assert samples_to_decide(Flips(2, 0, 100), 0.02, 0.05) is None
    assert samples_to_decide(Flips(5, 3, 100), 0.02, 0.05) is None


def test_more_samples_than_were_seen_are_asked_for() -> None:
    assert samples_to_decide(Flips(90, 0, 100), 0.02, 0.05) == 101
    assert samples_to_decide(Flips(0, 90, 100), 0.02, 0.05) == 101


@pytest.mark.parametrize(("max_drop", "alpha"), [(0.0, 0.05), (2.0, 0.05), (0.02, 5.0)])
def test_levels_lie_between_0_and_1(max_drop: float, alpha: float) -> None:
    with pytest.raises(InputError, match="lies between 0 and 1"):
        samples_to_decide(Flips(0, 0, 10), max_drop, alpha)
    with pytest.raises(InputError, match="confidence lies between 0 and 1"):
        drop_interval(Flips(0, 0, 10), 95)
