"""Boxes with public verdicts (VNN-COMP 2022, sri_resnet_a): published counterexamples pass our verifier, our attacks
find some in every box that has one, and none in a box that verifiers proved empty.

The data isn't part of the repository; without it these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

import robustbench_vit as rbv
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.cards import AlgorithmCard, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.engine.verify import Verifier

NAME = "resnet_3b2_bn_mixup_adv_4.0_bs128_lr-1"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PUBLISHED = 2e-7
"""How far a box is from clip(x0 ± eps): the specs hold eight decimals of float32 numbers up to 2.8, times STD."""


@dataclass(frozen=True)
class Boxes:
    """clip(x0 ± eps, 0, 1), in pixels."""

    index: tuple[int, ...]  # in CIFAR-10's test set
    x0: Tensor  # float32 (n, 3, 32, 32)
    y: Tensor
    eps: Tensor  # float32 (n,)
    status: np.ndarray  # sat, unsat or undecided
    lower: np.ndarray  # float64, as published
    upper: np.ndarray

    def where(self, *status: str) -> list[int]:
        return np.flatnonzero(np.isin(self.status, status)).tolist()


def pixels(x: np.ndarray) -> np.ndarray:
    """The model's own input space undone: float64, in [0, 1] up to the rounding of the published text (5e-8)."""
    return x.astype(np.float64) * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "vnncomp_sri_resnet_a"


@pytest.fixture(scope="module")
def boxes(folder: Path) -> Boxes:
    """Most pixels' boxes are not clipped, so their median half-width is eps; clean pixels are 8-bit ones."""
    with np.load(folder / f"{NAME}_boxes.npz", allow_pickle=False) as held:
        lower, upper, y, status = pixels(held["lower"]), pixels(held["upper"]), held["y"], held["status"]
        index = tuple(int(name.split("_idx_")[1].split("_")[0]) for name in held["name"])
    eps = np.median((upper - lower).reshape(len(y), -1), 1) / 2
    wide = eps[:, None, None, None]
    centre = np.where(lower <= 1e-6, upper - wide, np.where(upper >= 1 - 1e-6, lower + wide, (lower + upper) / 2))
    x0 = (centre * 255).round() / 255
    return Boxes(
        index, torch.from_numpy(x0).float(), torch.from_numpy(y), torch.from_numpy(eps).float(), status, lower, upper
    )


@pytest.fixture(scope="module")
def counterexamples(folder: Path) -> tuple[list[int], Tensor]:
    """The boxes they belong to, and one image for each; the clamp takes away what the text's rounding put outside."""
    with np.load(folder / f"{NAME}_counterexamples.npz", allow_pickle=False) as held:
        return held["row"].tolist(), torch.from_numpy(pixels(held["x"])).float().clamp(0, 1)


@pytest.fixture(scope="module")
def published(folder: Path) -> Callable[[Tensor], Tensor]:
    """The network as it was published, from images in [0, 1]; a batch of one is baked into it."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(folder / f"{NAME}.onnx", options, providers=["CPUExecutionProvider"])

    def logits(x: Tensor) -> Tensor:
        inputs = ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).numpy()
        return torch.from_numpy(np.concatenate([session.run(None, {"input": one[None]})[0] for one in inputs]))

    return logits


class ResNet(nn.Module):
    """A stem, three residual blocks (1×1 shortcut, two 3×3 convolutions; batch norms folded in), two linear layers."""

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], dense: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.convolutions, self.dense = convolutions, dense

    def forward(self, x: Tensor) -> Tensor:
        x = conv2d(x, *self.convolutions[0], stride=2, padding=1).relu()
        for first in (1, 4, 7):
            shortcut, widen, keep = self.convolutions[first : first + 3]
            inner = conv2d(x, *widen, stride=2, padding=1).relu()
            x = (conv2d(x, *shortcut, stride=2) + conv2d(inner, *keep, padding=1)).relu()
        return linear(linear(x.flatten(1), *self.dense[0]).relu(), *self.dense[1])


@pytest.fixture(scope="module")
def resnet(folder: Path) -> nn.Module:
    """The same network in torch, from images in [0, 1]: its weights are the ONNX file's, in the order of their use."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(folder / f"{NAME}.onnx").graph
    held = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}

    def weights(kind: str) -> list[tuple[Tensor, Tensor]]:
        return [(held[node.input[1]], held[node.input[2]]) for node in graph.node if node.op_type == kind]

    return rbv.normalised(ResNet(weights("Conv"), weights("Gemm")), MEAN, STD).eval()


