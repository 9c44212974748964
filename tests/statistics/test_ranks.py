"""Ranks and Holm's correction: against another package, by hand, and by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import flips, holm, mcnemar, ranks

RUNS = 1000
MARGIN = 3 * math.sqrt(0.05 * 0.95 / RUNS)
"""Three standard errors of a share of 5 % in as many runs."""


def rows(generator: np.random.Generator, means: list[float], n: int) -> np.ndarray:
    """Verdicts (row, sample) of rows with these accuracies; as on real boards, rows mostly fail on the same samples."""
    difficulty = generator.normal(size=n)
    threshold = np.array([[math.sqrt(2) * NormalDist().inv_cdf(mean)] for mean in means])
    return difficulty + generator.normal(size=(len(means), n)) < threshold


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_equals_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(0)
    for n in (1, 2, 5, 30):
        p_values = (generator.random(n) ** 4).round(3).tolist()  # small ones, ties and zeros among them
        assert holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))


@pytest.mark.parametrize("wrong", [[0.1, math.nan], [-0.1], [1.1]])
def test_p_values_lie_between_0_and_1(wrong: list[float]) -> None:
    with pytest.raises(InputError, match="p values lie between 0 and 1"):
        holm(wrong)


def test_ranks_are_what_the_pairs_say() -> None:
    """The same, pair by pair, from the functions that compare two rows."""
    robust = rows(np.random.default_rng(0), [0.3, 0.5, 0.4, 0.42, 0.7, 0.5], 300)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    adjusted = holm([mcnemar(flips(robust[i], robust[j])) for i, j in pairs])
    expected = [1] * 6
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p < 0.05:
            expected[i if robust[i].sum() < robust[j].sum() else j] += 1
    assert ranks(robust, 0.05) == expected
    assert expected[4] == 1
    assert expected[0] > 2


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_row_is_never_below_one_that_is_not_above_it(k: int, n: int, seed: int) -> None:
    robust = np.random.default_rng(seed).random((k, n)) < 0.5
    robust[-1] = robust[0]
    found = ranks(robust, 0.5)
    counts = robust.sum(1)
    assert found[-1] == found[0]
    assert all(1 <= rank <= 1 + (counts > own).sum() for rank, own in zip(found, counts, strict=True))


def test_few_rows() -> None:
    assert ranks(np.zeros((0, 0), bool), 0.05) == []
    assert ranks(np.ones((1, 5), bool), 0.05) == [1]
    assert ranks(np.ones((3, 5), bool), 0.05) == [1, 1, 1]
    assert ranks(np.array([[False] * 6, [True] * 6]), 0.05) == [2, 1]  # p = 1/32
    assert ranks(np.array([[False] * 5, [True] * 5]), 0.05) == [1, 1]  # p = 1/16


@pytest.mark.parametrize("wrong", [np.ones((2, 0), bool), np.ones((2, 3)), np.ones(3, bool)])
def test_what_ranks_cannot_come_from(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"ranks come from a bool array \(row, sample\), got"):
        ranks(wrong, 0.05)
    with pytest.raises(InputError, match="alpha lies between 0 and 1"):
        ranks(np.ones((2, 3), bool), 5)


def test_equal_rows_seldom_get_different_ranks() -> None:
    generator = np.random.default_rng(11)
    boards = [rows(generator, [0.4] * 8, 400) for _ in range(RUNS)]
    assert np.mean([max(ranks(board, 0.05)) > 1 for board in boards]) <= 0.05 + MARGIN
    uncorrected = [any(mcnemar(flips(board[0], other)) < 0.05 for other in board[1:]) for board in boards[:300]]
    assert np.mean(uncorrected) > 0.1  # without Holm's correction it would be far more


def test_groups_of_equal_rows_seldom_get_different_ranks_inside() -> None:
    """The hardest case for a correction: some differences are real, and those between equals must still not show."""
    generator = np.random.default_rng(12)
    found = [ranks(rows(generator, [0.6] * 4 + [0.3] * 4, 400), 0.05) for _ in range(RUNS)]
    assert np.mean([max(rank[:4]) > 1 or max(rank[4:]) > 5 for rank in found]) <= 0.05 + MARGIN
    assert np.mean([rank == [1] * 4 + [5] * 4 for rank in found]) > 0.9


def test_real_differences_show() -> None:
    generator = np.random.default_rng(13)
    found = [ranks(rows(generator, [0.5, 0.44], 2000), 0.05) for _ in range(200)]
    assert np.mean([rank == [1, 2] for rank in found]) > 0.9
