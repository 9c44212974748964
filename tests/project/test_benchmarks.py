"""The statistics of the reports, and the committed numbers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.parity.report import REPORT, report
from benchmarks.parity.results import load
from benchmarks.parity.statistics import permutation_p


def test_permutation_p_is_one_without_disagreement():
    robust = np.array([0, 6, 6, 0])
    assert permutation_p(robust, robust // 2, per_side=3) == 1.0


def test_permutation_p_is_small_when_one_side_always_wins():
    robust = np.full(12, 3)
    assert permutation_p(robust, np.full(12, 3), per_side=3) < 0.001


def test_permutation_p_of_two_samples_equals_the_exact_one():
    """Two samples, each robust once in six verdicts, both times on our side: 2 of the 4 equally likely dealings are
    as lopsided (both on one side)."""
    assert permutation_p(np.array([1, 1]), np.array([1, 1]), per_side=3) == pytest.approx(0.5, abs=0.01)


def test_permutation_p_is_uniform_enough_under_the_hypothesis():
    generator = np.random.default_rng(1)
    robust = np.full(40, 3)
    ps = [permutation_p(robust, generator.hypergeometric(3, 3, 3, size=40), 3, seed=i) for i in range(60)]
    assert sum(p < 0.05 for p in ps) <= 8  # binomial(60, .05): more than 8 happens once in 500 times
    assert min(ps) < 0.3


def test_committed_parity_meets_both_criteria_and_its_page_is_fresh():
    if not REPORT.is_file():
        pytest.skip("no committed report; `python -m benchmarks.parity` makes it")
    page, holds = report(load())
    assert holds, page
    # The last lines name the machine and the packages of the run that made the page.
    assert REPORT.read_text(encoding="utf-8").split("Made with")[0] == page.split("Made with")[0]
