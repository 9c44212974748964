"""The simulation behind docs/sequential.md: it decides as DropTest does, and the page has what it finds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sequential import ALPHA, REPORT, Case, cases, fixed_until_narrow, row, simulate
from robustbench_vit.statistics import Decision, DropTest


@pytest.fixture
def page() -> str:
    if not REPORT.is_file():
        pytest.skip("no committed report; `python -m benchmarks.sequential` makes it")
    return Path(REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize("case", [Case(0.05, 0.01, 0.0), Case(0.05, 0.1, 0.1)])
def test_the_page_has_what_the_simulation_finds(page: str, case: Case) -> None:
    assert row(case, simulate(case)) in page.splitlines()


def test_the_page_has_every_case_and_its_errors_are_as_rare_as_promised(page: str) -> None:
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.count("|") == 10][2:]
    assert len(lines) == len(cases())
    for max_drop, _, drop, worse, not_worse, *_ in ([cell.strip() for cell in line] for line in lines):
        if float(drop) == 0:
            assert float(worse) < 6.5
        if float(drop) >= float(max_drop):
            assert float(not_worse) < 6.5
    assert len(re.findall("at most [0-9.]+ %", page)) == 2


def test_the_simulation_decides_as_the_test_does() -> None:
    case = Case(0.05, 0.1, 0.1)
    result = simulate(case, runs=300)
    generator = np.random.default_rng(1)
    ends = []
    for _ in range(300):
        test = DropTest(case.max_drop, ALPHA)
        while test.decision is None:
            test = test.take(generator.random() < 0.1, False)
        ends.append(test)
    assert np.mean([test.decision is Decision.WORSE for test in ends]) == pytest.approx(result.worse, abs=0.02)
    assert np.mean([test.n for test in ends]) == pytest.approx(result.samples.mean(), rel=0.12)


def test_samples_of_a_fixed_number() -> None:
    assert fixed_until_narrow(0.5) == pytest.approx(2398, abs=4)
    assert Case(0.02, 0.1, 0.02).fixed is None
