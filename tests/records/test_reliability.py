"""Verdicts: how grades combine, the line for tables, and the way through JSON."""

from __future__ import annotations

import json

import pytest

from robustbench_vit.errors import InputError
from robustbench_vit.records.reliability import Evidence, Reason, Reliability, combined

NONE = Reason("vanishing-gradients", Evidence.NONE, "fine", values={"vanishing": 0})
WEAK = Reason("loss-rises", Evidence.WEAK, "flat", "use BPDA", {"flat": 7, "probes": 64})
STRONG = Reason("large-eps", Evidence.STRONG, "stands", "use BPDA")
IDLE = Reason("transfer", None, "no surrogate was given")


def verdict(*reasons: Reason) -> Reliability:
    return Reliability(combined(reasons), reasons, {"forwards": 10, "backwards": 4}, 0.5)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ((), Evidence.NONE),
        ((NONE, IDLE), Evidence.NONE),
        ((NONE, WEAK), Evidence.WEAK),
        ((WEAK, WEAK), Evidence.WEAK),
        ((WEAK, WEAK, WEAK), Evidence.STRONG),
        ((NONE, STRONG, WEAK), Evidence.STRONG),
    ],
)
def test_grades_combine(reasons, expected):
    assert combined(reasons) is expected


def test_the_flag_names_the_strongest_checks_and_counts_the_rest():
    assert verdict(NONE, IDLE).flag == ""
    assert verdict(NONE, WEAK).flag == "weak: loss-rises"
    assert verdict(WEAK, STRONG).flag == "strong: large-eps, loss-rises"
    assert verdict(WEAK, STRONG, WEAK).flag == "strong: large-eps, loss-rises +1"


def test_advice_comes_once_per_sentence_and_only_from_evidence():
    given = Reason("saturated-logits", Evidence.NONE, "fine", "do nothing")
    assert verdict(WEAK, STRONG, given).advice == ("use BPDA",)
    assert verdict(NONE, given).advice == ()


def test_a_verdict_survives_json():
    before = verdict(NONE, WEAK, STRONG, IDLE)
    assert Reliability.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False))) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("evidence", "certain"), ("reasons", [{"check": "x"}]), ("reasons", None), ("passes", []), ("seconds", "fast")],
)
def test_a_damaged_verdict_is_refused(field, value):
    raw = {**verdict(WEAK).to_dict(), field: value}
    with pytest.raises(InputError, match="damaged reliability verdict"):
        Reliability.from_dict(raw)


def test_a_verdict_without_a_field_is_refused():
    raw = verdict(WEAK).to_dict()
    del raw["passes"]
    with pytest.raises(InputError, match="passes"):
        Reliability.from_dict(raw)
