"""The training loop: it learns, repeats itself, resumes to the same bits, and guards its folder."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from robustbench_vit.defenses.checkpoint import EpochLog, read_log
from robustbench_vit.defenses.recipe import Recipe, apply_architecture
from robustbench_vit.defenses.train import accuracy, train, train_defense
from robustbench_vit.errors import InputError, UnknownNameError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights
from tests.defenses.conftest import PGD_AT, Killed, bits, killed_after

EVERYTHING = {
    "architecture": {"name": "ic-layer", "dropout": 0.1},
    "loss": PGD_AT,
    "regularisers": [{"name": "norm-decay", "norm": "l1", "beta": 1e-3, "mu": 0.5}],
    "weight_average": 0.9,
    "augment": {"name": "shift", "pixels": 1},
}
"""A recipe with every kind of state and of randomness."""


def build(recipe: Recipe) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return apply_architecture(recipe, build_model("digits_cnn", num_classes=2))


def test_a_model_learns_and_is_logged(recipe, data, tmp_path: Path):
    plain = recipe(epochs=8)
    model, seen = build(plain), []
    path = train(plain, model, data, data, tmp_path, 0, progress=seen.append)
    assert accuracy(model, data, torch.device("cpu")) == 1.0
    assert [entry.epoch for entry in seen] == list(range(1, 9))
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[-1].valid_accuracy == 1.0
    assert seen[-1].robust_accuracy is None
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 9)]
    assert rows[-1]["robust_accuracy"] == ""
    assert rows[-1]["valid_accuracy"] == "1"
    fresh = build(plain)
    load_weights(fresh, path)
    assert accuracy(fresh, data, torch.device("cpu")) == 1.0
    assert not model.training


def test_adversarial_training_reports_robust_accuracy(recipe, data, tmp_path: Path):
    hard = recipe(loss=PGD_AT)
    seen: list[EpochLog] = []
    train(hard, build(hard), data, None, tmp_path, 0, progress=seen.append)
    assert all(entry.robust_accuracy is not None and 0 <= entry.robust_accuracy <= 1 for entry in seen)
    assert seen[-1].valid_accuracy is None


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(recipe, data, tmp_path: Path):
    full = recipe(**EVERYTHING)
    first = train(full, build(full), data, None, tmp_path / "a", 0)
    torch.rand(5)  # whatever the global generator does in between
    second = train(full, build(full), data, None, tmp_path / "b", 0)
    other = train(full, build(full), data, None, tmp_path / "c", 1)
    assert bits(first) == bits(second) != bits(other)


def test_training_leaves_the_global_generator_alone(recipe, data, tmp_path: Path):
    full = recipe(**EVERYTHING, epochs=1)
    model = build(full)
    before = torch.get_rng_state()
    train(full, model, data, None, tmp_path, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_killed_run_goes_on_to_the_same_bits(recipe, data, tmp_path: Path, optimiser):
    changes = dict(EVERYTHING)
    if optimiser == "sgd":
        changes["optimiser"] = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    full = recipe(**changes)
    train(full, build(full), data, None, tmp_path / "whole", 0)

    with pytest.raises(Killed):
        train(full, build(full), data, None, tmp_path / "parts", 0, progress=killed_after(2))
    epochs = []
    model = build(full)
    with torch.no_grad():
        model.stem.weight.zero_()  # whatever the new process starts from
    train(full, model, data, None, tmp_path / "parts", 0, progress=lambda entry: epochs.append(entry.epoch))
    assert epochs == [3]
    for name in ("weights.safetensors", "log.csv", "run.json"):
        assert bits(tmp_path / "parts" / name) == bits(tmp_path / "whole" / name), name


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from robustbench_vit.cards import open_workspace
from robustbench_vit.defenses.train import Trainer, train_defense

torch.set_num_threads(1)  # as here: the bits are those of one kind of machine and one number of threads
out, root = map(Path, sys.argv[1:])
step = Trainer._step

def killed_in_the_middle(self, number, batch):
    if self.epoch == 1 and number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, batch)

Trainer._step = killed_in_the_middle
train_defense("ic-layer", "digits_cnn", "digits", out, 0, "cpu", open_workspace(root), None, 2)
"""


