"""Lanes in order: equal verdicts for any width, order and interruption; batch lanes; kinds that don't run yet."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import StrictInt
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Cost
from robustbench_vit.cards import AlgorithmCard
from robustbench_vit.data import Dataset
from robustbench_vit.errors import CardError, InputError
from robustbench_vit.records import Record

EPS = 0.06
WORDS = {"version": 1, "about": "a test", "reference": "none"}


def dataset(samples: Any, n: int | None = None) -> Dataset:
    x, y = samples.x.numpy().astype(np.float32), samples.y.numpy().copy()
    y[3] = (y[3] + 1) % 5  # one sample is wrong from the start
    return Dataset("made", "test", x, y, samples.ids, "0" * 64, "none", 5).first(n)


def evaluate(model: nn.Module, data: Dataset, **options: Any) -> Record:
    """A short autoattack: four steps, two targets, forty queries."""
    return rbv.evaluate(model, data, **{"attack": "autoattack", "eps": EPS, "smoke": True, **options})


@pytest.fixture(scope="module")
def whole(model, samples) -> Record:
    """The uninterrupted evaluation."""
    return evaluate(model, dataset(samples))


def by_sample(record: Record) -> dict[str, Any]:
    return {outcome.sample: outcome for outcome in record.outcomes}


def test_the_example_has_every_kind_of_outcome(whole):
    assert {"misclassified", "robust", "apgd-ce"} < set(whole.verdicts)
    assert len(set(whole.verdicts)) >= 4


@pytest.mark.parametrize("width", [1, 8, 16, 64, 256])
def test_widths_change_nothing(model, samples, whole, width):
    assert evaluate(model, dataset(samples), width=width).outcomes == whole.outcomes


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_samples_changes_nothing(model, samples, whole, seed):
    data, order = dataset(samples), list(range(20))
    random.Random(seed).shuffle(order)
    ids = tuple(data.sample_ids[i] for i in order)
    shuffled = dataclasses.replace(data, x=data.x[order], y=data.y[order], sample_ids=ids)
    record = evaluate(model, shuffled, width=16)
    assert by_sample(record) == by_sample(whole)
    assert torch.equal(record.adversarials, whole.adversarials[order])


def test_another_seed_draws_otherwise(model, samples, whole):
    other = evaluate(model, dataset(samples), seed=1)
    assert other.verdicts.count("misclassified") == whole.verdicts.count("misclassified") == 1
    assert not torch.equal(other.adversarials, whole.adversarials)


def test_a_later_lane_s_outcomes_are_those_of_the_lane_alone(model, samples, whole):
    alone = by_sample(evaluate(model, dataset(samples), attack="square"))
    for outcome in whole.outcomes:
        if outcome.by == "square" or outcome.verdict == "robust":
            assert alone[outcome.sample].verdict == outcome.verdict
            assert alone[outcome.sample].distance == outcome.distance


def test_survivors_and_passes_add_up(whole):
    survivors = whole.survivors("autoattack", EPS)
    assert list(survivors) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(survivors.values()) == sorted(survivors.values(), reverse=True)
    assert list(survivors.values())[-1] == whole.verdicts.count("robust") == round(whole.robust_accuracy * 20)
    robust = [o for o in whole.outcomes if o.verdict == "robust"]
    # 1 clean, 5 apgd-ce, 2 · 5 apgd-t, 2 · 2 · 4 fab-t; square asks at most 41 times
    assert all(1 + 5 + 10 + 16 < o.forwards <= 1 + 5 + 10 + 16 + 41 for o in robust)
    assert {o.backwards for o in robust} == {5 + 10 + 8}
    assert {o.forwards for o in whole.outcomes if o.verdict == "misclassified"} == {1}


def test_curves_share_their_draws_and_larger_radii_break_more(model, samples, whole):
    curve = evaluate(model, dataset(samples), eps=[EPS / 2, EPS, 2 * EPS])
    assert curve.at(eps=EPS).outcomes == whole.outcomes
    accuracies = [curve.at(eps=e).robust_accuracy for e in (EPS / 2, EPS, 2 * EPS)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[2]
    with pytest.raises(InputError, match="several attacks or budgets"):
        _ = curve.robust_accuracy


class Interrupted(Exception):
    """What stops a run in these tests."""


def stop_after(batches: int) -> Any:
    """A watcher that lets so many batches pass."""
    left = iter(range(batches))

    def watch(batch: Any, progress: Any) -> None:
        if next(left, None) is None:
            raise Interrupted

    return watch


@pytest.mark.parametrize("batches", [0, 1, 2, 5, 8, 13, 30, 40])
def test_an_interrupted_run_goes_on_where_it_was(model, samples, whole, tmp_path, batches):
    data = dataset(samples)
    with pytest.raises(Interrupted):
        evaluate(model, data, out=tmp_path, width=16, watch=stop_after(batches))
    assert all(p.requires_grad for p in model.parameters()), "an interruption must not leave the model frozen"
    again = evaluate(model, data, out=tmp_path, width=64)  # a row that ran twice would be an error of the journal
    assert again.outcomes == whole.outcomes
    assert torch.equal(again.adversarials, whole.adversarials)


def test_a_run_may_be_interrupted_time_and_again(model, samples, whole, tmp_path):
    for batches in range(3, 100, 6):
        try:
            record = evaluate(model, dataset(samples), out=tmp_path, width=64, watch=stop_after(batches))
        except Interrupted:
            continue
        assert record.outcomes == whole.outcomes
        return
    pytest.fail("it never came to its end")


def test_a_finished_run_asks_the_model_about_the_intake_only(model, samples, whole, tmp_path):
    data, calls = dataset(samples), []
    evaluate(model, data, out=tmp_path)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert evaluate(model, data, out=tmp_path).outcomes == whole.outcomes
    finally:
        handle.remove()
    assert 0 < len(calls) < 40


def test_more_samples_reuse_what_fewer_left(model, samples, whole, tmp_path):
    first = evaluate(model, dataset(samples, 9), out=tmp_path)
    assert first.outcomes == whole.outcomes[:9]
    batches = []
    record = evaluate(model, dataset(samples), out=tmp_path, watch=lambda batch, _: batches.append(batch))
    assert record.outcomes == whole.outcomes
    ran = {row.key.sample for batch in batches for row in batch.rows} | {c.sample for b in batches for c in b.clean}
    assert ran == set(samples.ids[9:])


@settings
class Nudge:
    """A whole-batch attack: the first sample of a chunk is left alone, the others get a fixed pattern."""

    lane: ClassVar[str] = "batch"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    algorithm_version: ClassVar[int] = 1

    norm: NormName
    chunk: StrictInt

    def cost(self, num_classes: int) -> Cost:
        return Cost(1, 0)

    def run(self, model: Any, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        SEEN.append(len(x))
        shown = x.clone().requires_grad_()
        logits = model(shown)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), shown)
        moved = (x + eps * grad.sign()).clamp(0, 1)
        moved[0] = x[0]
        return moved


@settings
class Fitted(Nudge):
    """An attack whose kind of lane doesn't exist yet."""

    lane: ClassVar[str] = "fitted"


