"""The verdict that outcomes alone allow, and the tests behind it."""

from __future__ import annotations

import math

import pytest

from robustbench_vit.attacks.rows import Access
from robustbench_vit.diagnostics.reliability import LaneAccess
from robustbench_vit.diagnostics.reliability.grading import Limits, binomial_tail, grade_breaks
from robustbench_vit.diagnostics.reliability.lanes import scores_beat_gradients
from robustbench_vit.errors import InputError
from robustbench_vit.records import Outcome, Status
from robustbench_vit.records.reliability import Evidence

CE, SQUARE = LaneAccess("apgd-ce", Access.GRADIENT), LaneAccess("square", Access.SCORES)
BOUNDARY = LaneAccess("boundary", Access.DECISIONS)


def outcomes(survived: int, by: dict[str, int], backwards: int = 1000) -> list[Outcome]:
    """So many survivors, and so many samples broken by each lane."""
    kinds = [(Status.SURVIVED, None)] * survived + [(Status.BROKEN, lane) for lane, n in by.items() for _ in range(n)]
    kinds += [(Status.MISCLASSIFIED, None)] * 5
    return [
        Outcome(f"s{i}", "a", "linf", 0.1, "untargeted", status, by=lane, backwards=backwards)
        for i, (status, lane) in enumerate(kinds)
    ]


def test_binomial_tail_equals_the_sum_over_subsets():
    exact = sum(math.comb(12, k) * 0.3**k * 0.7 ** (12 - k) for k in range(5, 13))
    assert binomial_tail(5, 12, 0.3) == pytest.approx(exact, rel=1e-12)
    assert binomial_tail(0, 7, 0.02) == pytest.approx(1)
    assert binomial_tail(7, 7, 0.02) == pytest.approx(0.02**7)
    assert binomial_tail(0, 0, 0.02) == 1


@pytest.mark.parametrize(("k", "n", "rate"), [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_binomial_tail_refuses_what_is_no_count(k, n, rate):
    with pytest.raises(InputError, match="no binomial tail"):
        binomial_tail(k, n, rate)


def test_a_few_breaks_are_no_evidence_however_unlikely():
    assert grade_breaks(2, 2)[0] is Evidence.NONE
    assert grade_breaks(3, 3)[0] is Evidence.STRONG
    assert grade_breaks(6, 300)[0] is Evidence.NONE


def test_limits_need_three_samples():
    assert Limits(0.1, 0.5).grade(2, 2) is Evidence.NONE
    assert Limits(0.1, 0.5).grade(3, 31) is Evidence.NONE
    assert Limits(0.1, 0.5).grade(3, 30) is Evidence.WEAK
    assert Limits(0.1, 0.5).grade(15, 30) is Evidence.STRONG


@pytest.mark.parametrize(
    ("survived", "square", "expected"),
    [
        (309, 1, Evidence.NONE),  # an adversarially trained ViT
        (301, 0, Evidence.NONE),
        (0, 2, Evidence.NONE),
        (270, 15, Evidence.WEAK),
        (109, 19, Evidence.STRONG),  # a convex-trained net on MNIST at eps .15: 19 of 128 after all gradient lanes
    ],
)
def test_what_square_breaks_after_gradients_is_tested(survived, square, expected):
    reason = scores_beat_gradients(outcomes(survived, {"apgd-ce": 40, "square": square}), [CE, SQUARE])
    assert reason.evidence is expected
    assert reason.values["broken"] == square
    assert reason.values["left"] == survived + square
    assert (reason.advice is not None) is (expected is not Evidence.NONE)


def test_decisions_count_like_scores():
    reason = scores_beat_gradients(outcomes(50, {"square": 4, "boundary": 16}), [CE, SQUARE, BOUNDARY])
    assert reason.evidence is Evidence.STRONG
    assert "square, boundary broke 20 of 70" in reason.message


@pytest.mark.parametrize("lanes", [[SQUARE], [SQUARE, CE], [CE], []])
def test_without_a_lane_to_compare_nothing_is_said(lanes):
    assert scores_beat_gradients(outcomes(10, {"square": 90}), lanes).evidence is None


def test_a_weak_gradient_lane_is_no_evidence_against_the_model():
    """FGSM leaves much to Square on every model."""
    reason = scores_beat_gradients(outcomes(50, {"square": 50}, backwards=1), [CE, SQUARE])
    assert reason.evidence is Evidence.NONE
    assert "weak attack" in reason.message
    assert reason.advice is not None


def test_nothing_left_is_no_evidence():
    assert scores_beat_gradients(outcomes(0, {"apgd-ce": 90}), [CE, SQUARE]).evidence is Evidence.NONE
