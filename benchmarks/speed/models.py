"""The models that speed is measured on, with samples they classify right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks import public_nets
from benchmarks.side_by_side import load_entry
from robustbench_vit.data import Dataset
from robustbench_vit.evaluation import arrays_dataset

DIGITS = ("vit-standard", "cnn-standard", "vit-pgd-at", "cnn-pgd-at")
PUBLIC = ("vit-pgd-2-3-16", "cnn-a-adv", "cnn-a-mix4")
RANDOM = ("resnet18-cifar", "vit-tiny-224")
"""Random weights: for throughput only."""


@dataclass(frozen=True)
class Subject:
    """A model in eval mode, and samples for it."""

    name: str
    model: Any
    data: Dataset

    @property
    def image(self) -> str:
        """The images' shape in words."""
        return "×".join(map(str, self.data.x.shape[1:]))


def names() -> list[str]:
    """Every model that is there: the public nets only where they are."""
    return [*DIGITS, *(PUBLIC if public_nets.available() else ()), *RANDOM]


def load(name: str, n: int) -> Subject:
    """The model and its first n samples; those of RANDOM are noise, labelled as the model answers."""
    if name in RANDOM:
        return Subject(name, *_random(name, n))
    if name in public_nets.NAMES:
        return Subject(name, public_nets.load_net(name), public_nets.net_samples(name, n))
    return Subject(name, *load_entry(name, n))


def right_at(subject: Subject) -> Tensor:
    """int64: the positions of the samples that the model classifies right."""
    x, y = torch.from_numpy(subject.data.x), torch.from_numpy(subject.data.y)
    with torch.no_grad():
        answers = torch.cat([subject.model(part).argmax(1) for part in x.split(64)])
    return (answers == y).nonzero().flatten()


def right(subject: Subject, n: int) -> tuple[Tensor, Tensor]:
    """n images (n, c, h, w) that the model classifies right, with their labels; repeated when there are fewer."""
    kept = right_at(subject)
    at = kept.repeat(-(-n // len(kept)))[:n]
    return torch.from_numpy(subject.data.x)[at], torch.from_numpy(subject.data.y)[at]


def _random(name: str, n: int) -> tuple[nn.Module, Dataset]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (resnet18_cifar() if name == "resnet18-cifar" else timm.create_model("vit_tiny_patch16_224")).eval()
        side = 32 if name == "resnet18-cifar" else 224
        x = torch.rand(n, 3, side, side)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(32)])
    return model, arrays_dataset(x, y)


def resnet18_cifar() -> nn.Module:
    """ResNet-18 as it is used for 32×32 images: a 3×3 first convolution with stride 1, and no pooling after it."""
    model = timm.create_model("resnet18", num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model