def test_a_process_killed_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(workspace, tmp_path: Path):
    parts, root = tmp_path / "parts", workspace.layers[0]
    killed = subprocess.run([sys.executable, "-c", KILLED, parts, root], cwd=root)
    assert killed.returncode == -signal.SIGKILL
    assert [entry.epoch for entry in read_log(parts)] == [1]
    again = [train_defense("ic-layer", "digits_cnn", "digits", parts, 0, "cpu", workspace, epochs=2)]
    again.append(train_defense("ic-layer", "digits_cnn", "digits", tmp_path / "whole", 0, "cpu", workspace, epochs=2))
    assert bits(again[0]) == bits(again[1])


def test_a_run_killed_between_its_files_goes_on_to_the_same_bits(recipe, data, tmp_path: Path, monkeypatch):
    full = recipe(**EVERYTHING)
    train(full, build(full), data, None, tmp_path / "whole", 0)
    saves = []

    def killed_before_the_state(out: Path, state: dict) -> None:
        saves.append(state["epoch"])
        if state["epoch"] == 2:
            raise Killed
        real(out, state)

    from robustbench_vit.defenses import trainer as module

    real = module.save_state
    monkeypatch.setattr(module, "save_state", killed_before_the_state)
    with pytest.raises(Killed):
        train(full, build(full), data, None, tmp_path / "parts", 0)
    monkeypatch.undo()
    train(full, build(full), data, None, tmp_path / "parts", 0)
    assert saves == [1, 2]
    for name in ("weights.safetensors", "log.csv"):
        assert bits(tmp_path / "parts" / name) == bits(tmp_path / "whole" / name), name


def test_a_finished_run_does_nothing_again(recipe, data, tmp_path: Path):
    plain = recipe()
    path = train(plain, build(plain), data, None, tmp_path, 0)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    epochs = []
    again = build(plain)
    with torch.no_grad():
        again.stem.weight.zero_()
    assert train(plain, again, data, None, tmp_path, 0, progress=epochs.append) == path
    assert epochs == []
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert again.stem.weight.any()  # it has the trained weights all the same


def test_the_weights_say_where_they_come_from(recipe, data, tmp_path: Path):
    plain = recipe(epochs=1)
    path = train(plain, build(plain), data, None, tmp_path, 7, model_name="digits_cnn")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["defense"] == "test"
    assert metadata["model"] == "digits_cnn"
    assert metadata["seed"] == "7"
    assert metadata["epoch"] == "1"
    assert metadata["data_sha256"] == data.source_sha256
    assert metadata["recipe"] == plain.digest


def test_another_run_in_the_same_folder_is_refused(recipe, data, tmp_path: Path):
    plain = recipe(epochs=1)
    train(plain, build(plain), data, None, tmp_path, 0)
    other = recipe(epochs=2)
    with pytest.raises(InputError, match="holds a training run with another recipe; choose another folder"):
        train(other, build(other), data, None, tmp_path, 0)
    with pytest.raises(InputError, match="another seed"):
        train(plain, build(plain), data, None, tmp_path, 1)


def test_a_damaged_state_is_named(recipe, data, tmp_path: Path):
    plain = recipe(epochs=1)
    train(plain, build(plain), data, None, tmp_path, 0)
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(WeightsError, match=r"state.pt: damaged; remove it to train from the start"):
        train(plain, build(plain), data, None, tmp_path, 0)


def test_a_diverging_run_stops_with_advice(recipe, data, tmp_path: Path):
    wild = {"name": "sgd", "lr": 1e30, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    bad = recipe(optimiser=wild, gradient_clip=None)
    with pytest.raises(InputError, match=r"the loss became .* in epoch 1; lower the learning rate"):
        train(bad, build(bad), data, None, tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_by_names(workspace, tmp_path: Path):
    seen: list[EpochLog] = []
    path = train_defense("ic-layer", "digits_cnn", "digits", tmp_path, 0, "cpu", workspace, seen.append, epochs=1)
    assert path == tmp_path / "weights.safetensors"
    assert [(entry.epoch, entry.epochs) for entry in seen] == [(1, 1)]
    with pytest.raises(UnknownNameError, match="did you mean 'pgd-at'"):
        train_defense("pgd-ta", "digits_cnn", "digits", tmp_path, 0, "cpu", workspace)
    with pytest.raises(InputError, match="epochs is at least 1, got 0"):
        train_defense("standard", "digits_cnn", "digits", tmp_path, 0, "cpu", workspace, epochs=0)
