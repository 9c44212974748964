"""A tiny dataset and model, a workspace and recipes for training tests, and what stands for a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_vit.cards import DefenseCard, Loaded, Workspace, open_workspace
from robustbench_vit.data import Dataset
from robustbench_vit.defenses.checkpoint import EpochLog
from robustbench_vit.defenses.recipe import Recipe, build_recipe

FIELDS: dict[str, Any] = {
    "version": 1,
    "about": "a test",
    "reference": "none",
    "architecture": None,
    "loss": {"name": "cross-entropy", "label_smoothing": 0.0},
    "regularisers": [],
    "optimiser": {"name": "adamw", "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup_epochs": 1, "final_factor": 0.0},
    "epochs": 3,
    "batch_size": 16,
    "gradient_clip": 1.0,
    "weight_average": None,
    "augment": None,
    "precision": "fp32",
    "validation": None,
}
PGD_AT = {
    "name": "pgd-at",
    "attack": "pgd-10-train",
    "norm": "linf",
    "eps": 0.1,
    "eps_warmup_epochs": 1,
    "mode": "eval",
}


class Killed(Exception):
    """Stands for the process being killed."""


def killed_after(epoch: int) -> Callable[[EpochLog], None]:
    """A watcher under which the run is killed once that epoch is saved."""

    def watch(entry: EpochLog) -> None:
        if entry.epoch == epoch:
            raise Killed

    return watch


def bits(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small(classes: int = 2) -> nn.Module:
    """A model for images of 8×8 pixels that trains in no time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, classes)
        )


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workspace() -> Workspace:
    return open_workspace(Path(__file__).parents[2])


@pytest.fixture
def card() -> Callable[..., Loaded[DefenseCard]]:
    """From changed fields to a loaded card called 'test'."""

    def make(**changes: Any) -> Loaded[DefenseCard]:
        fields = DefenseCard.model_validate({**FIELDS, **changes})
        return Loaded("test", Path("defenses/test.yaml"), "defenses/test.yaml", fields)

    return make


@pytest.fixture
def recipe(card, workspace) -> Callable[..., Recipe]:
    """From changed fields to a recipe."""
    return lambda **changes: build_recipe(card(**changes), workspace)


@pytest.fixture
def data() -> Dataset:
    """40 images of two classes: bright above or bright below."""
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = 0.3 * generator.random((40, 1, 8, 8), dtype=np.float32)
    x[y == 0, :, :4] += 0.6
    x[y == 1, :, 4:] += 0.6
    ids = tuple(f"test:{i}" for i in range(40))
    return Dataset("test", "train", x, y.astype(np.int64), ids, "0" * 64, "none", 2)
