"""Trained nets of other people with real images, for parity and ground truth. They lie beside the repository.

Sources and licences are named in the README of that folder; nothing of it is shipped.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import robustbench_vit as rbv
from robustbench_vit.data import Dataset
from robustbench_vit.evaluation import arrays_dataset

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"
CIFAR_MEAN, CIFAR_STD = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
CNNS = {
    "convex-mnist": ("convex_mnist_eps0.1", "A", 1, 7, None),
    "colt-mnist": ("colt_mnist_eps0.1", "C", 1, 7, ((0.1307,), (0.3081,))),
    "cnn-a-adv": ("cifar_cnn_a_adv", "A", 3, 8, (CIFAR_MEAN, CIFAR_STD)),
    "cnn-a-mix4": ("cifar_cnn_a_mix4", "A", 3, 8, (CIFAR_MEAN, CIFAR_STD)),
}
"""File, layout, channels, side of the last feature map, normalisation."""
VIT = "vit-pgd-2-3-16"
NAMES = (*CNNS, VIT)


class NoNorm(nn.Identity):
    """Takes a norm layer's arguments; the published ViT's norms are folded into its weights."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()


def available() -> bool:
    """Whether the folder is there."""
    return FOLDER.is_dir()


def weights_file(name: str) -> Path:
    """The file a net's weights come from."""
    return FOLDER / "vit_pgd_2_3_16" / "pgd_2_3_16.timm.safetensors" if name == VIT else _cnn_file(name)


def _cnn_file(name: str) -> Path:
    return FOLDER / "cnn" / f"{CNNS[name][0]}.safetensors"


def load_net(name: str) -> nn.Module:
    """A net in eval mode, from images in [0, 1] to logits."""
    return vision_transformer() if name == VIT else small_cnn(name)


def vision_transformer() -> nn.Module:
    """An adversarially trained ViT of 76,000 parameters for CIFAR-10 (VNN-COMP 2023)."""
    from timm.models.vision_transformer import VisionTransformer

    config = json.loads((FOLDER / "vit_pgd_2_3_16" / "config.json").read_text())
    model = VisionTransformer(**{**config["kwargs"], "act_layer": nn.ReLU, "norm_layer": NoNorm})
    model.load_state_dict(load_file(weights_file(VIT)), strict=True)
    return rbv.normalised(model, config["mean"], config["std"]).eval()


def small_cnn(name: str) -> nn.Module:
    """One of CNNS."""
    _, layout, channels, side, normalise = CNNS[name]
    model = _layout_a(channels, side) if layout == "A" else _layout_c()
    model.load_state_dict(load_file(_cnn_file(name)), strict=True)
    return (rbv.normalised(model, *normalise) if normalise else model).eval()


def _layout_a(channels: int, side: int) -> nn.Sequential:
    first, second = nn.Conv2d(channels, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
    head = (nn.Flatten(), nn.Linear(32 * side * side, 100), nn.ReLU(), nn.Linear(100, 10))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *head)


def _layout_c() -> nn.Sequential:
    first, second = nn.Conv2d(1, 32, 5, 2, 2), nn.Conv2d(32, 64, 4, 2, 1)
    return nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(3136, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def net_samples(name: str, n: int | None = None) -> Dataset:
    """The first n images that fit a net: MNIST's test set, or exact CIFAR-10 test images."""
    if "mnist" in name:
        x, y = mnist_test()
    else:
        file = "cifar10_test_exact.npz" if name == VIT else "sdp200_cifar.npz"
        with np.load(FOLDER / "cifar10" / file, allow_pickle=False) as held:
            x, y = held["x"], held["y"]
    images = torch.from_numpy(x[:n].copy()).float() / 255
    return arrays_dataset(images, torch.from_numpy(y[:n].astype(np.int64)))


def mnist_test() -> tuple[np.ndarray, np.ndarray]:
    """(10000, 1, 28, 28) uint8 and (10000,) labels."""
    images = gzip.decompress((FOLDER / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FOLDER / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return x, np.frombuffer(labels, np.uint8, offset=8)
