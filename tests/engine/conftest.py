"""A small model, its samples, and pools over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Access
from robustbench_vit.cards import AlgorithmCard, Loaded, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.pool import Pool
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.engine.waiting import PoolSettings, Samples
from tests.attacks.attending import Attending

SHAPE = (1, 6, 5)
CLASSES = 5


@pytest.fixture(scope="session")
def model() -> nn.Module:
    """A small convolutional model of five classes with a curved boundary."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Conv2d(1, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(180, CLASSES)
    with torch.no_grad():
        layers[3].weight *= 3
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="session")
def samples(model: nn.Module) -> Samples:
    """Twenty images with the model's own decisions as labels, pixels at the walls among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, *SHAPE, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    with torch.no_grad():
        ranking = model(x).argsort(dim=1, descending=True)
    return Samples(tuple(f"sample {i}" for i in range(20)), x, ranking[:, 0].clone(), ranking)


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """From a card's name and a norm, with changed settings, to an attack."""
    workspace = Workspace((builtin_layer(),))

    def make(name: str, norm: str = "linf", **changes: Any) -> Any:
        changed = AlgorithmCard(**{**workspace.attack(name).card.model_dump(), **changes})
        return build_attack(Loaded(name, Path(name), name, changed), norm)

    return make


@pytest.fixture(scope="session")
def pool(model: nn.Module) -> Callable[..., Pool]:
    """A pool of an attack over samples."""

    def make(
        attack: Any,
        samples: Samples,
        eps: float,
        width: int = 64,
        speculate_to: int = 0,
        known: Sequence[tuple[int, int, bool]] = (),
    ) -> Pool:
        attending = Attending(model)
        oracle = Oracle(attending, "cpu", 64, recorder=attending.recorder)
        surrogates = {name: oracle.beside(model).view(Access.GRADIENT) for name in getattr(attack, "surrogates", ())}
        return Pool(
            attack,
            "algorithm",
            "lane",
            samples,
            eps,
            0,
            oracle,
            Verifier(model, NORMS[attack.norm]),
            PoolSettings(width, speculate_to, speculate_below=1),
            known,
            surrogates,
        )

    return make
