"""Honest models get no warning; the same models behind a wrong normalisation or in front of wrong labels do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.data import load_dataset
from robustbench_vit.engine.intake import CLEAN, Declared, Intake, intake
from robustbench_vit.errors import ModelError
from robustbench_vit.running.entries import entry_subject

BOARD = Workspace((builtin_layer(),)).board("digits-linf")
CIFAR = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
NAMES = ["convex_mnist_eps0.1", "colt_mnist_eps0.1", "cifar_cnn_a_adv", "cifar_cnn_a_mix4", "vit"]


class NoNorm(nn.Identity):
    """Takes a norm layer's arguments; the published model's norms are folded into its weights."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()


def bare_cnn(folder: Path, name: str) -> nn.Module:
    """Layout A, or C for COLT, without its normalisation; see the data's README."""
    grey, wide = "mnist" in name, name.startswith("colt")
    first = nn.Conv2d(1, 32, 5, 2, 2) if wide else nn.Conv2d(1 if grey else 3, 16, 4, 2, 1)
    channels = first.out_channels
    flat = 2 * channels * (49 if grey else 64)
    layers = first, nn.ReLU(), nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10))
    model.load_state_dict(load_file(folder / "cnn" / f"{name}.safetensors"), strict=True)
    return model.eval()


def bare_vit(folder: Path) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    config = json.loads((folder / "vit_pgd_2_3_16" / "config.json").read_text())
    model = VisionTransformer(**{**config["kwargs"], "act_layer": nn.ReLU, "norm_layer": NoNorm})
    model.load_state_dict(load_file(folder / "vit_pgd_2_3_16" / "pgd_2_3_16.timm.safetensors"), strict=True)
    return model.eval()


def constants(name: str) -> tuple[Any, Any]:
    if name == "vit":
        return (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return {"convex": ((0.0,), (1.0,)), "colt_m": ((0.1307,), (0.3081,))}.get(name[:6], CIFAR)


def images(folder: Path, name: str, n: int = 300) -> tuple[Tensor, Tensor]:
    if "mnist" in name:
        raw = gzip.decompress((folder / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())
        x = np.frombuffer(raw, np.uint8, n * 784, 16).reshape(-1, 1, 28, 28)
        y = np.frombuffer(labels, np.uint8, n, 8).astype(np.int64)
        return torch.from_numpy(x.copy()).float() / 255, torch.from_numpy(y)
    with np.load(folder / "cifar10" / "cifar10_test_exact.npz", allow_pickle=False) as held:
        return torch.from_numpy(held["x"][:n]).float() / 255, torch.from_numpy(held["y"][:n])


@pytest.fixture
def published(shared_data: Path) -> Callable[[str], tuple[nn.Module, Tensor, Tensor]]:
    """A published net without its normalisation, and images in [0, 1]."""

    def load(name: str) -> tuple[nn.Module, Tensor, Tensor]:
        bare = bare_vit(shared_data) if name == "vit" else bare_cnn(shared_data, name)
        return bare, *images(shared_data, name)

    return load


def levels(seen: Intake) -> dict[str, str]:
    return {f.check: f.level for f in seen.findings}


def refused(model: Any, x: Tensor, y: Tensor, declared: Declared | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        intake(model, x, y, declared)
    return caught.value


@pytest.mark.parametrize("entry", BOARD.card.entries, ids=lambda entry: entry.name)
def test_no_false_alarm_on_the_digits_board(entry):
    data = load_dataset("digits", "test")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    model = entry_subject(BOARD, entry, Workspace((builtin_layer(),))).model
    with torch.no_grad():
        clean = float((model(x).argmax(1) == y).double().mean())
    seen = intake(model, x, y, Declared(clean_accuracy=clean, clean_samples=len(y)))
    assert set(levels(seen).values()) == {"pass"}
    assert seen.policy == "A"
    assert seen.clean_asked == CLEAN
    few = intake(model, x[:40], y[:40], Declared(clean_accuracy=clean, clean_samples=len(y)))
    assert set(levels(few).values()) == {"pass"}


@pytest.mark.parametrize("name", NAMES)
def test_no_false_alarm_on_published_nets(published, name):
    bare, x, y = published(name)
    seen = intake(rbv.normalised(bare, *constants(name)), x, y)
    assert set(levels(seen).values()) == {"pass"}
    assert seen.policy == "A"


@pytest.mark.parametrize("name", ["vit", "cifar_cnn_a_mix4"])
def test_a_missing_normalisation_is_named_and_refused_where_it_leaves_chance(published, name):
    bare, x, y = published(name)
    error = refused(bare, x, y)
    (found,) = [f for f in error.findings if f.level == "refuse"]
    assert found.check == "normalisation"
    assert "with the normalisation of CIFAR-10" in found.message
    assert "the model seems to miss it; use rbv.normalised(model, mean=[0.4914, 0.4822, 0.4465]" in found.message


def test_a_double_normalisation_is_named(published):
    bare, x, y = published("cifar_cnn_a_mix4")
    found = {f.check: f for f in intake(twice(bare, "cifar_cnn_a_mix4"), x, y).findings}
    assert [f.check for f in found.values() if f.level != "pass"] == ["normalisation"]
    assert found["normalisation"].level == "warn"
    assert "the inverse of the normalisation of CIFAR-10 (std .247)" in found["normalisation"].message
    assert "images seem to be normalised twice" in found["normalisation"].message


def test_a_double_normalisation_is_refused_where_it_leaves_chance(published):
    bare, x, y = published("vit")
    assert "the inverse of the normalisation of CIFAR-10 (" in str(refused(twice(bare, "vit"), x, y))


def twice(bare: nn.Module, name: str) -> nn.Module:
    return rbv.normalised(rbv.normalised(bare, *constants(name)), *constants(name))


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_numbered_from_another_start(published, shift):
    bare, x, y = published("convex_mnist_eps0.1")
    kept = (y + shift >= 0) & (y + shift < 10)
    found = {f.check: f for f in intake(bare, x[kept], y[kept] + shift).findings}
    assert found["labels"].level == "warn"
    assert f"with y {-shift:+d}" in found["labels"].message
    assert found["clean-accuracy"].level == "warn"


def test_weights_that_are_not_the_cards(published):
    bare, x, y = published("convex_mnist_eps0.1")
    right = intake(bare, x, y, Declared(clean_accuracy=0.982, clean_samples=10_000))
    assert levels(right)["canary"] == "pass"
    for stated, hint in ((0.80, "are these other samples"), (1.0, "are these the weights")):
        error = refused(bare, x, y, Declared(clean_accuracy=stated, clean_samples=300))
        assert hint in str(error), stated
        assert [f.check for f in error.findings if f.level == "refuse"] == ["canary"]


def test_pixels_up_to_255_are_expected():
    data = load_dataset("digits", "test")
    entry = next(e for e in BOARD.card.entries if e.name == "cnn-standard")
    model = entry_subject(BOARD, entry, Workspace((builtin_layer(),))).model
    error = refused(lambda x: model(x / 255), torch.from_numpy(data.x), torch.from_numpy(data.y))
    assert "in front: the model expects pixels up to 255; wrap it: lambda x: model(255 * x)" in str(error)