SEEN: list[int] = []


@pytest.fixture
def nudge() -> Iterator[None]:
    """The attacks above, known while a test runs."""
    algorithms.register("nudge", Nudge)
    algorithms.register("fitted", Fitted)
    SEEN.clear()
    yield
    del algorithms._values["nudge"], algorithms._values["fitted"]


def card(algorithm: str, **fields: Any) -> AlgorithmCard:
    return AlgorithmCard(**WORDS, algorithm=algorithm, **fields)


def test_a_batch_lane_hands_over_fixed_chunks_in_sample_order(nudge, model, samples):
    data = dataset(samples)
    record = rbv.evaluate(model, data, attack=card("nudge", chunk=6), eps=0.3)
    assert SEEN == [6, 6, 6, 1], "nineteen correct samples"
    correct = [i for i in range(20) if i != 3]
    alone = [record.verdicts[i] for i in correct[::6]]
    assert alone == ["robust"] * 4, "the first of every chunk was left alone"
    assert record.verdicts.count("nudge") > 10
    assert {o.forwards for o in record.outcomes if o.sample != "sample 3"} == {1 + 1 + 1}
    assert {o.backwards for o in record.outcomes if o.sample != "sample 3"} == {1}


def test_a_batch_lane_resumes_chunk_by_chunk(nudge, model, samples, tmp_path):
    data, attack = dataset(samples), card("nudge", chunk=6)
    whole = rbv.evaluate(model, data, attack=attack, eps=0.3)
    SEEN.clear()
    with pytest.raises(Interrupted):
        rbv.evaluate(model, data, attack=attack, eps=0.3, out=tmp_path, watch=stop_after(2))
    rest = rbv.evaluate(model, data, attack=attack, eps=0.3, out=tmp_path)
    assert SEEN == [6, 6, 6, 1], "no chunk ran twice"
    assert rest.outcomes == whole.outcomes


