"""The guard of fast adversarial training, on a run that really does overfit to its single step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.attacks.registry import build_attack
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.losses.fast_at import GuardedLoss, RunningGuardedLoss
from robustbench_vit.defenses.losses.inner import perturb
from robustbench_vit.defenses.recipe import Recipe, defense_faults
from robustbench_vit.defenses.registry import Batch, started
from robustbench_vit.defenses.train import train

EPS = 0.3
FAST = {
    "name": "fast-at",
    "attack": "fgsm-rs-train",
    "norm": "linf",
    "eps": EPS,
    "eps_warmup_epochs": 3,
    "mode": "eval",
    "check_attack": "pgd-10-train",
    "check_every": 3,
    "largest_gap": 0.25,
    "on_overfitting": "multi-step",
}
UNTIL_IT_OVERFITS = {
    "epochs": 30,
    "batch_size": 64,
    "gradient_clip": None,
    "optimiser": {"name": "adamw", "lr": 0.005, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    "schedule": {"name": "cosine", "warmup_epochs": 1, "final_factor": 1.0},
}


def digits() -> Dataset:
    return load_dataset("digits", "train").first(192)


def perceptron() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


def accuracies(workspace, model: nn.Module) -> list[float]:
    """Under the single step and under PGD-20, on the training images."""
    data = digits()
    keys = torch.tensor([row_key(1, str(i), "test", 0, 0) for i in range(len(data))])
    batch = Batch(torch.from_numpy(data.x), torch.from_numpy(data.y), lambda: keys, 0.0)
    attacks = [build_attack(workspace.attack(name), "linf") for name in ("fgsm-rs-train", "pgd-20")]
    return [float((model(perturb(a, model, batch, EPS)).argmax(1) == batch.y).float().mean()) for a in attacks]


@pytest.fixture
def run(recipe: Callable[..., Recipe], workspace, tmp_path: Path, caplog):
    """Trains under changed settings; returns accuracies under both attacks and what was said."""

    def trained(**changes) -> tuple[list[float], list[str]]:
        model, card = perceptron(), recipe(loss={**FAST, **changes}, **UNTIL_IT_OVERFITS)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "robustbench_vit.defenses"):
            train(card, model, digits(), None, tmp_path / str(sorted(changes.items())), 0)
        return accuracies(workspace, model), [record.getMessage() for record in caplog.records]

    return trained


def test_a_run_that_overfits_is_noticed_and_saved(run):
    (fooled, broken), silence = run(largest_gap=0.99)
    assert fooled - broken > 0.25, "without the guard this run overfits"
    assert silence == []
    for action, words in (("multi-step", "'; training goes on with"), ("back", "last check that was passed are back")):
        (single, multi), said = run(on_overfitting=action)
        assert multi > broken + 0.06, action
        assert single - multi < fooled - broken - 0.1, action
        assert len(said) == 1
        assert said[0].startswith("catastrophic overfitting after ")
        assert words in said[0]
        assert said[0].endswith("goes on with 'pgd-10-train'")


def bits(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Killed(Exception):
    """Stands for the process being killed."""


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_run_goes_on_with_what_the_guard_knew(recipe, tmp_path: Path, caplog, after):
    """One is killed before, and one after the guard acted."""
    loss = {
        **FAST,
        "eps": 0.25,
        "eps_warmup_epochs": 0,
        "largest_gap": 0.04,
        "on_overfitting": "back",
        "check_every": 4,
    }
    card = recipe(loss=loss, **{**UNTIL_IT_OVERFITS, "epochs": 5})
    with caplog.at_level(logging.WARNING):
        train(card, perceptron(), digits(), None, tmp_path / "whole", 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert 1 < float(said.removeprefix("catastrophic overfitting after ").split()[0]) < 4

    def kill(entry) -> None:
        if entry.epoch == after:
            raise Killed

    with pytest.raises(Killed):
        train(card, perceptron(), digits(), None, tmp_path / "parts", 0, progress=kill)
    train(card, perceptron(), digits(), None, tmp_path / "parts", 0)
    assert bits(tmp_path / "parts" / "weights.safetensors") == bits(tmp_path / "whole" / "weights.safetensors")


def threshold(weight: float) -> nn.Module:
    """Class 0 for pixels below one half when the weight is 1; class 0 for all when it is 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [weight]]))
        model[1].bias.copy_(torch.tensor([0.0, -weight / 2 - (weight == 0)]))
    return model


def guarded(action: str) -> RunningGuardedLoss:
    """A guard whose single step does nothing and whose check inverts the image."""
    settings = SimpleNamespace(**{**FAST, "check_every": 2, "on_overfitting": action})
    bound = GuardedLoss(settings, lambda model, batch: batch.x, lambda model, batch: 1 - batch.x)  # type: ignore[arg-type]
    return bound.start(threshold(0), torch.zeros(1, 1, 1, 1))


DARK = Batch(torch.full((8, 1, 1, 1), 0.2), torch.zeros(8, dtype=torch.int64), lambda: torch.zeros(8, 2), 0.0)


@pytest.mark.parametrize("action", ["back", "multi-step"])
def test_the_weights_of_the_last_passed_check_come_back(action):
    model, running = threshold(0), guarded(action)
    running(model, DARK)
    assert not running.overfitted
    model.load_state_dict(threshold(1).state_dict())
    running(model, DARK)  # no check is due
    assert not running.overfitted
    running(model, DARK)
    assert running.overfitted
    expected = threshold(0 if action == "back" else 1).state_dict()
    assert all(torch.equal(expected[key], value) for key, value in model.state_dict().items())
    assert running.state()["passed"] == {}


def test_after_that_training_goes_on_with_the_check_s_attack():
    model, running = threshold(1), guarded("multi-step")
    inverted = nn.functional.cross_entropy(model(1 - DARK.x), DARK.y).item()
    assert [running(model, DARK).loss.item() for _ in range(5)] == [inverted] * 5


def test_runs_of_one_recipe_do_not_share_what_they_remember(recipe):
    card, model, image = recipe(loss=FAST), perceptron(), torch.zeros(1, 1, 8, 8)
    first, second = (started(card.loss, model, image) for _ in range(2))
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4), lambda: torch.zeros(4, 2, dtype=torch.int64), 0.0)
    first(model, batch)
    assert (first.state()["steps"], second.state()["steps"]) == (1, 0)


def test_the_check_s_attack_is_part_of_the_digest_and_is_checked(recipe, card, workspace):
    assert recipe(loss=FAST).digest != recipe(loss={**FAST, "check_attack": "pgd-20"}).digest
    wrong = card(loss={**FAST, "check_attack": "pgd-10-trian", "largest_gap": 1})
    assert defense_faults(wrong, workspace) == ["defenses/test.yaml: field 'loss.largest_gap': should be less than 1"]
    wrong = card(loss={**FAST, "check_attack": "pgd-10-trian"})
    assert defense_faults(wrong, workspace) == [
        "defenses/test.yaml: field 'loss.check_attack': unknown attack 'pgd-10-trian'; did you mean 'pgd-10-train'?"
    ]
    wrong = card(loss={**FAST, "check_attack": "square"})
    assert defense_faults(wrong, workspace) == [
        "defenses/test.yaml: field 'loss.check_attack': the inner attack is a card of algorithm 'pgd', not 'square'"
    ]
