"""The sequential paired test: its arithmetic, and its promise under continuous peeking at an engine's verdicts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import Decision, DropTest, drop_interval, in_order
from robustbench_vit.statistics.paired import Flips, mcnemar_p
from robustbench_vit.statistics.sequential import bets, log_against_drop, log_against_no_drop

RUNS, SAMPLES, WIDTH = 2000, 400, 64
MAX_DROP, ALPHA = 0.05, 0.05
MARGIN = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
"""Three standard errors of a share of 5 % in as many runs."""
PROMISED = ALPHA + MARGIN


def taken(pairs: list[tuple[bool, bool]], max_drop: float = MAX_DROP, alpha: float = ALPHA) -> DropTest:
    test = DropTest(max_drop, alpha)
    for pair in pairs:
        test = test.take(*pair)
    return test


def test_it_counts_and_never_changes() -> None:
    before = DropTest(0.02, 0.05)
    after = before.take(True, False)
    assert (before.n, after.n, before.decision) == (0, 1, None)
    assert taken([(True, False), (True, True), (False, True), (False, False), (True, False)]).flips == Flips(2, 1, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.n = 0  # type: ignore[misc]
    with pytest.raises(InputError):
        _ = before.flips


def test_capital_is_the_mean_over_bets_of_what_each_has_made() -> None:
    x = np.random.default_rng(0).choice([1, -1, 0], 40, p=[0.2, 0.1, 0.7])
    lost, gained, n = np.array((x == 1).sum()), np.array((x == -1).sum()), np.array(len(x))
    for_worse = np.mean([np.prod(1 + bet * x) for bet in bets(0.05, 1.0)])
    assert log_against_no_drop(lost, gained, 0.05) == pytest.approx(math.log(for_worse))
    for_not_worse = np.mean([np.prod(1 + bet * (0.05 - x)) for bet in bets(0.05, 1 / 0.95)])
    assert log_against_drop(lost, gained, n, 0.05) == pytest.approx(math.log(for_not_worse))


@pytest.mark.parametrize("max_drop", [0.001, 0.02, 0.3, 0.6, 0.99])
def test_no_sample_makes_capital_on_average_where_the_hypothesis_holds(max_drop: float) -> None:
    """At the edge of the hypothesis the expected factor of every bet is exactly 1, and never negative."""
    for bet in bets(max_drop, 1.0):
        assert 0.1 * (1 + bet) + 0.1 * (1 - bet) + 0.8 == pytest.approx(1)
        assert 1 - bet > 0
    for bet in bets(max_drop, 1 / (1 - max_drop)):
        assert max_drop * (1 + bet * (max_drop - 1)) + (1 - max_drop) * (1 + bet * max_drop) == pytest.approx(1)
        assert 1 + bet * (max_drop - 1) > 0


def test_equal_verdicts_are_soon_not_worse_and_lost_ones_worse() -> None:
    equal = taken([(True, True)] * 120)
    assert equal.decision is Decision.NOT_WORSE
    assert equal.decision == "not worse"
    assert taken([(True, False)] * 10).decision is Decision.WORSE
    assert taken([(False, True)] * 10).decision is Decision.NOT_WORSE


def test_a_significant_drop_below_the_limit_is_not_worse() -> None:
    pairs = [(sample % 50 == 0, False) for sample in range(1, 2001)]  # 2 % lost, none gained
    assert taken(pairs, max_drop=0.1).decision is Decision.NOT_WORSE
    assert taken(pairs, max_drop=0.001).decision is Decision.WORSE


def test_once_decided_it_stays_so() -> None:
    test = taken([(True, False)] * 10 + [(False, True)] * 500)
    assert test.decision is Decision.WORSE
    assert test.n == 510
    assert test.flips.drop < 0


@pytest.mark.parametrize(("max_drop", "alpha"), [(0.0, 0.05), (1.0, 0.05), (-0.02, 0.05), (0.02, 0.0), (0.02, 5.0)])
def test_levels_lie_between_0_and_1(max_drop: float, alpha: float) -> None:
    with pytest.raises(InputError, match=r"(max_drop|alpha) lies between 0 and 1, got"):
        DropTest(max_drop, alpha)


@dataclass(frozen=True)
class Runs:
    """Runs of an engine on a candidate whose baseline is known; (run, sample), samples in seeded order."""

    lost_or_gained: np.ndarray  # 1, -1 or 0
    finished: np.ndarray  # which sample was the first to finish, the second, …


@cache
def engine_runs(drop: float, seed: int) -> Runs:
    """`RUNS` runs over `SAMPLES` samples, `WIDTH` at a time; 10 % of the verdicts flip, and the drop is the given one.

    A sample that the candidate is not robust on leaves the pool after a few steps; a robust one stays for all 100.
    """
    generator = np.random.default_rng(seed)
    kinds = generator.choice(4, (RUNS, SAMPLES), p=[0.05 + drop / 2, 0.05 - drop / 2, 0.4, 0.5])
    robust = (kinds == 1) | (kinds == 2)  # 0 lost, 1 gained, 2 robust in both, 3 in neither
    steps = np.where(robust, 100.0, generator.geometric(0.1, kinds.shape).clip(max=100)) + generator.random(kinds.shape)
    free = np.zeros((RUNS, WIDTH))
    done = np.empty(kinds.shape)
    every = np.arange(RUNS)
    for sample in range(SAMPLES):
        slot = free.argmin(1)
        done[:, sample] = free[every, slot] + steps[:, sample]
        free[every, slot] = done[:, sample]
    return Runs(np.select([kinds == 0, kinds == 1], [1, -1], 0).astype(np.int8), done.argsort(1))


def as_they_finish(runs: Runs) -> np.ndarray:
    """What a gate sees that looks at samples as they finish (run, sample)."""
    return np.take_along_axis(runs.lost_or_gained, runs.finished, 1)


def in_seeded_order(runs: Runs) -> np.ndarray:
    """What a gate sees that lets samples wait for their predecessors, in the order in which it gets them."""
    names = [str(sample) for sample in range(SAMPLES)]
    given_out = []
    for verdicts, finished in zip(runs.lost_or_gained.tolist(), runs.finished.tolist(), strict=True):
        waiting = in_order(names)
        given_out.append([value for sample in finished for _, value in waiting.finish(names[sample], verdicts[sample])])
    return np.array(given_out, np.int8)


def decided(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each run whether it is decided as worse, as not worse, and after how many samples (SAMPLES + 1: never).

    The same as DropTest, for all runs at once.
    """
    lost, gained, n = counted(seen)
    needed = -math.log(ALPHA)
    worse = (log_against_no_drop(lost, gained, MAX_DROP) >= needed) & (lost - gained > MAX_DROP * n)
    not_worse = log_against_drop(lost, gained, n, MAX_DROP) >= needed
    first = [np.where(found.any(1), found.argmax(1), SAMPLES) for found in (worse, not_worse)]
    return first[0] < first[1], first[1] < first[0], np.minimum(*first) + 1


