"""Public, adversarially trained and certified nets on real images are honest at their published budgets."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_vit.attacks.rows import Access
from robustbench_vit.diagnostics.reliability import LaneAccess, assess
from robustbench_vit.models.normalise import normalised
from robustbench_vit.records import Outcome, Status

LANES = [LaneAccess("apgd-ce", Access.GRADIENT)]
CIFAR = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)


def net(shared_data: Path, name: str, kernels: tuple[int, int], channels: tuple[int, int, int], side: int) -> nn.Module:
    """Two convolutions and two linear layers, with the published weights."""
    model = nn.Sequential(
        nn.Conv2d(channels[0], channels[1], kernels[0], 2, kernels[0] // 2 if kernels[0] % 2 else 1),
        nn.ReLU(),
        nn.Conv2d(channels[1], channels[2], kernels[1], 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels[2] * side * side, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    model.load_state_dict(load_file(shared_data / "cnn" / f"{name}.safetensors"), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def mnist(shared_data: Path) -> tuple[Tensor, Tensor]:
    with gzip.open(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz") as images:
        pixels = np.frombuffer(images.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:200]
    with gzip.open(shared_data / "mnist" / "t10k-labels-idx1-ubyte.gz") as labels:
        y = np.frombuffer(labels.read(), np.uint8, offset=8)[:200].astype(np.int64)
    return torch.from_numpy(pixels.copy()).float() / 255, torch.from_numpy(y)


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> tuple[Tensor, Tensor]:
    with np.load(shared_data / "cifar10" / "sdp200_cifar.npz", allow_pickle=False) as held:
        return torch.from_numpy(held["x"]).float() / 255, torch.from_numpy(held["y"])


def flag(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> str:
    """Of the verdict when all correctly classified samples had survived."""
    with torch.no_grad():
        right = (model(x).argmax(1) == y).tolist()
    outcomes = [
        Outcome(f"{i}", "a", norm, eps, "untargeted", Status.SURVIVED if yes else Status.MISCLASSIFIED, backwards=900)
        for i, yes in enumerate(right)
    ]
    return assess(model, x, y, norm, eps, 0, outcomes, LANES).flag


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.001), ("l2", 1.5)])
def test_nets_for_mnist_are_honest(shared_data, mnist, norm, eps):
    convex = net(shared_data, "convex_mnist_eps0.1", (4, 4), (1, 16, 32), 7)
    colt = normalised(net(shared_data, "colt_mnist_eps0.1", (5, 4), (1, 32, 64), 7), [0.1307], [0.3081])
    assert flag(convex, *mnist, norm, eps) == ""
    assert flag(colt, *mnist, norm, eps) == ""


@pytest.mark.parametrize("name", ["cifar_cnn_a_adv", "cifar_cnn_a_mix4"])
def test_nets_for_cifar_are_honest(shared_data, cifar, name):
    model = normalised(net(shared_data, name, (4, 4), (3, 16, 32), 8), *CIFAR)
    assert flag(model, *cifar, "linf", 2 / 255) == ""


def test_rounded_pixels_are_found_out_on_real_images(shared_data, mnist):
    class Rounded(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model((255 * x).round() / 255)

    convex = net(shared_data, "convex_mnist_eps0.1", (4, 4), (1, 16, 32), 7)
    assert flag(Rounded(convex).eval(), *mnist, "linf", 0.1).startswith("strong: vanishing-gradients")