def test_a_batch_lane_on_more_samples_keeps_what_fewer_left(nudge, model, samples, tmp_path):
    attack = card("nudge", chunk=6)
    first = rbv.evaluate(model, dataset(samples, 9), attack=attack, eps=0.3, out=tmp_path)
    assert SEEN == [6, 2]
    more = rbv.evaluate(model, dataset(samples), attack=attack, eps=0.3, out=tmp_path)
    assert SEEN == [6, 2, 6, 6, 1]
    assert more.outcomes[:9] == first.outcomes


def test_lanes_of_a_kind_that_does_not_exist_yet_are_refused(nudge, model, samples):
    with pytest.raises(InputError, match=r"^<card>: lanes of kind 'fitted' don't run yet$"):
        rbv.evaluate(model, dataset(samples), attack=card("fitted", chunk=2))


def test_norms_an_algorithm_does_not_know_are_refused(nudge, model, samples):
    with pytest.raises(CardError, match=r"^<card>: algorithm 'nudge' works in linf, not in l2$"):
        rbv.evaluate(model, dataset(samples), attack=card("nudge", chunk=2), norm="l2", eps=0.5)


def test_the_authors_autoattack_runs_in_a_batch_lane(model, samples):
    reference = pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
    data = dataset(samples, 12)
    theirs = card("pyautoattack", attacks=["apgd-ce"], package="0.2.0", chunk=5)
    record = rbv.evaluate(model, data, attack=theirs, eps=EPS, seed=3)

    correct = [i for i in range(12) if i != 3]
    expected = torch.from_numpy(data.x.copy())
    for begin in range(0, len(correct), 5):
        chunk = correct[begin : begin + 5]
        x, y = torch.from_numpy(data.x[chunk]), torch.from_numpy(data.y[chunk])
        attack = reference.AutoAttack(model, norm="Linf", eps=EPS, version="standard", seed=3)
        attack.attacks_to_run = ["apgd-ce"]
        expected[chunk] = attack.run_standard_evaluation(x, y, batch_size=5)[0]
    assert torch.equal(record.adversarials, expected)
    assert {"robust", "pyautoattack"} <= set(record.verdicts)
    ours = by_sample(rbv.evaluate(model, data, attack="apgd-ce", eps=EPS))
    differing = sum(ours[o.sample].robust != o.robust for o in record.outcomes)
    assert differing <= 2
    robust = [o for o in record.outcomes if o.verdict == "robust"]
    assert all(o.forwards > 100 and o.backwards > 100 for o in robust)


def test_another_release_of_the_reference_is_refused(model, samples):
    pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
    theirs = card("pyautoattack", attacks=["apgd-ce"], package="0.1.0", chunk=5)
    with pytest.raises(InputError, match=r"the card asks for pyautoattack 0\.1\.0, installed is "):
        rbv.evaluate(model, dataset(samples), attack=theirs, eps=EPS)


def test_a_journal_of_another_seed_is_not_mixed_in(model, samples, tmp_path: Path):
    evaluate(model, dataset(samples, 5), out=tmp_path, seed=0)
    batches = []
    evaluate(model, dataset(samples, 5), out=tmp_path, seed=1, watch=lambda batch, _: batches.append(batch))
    assert sum(len(batch.clean) for batch in batches) == 5
