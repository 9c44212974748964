"""A small Vision Transformer's record with images, and its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.records import Record

WEIGHTS = builtin_layer() / "leaderboards" / "digits-linf" / "weights" / "vit-pgd-at.safetensors"
N = 32


@dataclass(frozen=True)
class Made:
    """A record with images, its model and its samples."""

    record: Record
    model: nn.Module
    data: Dataset
    path: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`digits_vit` under fgsm at 0.15: some samples fall, some stay, one or two are misclassified."""
    from robustbench_vit.cards import open_workspace
    from robustbench_vit.evaluation import evaluate
    from robustbench_vit.running.single import ModelChoice, choose_model

    workspace, data = open_workspace(), load_dataset("digits").first(N)
    model, about = choose_model(ModelChoice("digits_vit", WEIGHTS, None, None, None), data, workspace)
    record = evaluate(model, data, attack="fgsm", eps=0.15, workspace=workspace, entry=about, reliability=False)
    path = record.save(tmp_path_factory.mktemp("made") / "vit.json")
    return Made(record, model, data, path)
