"""Every card with a loss of its own trains on digits, at a reduced size, and resumes to the same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.cards import DefenseCard, Loaded, Workspace
from robustbench_vit.data import load_dataset
from robustbench_vit.defenses.recipe import Recipe, build_recipe, defense_faults
from robustbench_vit.defenses.registry import PARTS, Batch
from robustbench_vit.defenses.train import train
from robustbench_vit.models.build import build_model
from tests.defenses.tiny import INNER

ADVERSARIAL = ["trades", "mart", "alp", "fast-at", "pgd-at-awp", "trades-awp", "ltd", "ltd-cnn", "ltd-trades"]
CARDS = [*ADVERSARIAL, "gaussian-augment", "consistency"]


class Killed(Exception):
    """Stands for the process being killed."""


def reduced(workspace: Workspace, name: str) -> Recipe:
    """The card's recipe for two epochs, with nothing in it that begins later."""
    loaded = workspace.defense(name)
    fields: dict[str, Any] = loaded.card.model_dump()
    for loss in (fields["loss"], fields["loss"].get("of", {})):
        loss.update({key: 1 for key in ("eps_warmup_epochs", "from_epoch") if key in loss})
    fields.update(epochs=2, batch_size=32)
    card = DefenseCard.model_validate(fields)
    return build_recipe(Loaded(loaded.name, loaded.path, loaded.shown, card), workspace)


def student() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("digits_cnn")


def bits(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_trains_and_a_killed_run_goes_on_to_the_same_bits(workspace, tmp_path: Path, name):
    data, recipe = load_dataset("digits", "train").first(96), reduced(workspace, name)
    log = []
    whole = train(recipe, student(), data, data, tmp_path / "whole", 0, progress=log.append)
    assert [entry.epoch for entry in log] == [1, 2]
    assert log[1].loss < log[0].loss or name in ADVERSARIAL  # whose attack has become stronger
    assert all((entry.robust_accuracy is not None) == (name in ADVERSARIAL) for entry in log)

    def kill(entry) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(recipe, student(), data, data, tmp_path / "parts", 0, progress=kill)
    parts = train(recipe, student(), data, data, tmp_path / "parts", 0)
    assert bits(parts) == bits(whole)


def test_every_loss_has_a_card(workspace):
    used = {workspace.defense(name).card.loss.name for name in workspace.names("defense")}
    ours = {name for name in PARTS["loss"].names() if PARTS["loss"].get(name).__module__.startswith("robustbench_vit")}
    assert ours <= used


def test_losses_that_decide_by_whole_batches_say_so():
    found = {name for name in PARTS["loss"].names() if getattr(PARTS["loss"].get(name), "whole_batch", False)}
    assert found == {"awp", "fast-at"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_in_the_wrong_unit_is_a_fault_where_pixels_bound_it(card, workspace, norm):
    faults = defense_faults(card(loss={"name": "pgd-at", **INNER, "norm": norm, "eps": 8}), workspace)
    expected = "field 'loss.eps': 8 is larger than the whole range of a pixel in [0, 1]; did you mean 8/255?"
    assert faults == ([f"defenses/test.yaml: {expected}"] if norm == "linf" else [])


def test_sigma_in_the_wrong_unit_is_a_fault(card, workspace):
    faults = defense_faults(card(loss={"name": "gaussian-augment", "sigma": 64}), workspace)
    expected = "field 'loss.sigma': 64 is larger than the whole range of a pixel in [0, 1]; did you mean 64/255?"
    assert faults == [f"defenses/test.yaml: {expected}"]


def test_an_attack_that_could_not_leave_the_clean_image_is_a_fault(card, workspace):
    loss = {"name": "trades", **INNER, "attack": "fgsm", "objective": "kl", "beta": 6}
    assert defense_faults(card(loss=loss), workspace) == [
        "defenses/test.yaml: field 'loss.attack': 'fgsm' starts at the clean image, where the KL divergence has no"
        " gradient; name a card with 'random_start: true'"
    ]
    assert defense_faults(card(loss={**loss, "objective": "card"}), workspace) == []


def test_noise_of_a_sample_does_not_depend_on_its_batch(recipe):
    loss = recipe(loss={"name": "gaussian-augment", "sigma": 0.25}).loss
    keys = torch.tensor([row_key(0, str(i), "train", 0, 0) for i in range(6)])
    whole = Batch(torch.zeros(6, 1, 8, 8), torch.zeros(6), lambda: keys, 0.0)
    half = Batch(whole.x[2:4], whole.y[2:4], lambda: keys[2:4], 0.0)
    assert torch.equal(loss.noisy(whole, 1)[2:4], loss.noisy(half, 1))
    assert not torch.equal(loss.noisy(whole, 0), loss.noisy(whole, 1))
