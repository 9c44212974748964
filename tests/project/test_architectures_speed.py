"""The page on the architectures' speed, and what it counts."""

from __future__ import annotations

import json

import pytest

from benchmarks import architectures
from benchmarks.architectures import BASE, GOALS, REPORT, RESULTS, macs, measure, report


@pytest.fixture
def found():
    """Made-up times: T2T takes 1.1 times what its MACs predict, dropping tokens saves a half."""
    times = {BASE: [1.0, 2.0], "t2t_vit_14": [1.144, 2.288], "evit_small, keep 1.0": [1.0, 2.0]}
    times["evit_small, keep 0.7"] = [0.5, 1.0]
    multiplications = {BASE: 100, "t2t_vit_14": 104, "evit_small, keep 1.0": 100, "evit_small, keep 0.7": 66}
    models = {
        label: {"macs": multiplications[label], "parameters": 5, "seconds": seconds} for label, seconds in times.items()
    }
    return {"machine": "a CPU", "batch": 2, "rounds": 2, "models": models}


def test_ratios_are_of_each_round(found):
    assert [goal.ratios(found) for goal in GOALS] == [pytest.approx([1.1, 1.1]), [2.0, 2.0]]


def test_the_page_says_whether_goals_are_reached(found):
    page = report(found)
    assert "1.10 (1.10 to 1.10), goal ≤ 1.15: reached" in page
    assert "2.00 (2.00 to 2.00), goal ≥ 1.35: reached" in page
    assert "| t2t_vit_14 | 5 | 0.00 | 1.2 | 1.14 (1.14 to 1.14) | 1.10 |" in page
    found["models"]["evit_small, keep 0.7"]["seconds"] = [0.9, 1.8]
    assert "1.11 (1.11 to 1.11), goal ≥ 1.35: missed" in report(found)


def test_models_that_are_not_there_are_left_out(found, monkeypatch):
    del found["models"]["evit_small, keep 0.7"]
    assert "goal ≥ 1.35" not in report(found)
    monkeypatch.setattr(architectures, "MODELS", {BASE: ("no_such_model", {})})
    assert measure()["models"] == {}


def test_what_is_counted():
    assert macs("deit_small_patch16_224", {}) == pytest.approx(4.5989e9, rel=1e-4)
    taken = measure([BASE], batch=1, rounds=1)["models"][BASE]
    assert taken["parameters"] == 22_050_664
    assert len(taken["seconds"]) == 1


def test_the_committed_page_is_fresh():
    if not RESULTS.is_file():
        pytest.skip("nothing measured yet; `python -m benchmarks.architectures` does it")
    assert REPORT.read_text(encoding="utf-8") == report(json.loads(RESULTS.read_text()))