def card(name: str, **changes: Any) -> AlgorithmCard:
    """A built-in attack card with other settings."""
    return AlgorithmCard(**{**Workspace((builtin_layer(),)).attack(name).card.model_dump(), **changes})


def fallen(model: nn.Module, boxes: Boxes, rows: list[int], attack: AlgorithmCard) -> set[int]:
    """The boxes in which the attack finds a verified adversarial example; one evaluation for each eps."""
    found = set()
    rounded = (boxes.eps * 1e7).round() / 1e7  # equal radii differ by the specs' rounding, 5e-8
    for eps in rounded[rows].unique().tolist():
        group = [row for row in rows if float(rounded[row]) == eps]
        record = rbv.evaluate(
            model, boxes.x0[group], boxes.y[group], attack=attack, eps=eps, adversarials=False, reliability=False
        )
        assert "misclassified" not in record.verdicts
        found |= {row for row, verdict in zip(group, record.verdicts, strict=True) if verdict != "robust"}
    return found


def test_the_boxes_are_balls_around_test_images(boxes: Boxes, shared_data: Path) -> None:
    """Centre and radius give the published bounds back, and the images are CIFAR-10's where we have those."""
    assert [len(boxes.where(status)) for status in ("sat", "unsat", "undecided")] == [12, 20, 40]
    x0, eps = boxes.x0.double().numpy(), boxes.eps.double().numpy()[:, None, None, None]
    assert abs((x0 - eps).clip(0, 1) - boxes.lower).max() < PUBLISHED
    assert abs((x0 + eps).clip(0, 1) - boxes.upper).max() < PUBLISHED
    with np.load(shared_data / "cifar10" / "cifar10_test_exact.npz", allow_pickle=False) as held:
        exact = {int(i): (image, int(y)) for i, image, y in zip(held["index"], held["x"], held["y"], strict=True)}
    shared = [row for row, index in enumerate(boxes.index) if index in exact]
    assert shared
    for row in shared:
        image, label = exact[boxes.index[row]]
        assert np.array_equal((boxes.x0[row] * 255).round().byte().numpy(), image)
        assert int(boxes.y[row]) == label


def test_published_counterexamples_hold_and_centres_do_not(boxes, counterexamples, published):
    rows, images = counterexamples
    assert len(rows) == 12
    assert rows == boxes.where("sat")
    x0, y, eps = boxes.x0[rows], boxes.y[rows], boxes.eps[rows]
    verifier = Verifier(published, NORMS["linf"])
    assert verifier.check(images, x0, y, eps).holds.tolist() == [True] * 12
    centres = verifier.check(x0, x0, y, eps)
    assert centres.inside.tolist() == [True] * 12
    assert centres.holds.tolist() == [False] * 12


def test_a_counterexample_counts_in_its_own_ball_only(boxes, counterexamples, published):
    rows, images = counterexamples
    x0, y, eps = boxes.x0[rows], boxes.y[rows], boxes.eps[rows]
    verifier = Verifier(published, NORMS["linf"])
    assert not verifier.check(images, x0, y, eps * 0.9).holds.any()
    assert not verifier.check(images, x0.roll(1, 0), y, eps).holds.any()
    torn = images.clone()
    torn[:, 0, 0, 0] = torch.nan
    assert not verifier.check(torn, x0, y, eps).holds.any()


def test_the_network_built_here_is_the_published_one(boxes, counterexamples, published, resnet):
    rows, images = counterexamples
    x = torch.cat([boxes.x0[::6], images])
    with torch.no_grad():
        assert torch.allclose(resnet(x), published(x), rtol=1e-4, atol=1e-4)
    assert Verifier(resnet, NORMS["linf"]).check(images, boxes.x0[rows], boxes.y[rows], boxes.eps[rows]).holds.all()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("apgd-t", {"steps": 30, "targets": 2}),
        ("apgd-ce", {"loss": "dlr"}),  # cross-entropy itself misses a box by a logit or two in ten thousand
        ("pgd-40", {"steps": 50, "step_size": 0.05, "loss": "margin", "restarts": 3}),
    ],
)
def test_boxes_fall_where_a_counterexample_is_known_and_nowhere_else(boxes, resnet, name, changes):
    """Verifiers say which of the 72 boxes hold one (sat) and which don't (unsat)."""
    rows = boxes.where("sat", "unsat")
    assert fallen(resnet, boxes, rows, card(name, **changes)) == set(boxes.where("sat"))
