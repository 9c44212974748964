"""A model that shows what it attends to without dropping anything, and the oracles of any row attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.attacks.rows import Access, Oracles
from robustbench_vit.engine.oracle import Oracle


@dataclass(frozen=True)
class Saw:
    """What a block saw."""

    a: Tensor
    patches: Tensor
    kept_patches: Tensor

    def first(self, n: int) -> Saw:
        return Saw(self.a[:n], self.patches[:n], self.kept_patches[:n])


class Attending(nn.Module):
    """Another model; beside it two blocks that look at bright pixels, every pixel being a patch.

    The second sees what the first kept, darkest pixel first, and a token made of several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Saw] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen += two_blocks(x)
        return self.model(x)

    @contextmanager
    def recorder(self) -> Iterator[list[Saw]]:
        self.seen = []
        try:
            yield self.seen
        finally:
            self.seen = None


def two_blocks(x: Tensor) -> list[Saw]:
    a = x.mean(1).flatten(1).softmax(1)
    everything = torch.arange(a.shape[1]).expand(a.shape)
    kept = a.argsort(dim=1, descending=True)[:, : a.shape[1] // 2]
    several = torch.full_like(kept[:, :1], -1)
    second = torch.cat([kept.flip(1), several], dim=1)
    b = torch.cat([a.gather(1, kept.flip(1)), a.sum(1, keepdim=True) / 2], dim=1)
    return [Saw(a, everything, kept), Saw(b, second, second[:, -4:])]


def asking(attack: Any, model: nn.Module) -> tuple[Oracle, Oracles]:
    """An oracle of the model, and what the attack is handed; the model itself is its own surrogate."""
    attending = Attending(model)
    oracle = Oracle(attending, recorder=attending.recorder)
    surrogates = {name: oracle.beside(model).view(Access.GRADIENT) for name in getattr(attack, "surrogates", ())}
    return oracle, Oracles(oracle.view(attack.access), surrogates)
