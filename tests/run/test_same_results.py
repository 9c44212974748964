"""Width, order, threads and workers change nothing in a record's outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_vit as rbv
from robustbench_vit.cards import open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights
from robustbench_vit.records import Outcome, Record

ENTRIES = {"digits_vit": "vit-pgd-at", "digits_cnn": "cnn-pgd-at", "digits_ic_cnn": "ic-cnn-standard"}
EPS = {"digits_vit": 0.1, "digits_cnn": 0.15, "digits_ic_cnn": 0.05}


def trained(name: str) -> nn.Module:
    """A model of the board digits-linf."""
    model = build_model(name, num_classes=10, in_chans=1)
    load_weights(model, builtin_layer() / "leaderboards" / "digits-linf" / "weights" / f"{ENTRIES[name]}.safetensors")
    return model.eval()


def evaluated(name: str, cards: Path, data: Dataset, width: int, seed: int = 0, attack: str = "short") -> Record:
    """The model under a shortened attack."""
    workspace = open_workspace(cards)
    return rbv.evaluate(trained(name), data, attack=attack, eps=EPS[name], seed=seed, width=width, workspace=workspace)


@pytest.fixture(params=ENTRIES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits").first(48)


@pytest.fixture(scope="module")
def narrow(name: str, cards: Path, data: Dataset) -> Record:
    """The record to compare with: sixteen rows at a time."""
    return evaluated(name, cards, data, 16)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        assert torch.get_num_threads() == number
        yield
    finally:
        torch.set_num_threads(before)


def assert_equal(one: Record, other: Record) -> None:
    """Outcomes and adversarial images are equal, bit by bit, whatever the order of the samples."""
    left, right = by_sample(one), by_sample(other)
    assert {sample: outcome for sample, (outcome, _) in left.items()} == {s: o for s, (o, _) in right.items()}
    assert all(np.array_equal(left[sample][1], right[sample][1]) for sample in left)


def by_sample(record: Record) -> dict[str, tuple[Outcome, np.ndarray]]:
    assert record.images is not None
    return {o.sample: (o, image) for o, image in zip(record.outcomes, record.images, strict=True)}


def test_the_comparison_says_something(narrow: Record) -> None:
    """Some samples survive, some fall, to more than one lane."""
    verdicts = {*narrow.verdicts}
    assert "robust" in verdicts
    assert len(verdicts - {"robust", "misclassified"}) >= 2


def test_width_changes_nothing(narrow: Record, name: str, cards: Path, data: Dataset) -> None:
    assert_equal(evaluated(name, cards, data, 64), narrow)


def test_order_and_width_change_nothing(narrow: Record, name: str, cards: Path, data: Dataset) -> None:
    order = np.random.default_rng(7).permutation(len(data))
    shuffled = dataclasses.replace(
        data, x=data.x[order], y=data.y[order], sample_ids=tuple(data.sample_ids[i] for i in order)
    )
    record = evaluated(name, cards, shuffled, 256)
    assert [o.sample for o in record.outcomes] == list(shuffled.sample_ids) != list(data.sample_ids)
    assert_equal(record, narrow)


def test_neighbours_change_nothing(narrow: Record, name: str, cards: Path, data: Dataset) -> None:
    """A third of the samples alone come out as they do among the others."""
    few = evaluated(name, cards, data.first(len(data) // 3), 64)
    assert {o.sample: o for o in few.outcomes}.items() <= {o.sample: o for o in narrow.outcomes}.items()


def test_another_seed_changes_something(narrow: Record, name: str, cards: Path, data: Dataset) -> None:
    """The noise matters here, so that equal outcomes mean equal noise."""
    few = evaluated(name, cards, data.first(len(data) // 3), 64, seed=1)
    assert not {o.sample: o for o in few.outcomes}.items() <= {o.sample: o for o in narrow.outcomes}.items()


def test_threads_change_nothing(name: str, cards: Path, data: Dataset) -> None:
    few = data.first(24)
    with threads(1):
        one = evaluated(name, cards, few, 16, attack="short-apgd")
    with threads(2):
        two = evaluated(name, cards, few, 64, attack="short-apgd")
    assert_equal(one, two)


def test_worker_processes_change_nothing(
    finished: Any, folder: Path, rbvit: Callable[..., Any], given: list[str], outcomes: Any
) -> None:
    """Two workers, one call after the other in this process, and the API agree."""
    assert rbvit("run", "small", "--width", "16").code == 0
    assert given == ["vit", "cnn"]
    assert outcomes(folder / "runs" / "small") == finished.outcomes
    model = build_model("digits_cnn")
    load_weights(model, folder / "leaderboards" / "small" / "weights" / "cnn-pgd-at.safetensors")
    record = rbv.evaluate(model, "samples.npz", attack="short", eps=0.1, workspace=open_workspace(folder))
    assert record.outcomes == tuple(o for o in finished.outcomes["cnn"] if o.attack == "short")
