"""A model small enough to work its losses out by hand, images for it, and the settings of every loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.defenses.registry import Batch

INNER = {"attack": "pgd-10-train", "norm": "linf", "eps": 0.2, "eps_warmup_epochs": 0, "mode": "eval"}
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"label_smoothing": 0.1},
    "pgd-at": INNER,
    "trades": {**INNER, "objective": "kl", "beta": 6},
    "mart": {**INNER, "beta": 5},
    "alp": {**INNER, "beta": 0.7},
    "fast-at": {
        **INNER,
        "attack": "fgsm-rs-train",
        "check_attack": "pgd-10-train",
        "check_every": 4,
        "largest_gap": 0.3,
        "on_overfitting": "multi-step",
    },
    "gaussian-augment": {"sigma": 0.25},
    "consistency": {"sigma": 0.25, "copies": 3, "consistency_weight": 2, "entropy_weight": 0.5},
}


def tiny() -> nn.Module:
    """Logits of three classes from images of 1×2×2, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        for weight in model.parameters():  # sure enough of itself for an attack to matter
            weight.data.mul_(4)
        return model


def batch(rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    keys = torch.tensor([row_key(0, str(i), "train", 0, 0) for i in range(rows)])
    x = torch.rand((rows, 1, 2, 2), generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(rows) % 3, lambda: keys, 5.0)


def probabilities(model: nn.Module, x: Tensor) -> np.ndarray:
    """softmax by hand."""
    z = model(x).detach().numpy()
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)
