"""Validation under attack: what is held out, which epoch is kept, when training stops, and all of it resumed."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from robustbench_vit.data import Dataset
from robustbench_vit.defenses.checkpoint import EpochLog, read_log
from robustbench_vit.defenses.recipe import defense_faults
from robustbench_vit.defenses.selection import best_epoch, finished, said
from robustbench_vit.defenses.train import train
from robustbench_vit.defenses.validation import RobustCheck, card_check, hold_out
from robustbench_vit.errors import InputError
from robustbench_vit.models.normalise import normalised
from tests.defenses.conftest import Killed, bits, killed_after, small

VALIDATION = {"share": 0.25, "seed": 0, "attack": "pgd-20", "norm": "linf", "eps": 0.1, "patience": 2}


def entries(*scores: tuple[float | None, float]) -> list[EpochLog]:
    """A log of (robust, clean) validation accuracies."""
    return [EpochLog(n, 10, 0.1, 1.0, 0.5, None, clean, robust) for n, (robust, clean) in enumerate(scores, start=1)]


def test_a_share_of_every_class_is_held_out_whatever_the_order(data: Dataset):
    stay, held = hold_out(data, 0.25, 0)
    assert np.bincount(held.y).tolist() == [5, 5]
    assert {*stay.sample_ids} | {*held.sample_ids} == {*data.sample_ids}
    assert not {*stay.sample_ids} & {*held.sample_ids}
    assert stay.split == held.split == "train"
    backwards = data.take(np.arange(len(data))[::-1])
    assert {*hold_out(backwards, 0.25, 0)[1].sample_ids} == {*held.sample_ids}
    assert {*hold_out(data, 0.25, 1)[1].sample_ids} != {*held.sample_ids}
    assert np.bincount(hold_out(data, 0.001, 0)[1].y).tolist() == [1, 1]


def test_a_class_that_would_be_gone_is_named(data: Dataset):
    few = data.take([0, 2, 4, 1])
    with pytest.raises(InputError, match=r"leaves nothing of class 1 to train on: it has 1 samples; hold out less"):
        hold_out(few, 0.3, 0)
    with pytest.raises(InputError, match="lies between 0 and 1, got 1"):
        hold_out(data, 1.0, 0)


def test_the_best_epoch_is_the_first_of_the_most_robust_and_then_most_accurate():
    assert best_epoch(entries((None, 0.9))) is None
    assert best_epoch(entries((0.2, 0.9), (0.4, 0.7), (0.3, 1.0), (0.4, 0.8), (0.4, 0.8))) == 4


def test_patience_counts_epochs_that_were_no_better(card):
    patient = card(validation=VALIDATION, epochs=10).card
    assert not finished(entries((0.4, 0.5), (0.3, 0.5)), patient)
    log = entries((0.4, 0.5), (0.3, 0.5), (0.4, 0.5))
    assert finished(log, patient)
    assert said(log) == "epoch 1 of 10, robust validation accuracy 40.0 %, stopped early after 3"
    assert not finished(log, card(validation={**VALIDATION, "patience": None}, epochs=10).card)
    assert finished(log, card(validation=None, epochs=3).card)


def test_a_linear_models_robust_accuracy_is_known(recipe, workspace, data: Dataset):
    """It falls where its margin is smaller than eps times the l1 norm of the difference of its weights."""
    model = normalised(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), [0.5], [1.0]).train()
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    wide = dataclasses.replace(data, x=data.x * 0.5 + 0.25)  # so that no pixel meets the border
    with torch.no_grad():
        layer.weight.copy_(0.2 * torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
        layer.weight[1, 32:] += 1.0  # what class 1 has and class 0 hasn't
        layer.bias.zero_()
        logits = model(torch.from_numpy(wide.x))
        margin = torch.where(torch.from_numpy(data.y) == 1, 1, -1) * (logits[:, 1] - logits[:, 0])
    reach = float((layer.weight[1] - layer.weight[0]).detach().abs().sum())
    eps = float(margin.sort().values[19:21].mean()) / reach  # between two samples' margins
    check = RobustCheck(recipe(validation=VALIDATION).validation.attack, eps, 0)
    right = check(model, wide, batch=7)
    assert right.clean == int((margin > 0).sum())
    assert right.robust == 20
    assert model.training


def test_the_best_epoch_is_kept_and_the_log_says_so(recipe, data, tmp_path: Path, monkeypatch):
    scores, checked, real = iter([3, 5, 4, 5]), [], RobustCheck.__call__

    def scripted(self, model, samples):
        right = real(self, model, samples)
        assert right.samples == 10
        checked.append({key: value.clone() for key, value in model.state_dict().items()})
        return dataclasses.replace(right, clean=6, robust=next(scores))

    monkeypatch.setattr(RobustCheck, "__call__", scripted)
    chosen = recipe(validation=VALIDATION, epochs=9)
    model = small()
    path = train(chosen, model, data, None, tmp_path, 0)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["valid_robust_accuracy"] for row in rows] == ["0.3", "0.5", "0.4", "0.5"]
    assert [row["best_epoch"] for row in rows] == ["1", "2", "2", "2"]  # and two epochs later it is over
    assert read_log(tmp_path)[-1] == EpochLog(4, 9, *[float(rows[3][k]) for k in ("lr", "loss", "clean_accuracy")],
                                              None, 0.6, 0.5, 2)  # fmt: skip
    for key, value in model.state_dict().items():
        assert torch.equal(value, checked[1][key])
        assert not torch.equal(value, checked[3][key])
    with safe_open(path, "pt") as file:
        assert file.metadata()["epoch"] == "2"
    before = path.stat().st_mtime_ns
    assert train(chosen, small(), data, None, tmp_path, 0) == path  # it is finished
    assert path.stat().st_mtime_ns == before


def test_a_killed_run_goes_on_to_the_same_choice(recipe, data, tmp_path: Path):
    chosen = recipe(validation={**VALIDATION, "patience": None}, epochs=4, weight_average=0.9)
    train(chosen, small(), data, None, tmp_path / "whole", 0)

    with pytest.raises(Killed):
        train(chosen, small(), data, None, tmp_path / "parts", 0, progress=killed_after(2))
    train(chosen, small(), data, None, tmp_path / "parts", 0)
    for name in ("weights.safetensors", "log.csv"):
        assert bits(tmp_path / "parts" / name) == bits(tmp_path / "whole" / name), name


def test_the_digest_knows_validation_and_precision_and_old_cards_keep_theirs(recipe):
    plain = recipe().digest
    held = recipe(validation=VALIDATION).digest
    assert plain == recipe(precision="fp32", validation=None).digest
    assert len({plain, held, recipe(validation={**VALIDATION, "attack": "pgd-40"}).digest}) == 3
    assert recipe(precision="bf16").digest != plain
    assert "validation_attack" not in recipe().relies_on
    assert recipe(validation=VALIDATION).relies_on["validation_attack"]["steps"] == 20


def test_only_pgd_validates(card, workspace):
    loaded = card(validation={**VALIDATION, "attack": "square"})
    assert defense_faults(loaded, workspace) == [
        "defenses/test.yaml: field 'validation.attack': validation runs a card of algorithm 'pgd', not 'square'"
    ]
    assert card_check(card(validation=VALIDATION).card.validation, workspace, "here").attack.steps == 20


def test_two_kinds_of_validation_are_one_too_many(recipe, data, tmp_path: Path):
    with pytest.raises(InputError, match="holds validation samples out of the training set; leave out data_valid"):
        train(recipe(validation=VALIDATION), small(), data, data, tmp_path, 0)
