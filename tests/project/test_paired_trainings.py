"""Two recipes with several trainings each: intervals over trainings and samples, and the words they allow."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paired_trainings import Difference, Effect, difference, mean_interval
from robustbench_vit.errors import InputError
from robustbench_vit.statistics import drop_interval


def verdicts(*counts: int, n: int = 100, first: int = 0) -> dict[int, np.ndarray]:
    """Trainings that are robust on so many samples, the first ones."""
    return {seed: np.arange(n) < count for seed, count in enumerate(counts, first)}


def found(plain: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> Difference:
    result = difference("plain", "other", {"plain": plain, "other": other}, 0.95)
    assert result is not None
    return result


def test_the_interval_of_a_mean_is_students():
    low, high = mean_interval(np.array([1.0, 2.0, 3.0]), 0.95)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)


def test_the_interval_of_a_mean_covers():
    draws = np.random.default_rng(0).normal(1.0, 3.0, (2000, 3))
    inside = [low <= 1 <= high for low, high in (mean_interval(draw, 0.95) for draw in draws)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_an_interval_of_one_value_is_refused():
    with pytest.raises(InputError, match="needs at least 2 values, got 1"):
        mean_interval(np.array([1.0]), 0.95)


def test_trainings_are_paired_by_seed():
    result = found(verdicts(60, 70, 80), verdicts(50, 62, first=1))
    assert result.seeds == (1, 2)
    assert result.drops.tolist() == pytest.approx([0.2, 0.18])
    assert result.shares == pytest.approx((0.75, 0.56))
    assert result.intervals == [drop_interval(pair, 0.95) for pair in result.pairs]


def test_one_common_seed_is_too_few():
    assert difference("plain", "other", {"plain": verdicts(5, 6), "other": verdicts(5, first=1)}, 0.95) is None
    assert difference("plain", "absent", {"plain": verdicts(5, 6)}, 0.95) is None


CASES = {
    Effect.COSTS: ((60, 61, 60), (50, 51, 51)),
    Effect.HELPS: ((50, 51, 51), (60, 61, 60)),
    Effect.LEANS_COST: ((60, 80, 70), (50, 40, 60)),
    Effect.LEANS_HELP: ((50, 40, 60), (60, 80, 70)),
    Effect.OPEN: ((60, 58, 62), (58, 60, 61)),
    Effect.NOTHING_LEFT: ((1, 1, 1), (0, 0, 0)),
}


@pytest.mark.parametrize("effect", Effect)
def test_what_may_be_said(effect):
    assert found(*(verdicts(*counts) for counts in CASES[effect])).effect is effect


def test_costs_is_said_only_when_the_interval_excludes_zero():
    generator = np.random.default_rng(1)
    for _ in range(200):
        plain, other = (verdicts(*generator.integers(40, 60, 3)) for _ in range(2))
        result = found(plain, other)
        low, high = result.interval
        assert (result.effect is Effect.COSTS) == (low > 0)
        assert (result.effect is Effect.HELPS) == (high < 0)


def test_pairs_that_disagree_lean_nowhere():
    result = found(verdicts(60, 40, 60), verdicts(40, 60, 40))
    assert result.significant == 3
    assert result.effect is Effect.OPEN
