"""Worse, not worse, undecided: which is concluded when, and what an item says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vit.comparing import Comparison, Conclusion, Flipped, Item
from robustbench_vit.comparing.judge import compare, conclude, least_for_not_worse, least_for_worse
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Judgement, Record, Reliability
from robustbench_vit.statistics import Flips, drop_interval, holm, mcnemar, samples_to_decide, wilson
from tests.comparing.made import COMMITTED, letters, make_record, source

WORSE, NOT_WORSE, UNDECIDED = Conclusion.WORSE, Conclusion.NOT_WORSE, Conclusion.UNDECIDED


def compared(before: Record, after: Record, max_drop: float = 0.02, alpha: float = 0.05) -> Comparison:
    return compare(source(before), source(after), max_drop, alpha)


def item(lost: int, gained: int, n: int, max_drop: float = 0.02, alpha: float = 0.05) -> Item:
    """The only item of two records that flip so often."""
    before, after = letters(lost, gained, n)
    (found,) = compared(make_record(before), make_record(after, weights="bb"), max_drop, alpha).items
    return found


@pytest.mark.parametrize(
    ("lost", "gained", "n", "conclusion"),
    [
        (31, 5, 500, WORSE),  # a drop of 5.2 points, p = 1e-5
        (400, 0, 400, WORSE),  # all flipped
        (10, 0, 10, WORSE),  # few samples, but p = 0.002
        (0, 0, 500, NOT_WORSE),  # nothing flipped: the interval ends at 0.8 points
        (0, 400, 400, NOT_WORSE),
        (7, 51, 500, NOT_WORSE),
        (12, 2, 2000, NOT_WORSE),  # significant, but far less than 2 points
        (20, 14, 500, UNDECIDED),  # 1.2 points, at most 3.6
        (16, 4, 500, WORSE),  # 2.4 points, p = 0.01, though less than 2 points isn't excluded
        (14, 3, 500, WORSE),
        (12, 2, 500, UNDECIDED),  # significant, but just 2 points
        (0, 0, 100, UNDECIDED),  # too few, even without a flip
        (1, 0, 1, UNDECIDED),
        (0, 0, 1, UNDECIDED),
        (0, 1, 1, UNDECIDED),
    ],
)
def test_each_conclusion(lost: int, gained: int, n: int, conclusion: Conclusion) -> None:
    flips = Flips(lost, gained, n)
    found = item(lost, gained, n)
    assert found.conclusion is conclusion
    assert found.flips == flips
    assert found.drop == (lost - gained) / n
    assert found.drop_interval == drop_interval(flips, 0.95)
    assert found.p == mcnemar(flips)
    assert found.p_adjusted == found.p


def test_an_item_tells_both_sides() -> None:
    before = make_record("rrrbbm", weights="aa")
    after = make_record("rbmrbr", weights="bb", by="other")
    (found,) = compared(before, after).items
    assert (found.baseline.robust, found.baseline.correct, found.baseline.n) == (3, 5, 6)
    assert (found.candidate.robust, found.candidate.correct, found.candidate.of) == (3, 5, 6)
    assert found.baseline.interval == wilson(3, 6, 0.95)
    assert found.candidate.clean_accuracy == 5 / 6
    assert found.lost == (Flipped("made:1", "robust", "other"), Flipped("made:2", "robust", "misclassified"))
    assert found.gained == (Flipped("made:3", "lane", "robust"), Flipped("made:5", "misclassified", "robust"))
    assert (found.baseline.weights_sha256, found.candidate.weights_sha256) == ("aa", "bb")
    assert not found.equal_weights


def test_alpha_moves_the_interval_and_the_level() -> None:
    assert item(10, 2, 200, alpha=0.05).conclusion is WORSE
    assert item(10, 2, 200, alpha=0.01).conclusion is UNDECIDED
    assert item(10, 2, 200, alpha=0.01).drop_interval == drop_interval(Flips(10, 2, 200), 0.99)


def test_max_drop_is_what_may_be_lost() -> None:
    assert item(31, 5, 500, max_drop=0.02).conclusion is WORSE
    assert item(31, 5, 500, max_drop=0.06).conclusion is UNDECIDED
    assert item(31, 5, 500, max_drop=0.1).conclusion is NOT_WORSE


def test_undecided_says_how_many_samples_would_do() -> None:
    found = item(20, 14, 500)
    assert found.samples_to_decide == samples_to_decide(Flips(20, 14, 500), 0.02, 0.05)
    assert item(12, 2, 500).samples_to_decide is None  # the drop is exactly the largest admitted one
    assert item(0, 0, 500).samples_to_decide is None  # decided


def test_significance_is_adjusted_over_everything_compared_at_once() -> None:
    lost, gained, n = 15, 4, 200
    p = mcnemar(Flips(lost, gained, n))
    assert 0.01 < p < 0.05
    alone = item(lost, gained, n)
    before, after = letters(lost, gained, n)
    names = "abcdef"
    quiet = [make_record("rb" * (n // 2), name) for name in names]
    found = compare(
        source(make_record(before, "net"), *quiet), source(make_record(after, "net", weights="bb"), *quiet)
    ).items[0]
    assert alone.conclusion is WORSE
    assert found.p == alone.p
    assert found.p_adjusted == pytest.approx(7 * p)
    assert found.conclusion is UNDECIDED
    assert found.samples_to_decide == samples_to_decide(Flips(lost, gained, n), 0.02, 0.05 / 7)


def test_every_attack_and_eps_is_an_item() -> None:
    record = make_record("rb", attacks=("fgsm", "cascade"), eps=(0.1, 0.2))
    found = compared(record, record).items
    assert [(i.attack, i.eps, i.norm, i.criterion) for i in found] == [
        (attack, eps, "linf", "untargeted") for attack in ("fgsm", "cascade") for eps in (0.1, 0.2)
    ]


def test_of_a_model_that_answers_at_random_the_headline_is_judged() -> None:
    def record(untargeted: str, majority: str) -> Record:
        first = make_record(untargeted, policy="B")
        others = [dataclasses.replace(o, criterion="majority") for o in make_record(majority).outcomes]
        return dataclasses.replace(first, outcomes=(*first.outcomes, *others))

    (found,) = compared(record("rrr", "bbb"), record("rrb", "bbb")).items
    assert (found.criterion, found.flips) == ("untargeted", Flips(1, 0, 3))


def test_only_shared_samples_count_in_whatever_order() -> None:
    before = make_record("rrrrbb")  # made:0 to made:5
    after = make_record("bbrr", first=2)  # made:2 to made:5
    turned = dataclasses.replace(after, outcomes=tuple(reversed(list(after.outcomes))))
    for candidate in (after, turned):
        (found,) = compared(before, candidate).items
        assert found.flips == Flips(2, 2, 4)
        assert [flip.sample for flip in found.lost] == ["made:2", "made:3"]
        assert (found.baseline.of, found.candidate.of, found.baseline.n) == (6, 4, 4)
        assert "compared on 4 shared samples, of 6 in the baseline and 4 in the candidate" in found.notes


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (1, "n = 1 is too small to decide anything: 'not worse' takes 189 even without a flip, 'worse' takes 6"),
        (5, "n = 5 is too small to decide anything: 'not worse' takes 189 even without a flip, 'worse' takes 6"),
        (6, "n = 6 is too small for 'not worse': it takes 189 samples even without a flip"),
        (188, "n = 188 is too small for 'not worse': it takes 189 samples even without a flip"),
    ],
)
def test_too_few_samples_are_called_that(n: int, said: str) -> None:
    found = item(0, 0, n)
    assert (found.conclusion, found.notes) == (UNDECIDED, (said,))
    assert found.samples_to_decide is not None
    assert found.samples_to_decide >= 189


def test_from_the_least_number_of_samples_on_it_can_be_decided() -> None:
    assert least_for_not_worse(0.02, 0.05) == 189  # z² (1 - d) / d, rounded up
    assert item(0, 0, 189).conclusion is NOT_WORSE
    assert item(0, 0, 189).notes == ()
    assert least_for_worse(0.05) == 6
    assert item(6, 0, 6).conclusion is WORSE
    assert item(5, 0, 5).conclusion is UNDECIDED
    assert least_for_worse(0.05, comparisons=20) == 10


@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n))),
    st.floats(0.001, 0.5),
    st.floats(0.001, 0.4),
)
@settings(max_examples=150, deadline=None)
def test_worse_and_not_worse_exclude_each_other(counts: tuple[int, int, int], max_drop: float, alpha: float) -> None:
    lost, gained, n = counts[0], min(counts[1], counts[2] - counts[0]), counts[2]
    flips = Flips(lost, gained, n)
    found = conclude(flips, mcnemar(flips), max_drop, alpha)
    excluded = drop_interval(flips, 1 - alpha)[1] < max_drop
    significant = mcnemar(flips) < alpha and flips.drop > max_drop
    assert not (excluded and significant)
    assert (found is NOT_WORSE) == excluded
    assert (found is WORSE) == significant


@given(st.lists(st.tuples(st.sampled_from("rbm"), st.sampled_from("rbm")), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_swapping_the_sides_turns_everything_round(pairs: list[tuple[str, str]]) -> None:
    before = make_record("".join(left for left, _ in pairs))
    after = make_record("".join(right for _, right in pairs), weights="bb")
    (there,), (back,) = compared(before, after).items, compared(after, before).items
    assert back.drop == -there.drop
    assert back.p == there.p
    assert back.drop_interval == pytest.approx([-bound for bound in reversed(there.drop_interval)], abs=1e-9)
    assert [flip.sample for flip in back.lost] == [flip.sample for flip in there.gained]
    assert (back.baseline.robust, back.candidate.robust) == (there.candidate.robust, there.baseline.robust)
    assert not (there.conclusion is WORSE and back.conclusion is WORSE)


def drawn(lost: float, gained: float, n: int, times: int) -> list[Flips]:
    """Flips of so many comparisons of n samples, at these rates."""
    counts = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], times)
    return [Flips(int(down), int(up), n) for down, up, _ in counts]


def test_few_are_called_worse_when_nothing_changed() -> None:
    """Of boards of ten entries whose samples flip either way alike, at most alpha have anything that is worse."""
    flips, boards = drawn(0.04, 0.04, 500, 10 * 1000), 1000
    alarms = 0
    for i in range(boards):
        board = flips[10 * i : 10 * (i + 1)]
        adjusted = holm([mcnemar(each) for each in board])
        alarms += any(p < 0.05 and each.drop > 0.02 for p, each in zip(adjusted, board, strict=True))
    assert 0 < alarms / boards < 0.05


@pytest.mark.parametrize(("rate", "n"), [(0.02, 1000), (0.06, 1000), (0.06, 4000)])
def test_a_drop_of_max_drop_is_seldom_called_not_worse(rate: float, n: int) -> None:
    found = [conclude(flips, mcnemar(flips), 0.02, 0.05) for flips in drawn(rate + 0.01, rate - 0.01, n, 1000)]
    assert found.count(NOT_WORSE) / len(found) < 0.025 + 0.015  # alpha / 2, and what 1,000 draws leave open


@pytest.mark.parametrize(("lost", "gained"), [(0.04, 0.04), (0.08, 0.02)])
def test_with_as_many_samples_as_it_says_most_are_decided(lost: float, gained: float) -> None:
    n = 300
    needed = samples_to_decide(Flips(round(lost * n), round(gained * n), n), 0.02, 0.05)
    assert needed is not None
    found = [conclude(flips, mcnemar(flips), 0.02, 0.05) for flips in drawn(lost, gained, needed, 500)]
    assert 0.7 < 1 - found.count(UNDECIDED) / len(found) < 0.95


def test_the_comparison_is_as_bad_as_its_worst_item() -> None:
    good, bad, open_ = item(0, 0, 500), item(31, 5, 500), item(20, 14, 500)
    for items, conclusion, fails, strictly in [
        ((good,), NOT_WORSE, False, False),
        ((good, open_), UNDECIDED, False, True),
        ((open_, bad, good), WORSE, True, True),
        ((), NOT_WORSE, False, False),
    ]:
        found = Comparison("a", "b", 0.02, 0.05, items)
        assert found.conclusion is conclusion
        assert (found.failed(), found.failed(strict=True)) == (fails, strictly)
        assert sum(found.count(each) for each in Conclusion) == len(items)


def test_the_same_weights_with_other_verdicts_are_told() -> None:
    before = make_record("rrbb", provenance={"device": "cpu", "seed": 0, "date": "then"})
    after = make_record("rbbb", provenance={"device": "cuda", "seed": 0, "date": "now"})
    (found,) = compared(before, after).items
    assert found.equal_weights
    assert found.notes[0] == (
        'the weights are the same, yet 1 verdict differs: the code, the settings or the hardware changed (device: "cpu"'
        ' / "cuda")'
    )
    same = compared(before, before).items[0]
    assert same.equal_weights
    assert not any("weights" in note for note in same.notes)


def test_another_lane_that_breaks_a_sample_is_another_verdict() -> None:
    before, after = make_record("rb" * 100), make_record("rb" * 100, by="other")
    (found,) = compared(before, after).items
    assert found.notes == (
        "the weights are the same, yet 100 verdicts differ: the code, the settings or the hardware changed"
        " (the records name no difference)",
    )


def test_runs_that_stopped_by_what_they_found_are_told() -> None:
    record = make_record("rb" * 100, protocol={"profile": "until", "until": {"half_width": 0.02}})
    assert compared(record, record).items[0].notes == (
        "both runs stopped as soon as their accuracy was known well enough; p and interval hold approximately",
    )


def test_unknown_weights_are_not_equal() -> None:
    record = make_record("rb", weights=None)
    assert not compared(record, record).items[0].equal_weights


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (Evidence.NONE, Evidence.STRONG, True),
        (Evidence.WEAK, Evidence.STRONG, True),
        (None, Evidence.WEAK, True),
        (Evidence.STRONG, Evidence.STRONG, False),
        (Evidence.STRONG, Evidence.NONE, False),
        (Evidence.NONE, None, False),
    ],
)
def test_masked_gradients_in_the_candidate_are_told(
    before: Evidence | None, after: Evidence | None, told: bool
) -> None:
    def judged(evidence: Evidence | None) -> tuple[Judgement, ...]:
        if evidence is None:
            return ()
        reliability = Reliability(evidence, (), {"forwards": 0, "backwards": 0}, 0.0)
        return (Judgement("cascade", 0.1, reliability),)

    old, new = (make_record("rb" * 100, judgements=judged(evidence)) for evidence in (before, after))
    notes = compared(old, new).items[0].notes
    assert any("evidence of masked gradients in the candidate" in note for note in notes) is told


def test_what_has_nothing_to_lose_is_named() -> None:
    low, high = make_record("b" * 300, "low"), make_record("r" * 300, "high")
    found = compare(source(low, high), source(low, high))
    assert found.notes == (
        "2 % robust or less in the baseline, so that a larger drop is impossible: low under cascade",
    )
    assert compare(source(high), source(high)).notes == ()


@pytest.mark.parametrize(
    ("max_drop", "alpha", "message"),
    [
        (2, 0.05, "--max-drop is a share between 0 and 1, got 2; did you mean 0.02?"),
        (1, 0.05, "--max-drop is a share between 0 and 1, got 1; did you mean 0.01?"),
        (0, 0.05, "--max-drop is a share between 0 and 1, got 0"),
        (-0.1, 0.05, "--max-drop is a share between 0 and 1, got -0.1"),
        (float("nan"), 0.05, "--max-drop is a share between 0 and 1, got nan"),
        (0.02, 5, "--alpha is a share between 0 and 1, got 5; did you mean 0.05?"),
        (0.02, 500, "--alpha is a share between 0 and 1, got 500"),
    ],
)
def test_levels_are_shares(max_drop: float, alpha: float, message: str) -> None:
    with pytest.raises(InputError) as error:
        compared(make_record("rb"), make_record("rb"), max_drop, alpha)
    assert str(error.value) == message


def test_committed_records_against_each_other() -> None:
    plain, with_ic = (Record.load(COMMITTED / f"{name}.json") for name in ("cnn-pgd-at", "ic-cnn-pgd-at"))
    pgd, autoattack = compare(source(with_ic), source(dataclasses.replace(plain, entry=with_ic.entry))).items
    assert (pgd.attack, pgd.conclusion) == ("pgd-40", WORSE)
    assert (autoattack.attack, autoattack.conclusion) == ("autoattack", WORSE)
    assert autoattack.flips.n == 500
    assert autoattack.baseline.robust_accuracy == with_ic.at("autoattack").robust_accuracy
    assert autoattack.candidate.clean_accuracy == pytest.approx(plain.clean_accuracy)
    assert len(autoattack.lost) - len(autoattack.gained) == autoattack.baseline.robust - autoattack.candidate.robust
