"""Attacks from their cards, driven by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.noise import Noise, row_key
from robustbench_vit.attacks.rows import Start
from robustbench_vit.cards import AlgorithmCard, Loaded, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from tests.attacks.attending import asking


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """From a card's name and a norm, with changed settings, to an attack."""
    workspace = Workspace((builtin_layer(),))

    def make(name: str, norm: str, **changes: Any) -> Any:
        card = workspace.attack(name).card
        changed = AlgorithmCard(**{**card.model_dump(), **changes})
        return build_attack(Loaded(name, Path(name), name, changed), norm)

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Noise]:
    """Draws for a number of rows."""

    def make(rows: int, seed: int = 0) -> Noise:
        return Noise(torch.tensor([row_key(seed, f"sample {i}", "test", 0, 0) for i in range(rows)]))

    return make


@pytest.fixture(scope="session")
def drive(noise: Callable[..., Noise]) -> Callable[..., Any]:
    """Steps an attack until all rows are finished, or `steps` times, and returns the last state."""

    def run(attack: Any, model: nn.Module, start: Start, steps: int = 10**6, seed: int = 0) -> Any:
        (oracle, oracles), draws = asking(attack, model), noise(len(start.y), seed)
        state = attack.init(start, draws)
        for _ in range(steps):
            oracle.count(len(start.y))
            state = attack.step(state, oracles, draws)
            if bool(attack.finished(state).all()):
                break
        return state

    return run


@pytest.fixture(scope="session")
def bumpy() -> Callable[..., nn.Module]:
    """A small model with a curved boundary for images of a shape."""

    def make(shape: tuple[int, int, int], classes: int = 5) -> nn.Module:
        pixels = shape[0] * shape[1] * shape[2]
        with torch.random.fork_rng():
            torch.manual_seed(3)
            hidden, out = nn.Linear(pixels, 16), nn.Linear(16, classes)
        return nn.Sequential(nn.Flatten(), hidden, nn.GELU(), out).eval()

    return make


@pytest.fixture
def reference_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reference turns tensors into float32 by `Tensor.float()`; here that means float64."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)