def counted(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lost, gained and samples so far, each (run, sample)."""
    n = np.broadcast_to(np.arange(1, SAMPLES + 1), seen.shape)
    return (seen == 1).cumsum(1, dtype=np.int32), (seen == -1).cumsum(1, dtype=np.int32), n


def test_all_runs_at_once_decide_as_one_test_sample_by_sample() -> None:
    seen = engine_runs(MAX_DROP, seed=4).lost_or_gained
    worse, not_worse, after = decided(seen)
    for run in range(20):
        test = DropTest(MAX_DROP, ALPHA)
        for x in seen[run]:
            test = test.take(bool(x == 1), bool(x == -1))
            if test.decision is not None:
                break
        assert (test.decision is Decision.WORSE, test.decision is Decision.NOT_WORSE) == (worse[run], not_worse[run])
        assert test.n == min(after[run], SAMPLES)


def test_false_alarms_are_as_rare_as_promised_whenever_one_looks() -> None:
    runs = engine_runs(0.0, seed=1)
    seen = in_seeded_order(runs)
    worse, not_worse, after = decided(seen)
    assert worse.mean() <= PROMISED
    assert not_worse.mean() > 0.6
    assert np.median(after) < 300
    assert (seen == runs.lost_or_gained).all()
    assert (as_they_finish(runs) != seen).any(1).all()


def test_misses_are_as_rare_as_promised_whenever_one_looks() -> None:
    _, not_worse, _ = decided(in_seeded_order(engine_runs(MAX_DROP, seed=2)))
    assert not_worse.mean() <= PROMISED


def test_a_large_drop_is_found() -> None:
    worse, not_worse, after = decided(engine_runs(2 * MAX_DROP, seed=3).lost_or_gained)
    assert worse.mean() > 0.98
    assert not_worse.mean() <= 0.01
    assert np.median(after) < 100


def test_looking_at_samples_as_they_finish_breaks_the_promise() -> None:
    worse, _, _ = decided(as_they_finish(engine_runs(0.0, seed=1)))
    assert worse.mean() > 3 * PROMISED


def test_repeating_mcnemars_test_breaks_the_promise() -> None:
    """One-sided at the level of the sequential test, and taken after each sample."""
    lost, gained, _ = counted(engine_runs(0.0, seed=1).lost_or_gained)
    significant = (mcnemar_p(lost, gained) < 2 * ALPHA) & (lost > gained)
    assert significant.any(1).mean() > 1.5 * PROMISED
    assert (log_against_no_drop(lost, gained, MAX_DROP) >= -math.log(ALPHA)).any(1).mean() <= PROMISED


def test_repeating_the_interval_breaks_the_promise() -> None:
    """One-sided at the level of the sequential test, and taken after every 20 samples."""
    lost, gained, _ = counted(engine_runs(MAX_DROP, seed=2).lost_or_gained)
    looks = range(99, SAMPLES, 20)
    seen = [[Flips(one, two, look + 1) for one, two in _pairs(lost, gained, look)] for look in looks]
    distinct = {counts for at_look in seen for counts in at_look}
    upper = {counts: drop_interval(counts, 1 - 2 * ALPHA)[1] for counts in distinct}
    missed = [any(upper[counts] < MAX_DROP for counts in run) for run in zip(*seen, strict=True)]
    assert np.mean(missed) > 1.5 * PROMISED


def _pairs(lost: np.ndarray, gained: np.ndarray, look: int) -> list[tuple[int, int]]:
    return list(zip(lost[:, look].tolist(), gained[:, look].tolist(), strict=True))
