"""What lanes work with: a model on a device, how it is asked, and how many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.search import Ask, Search, asked
from robustbench_vit.engine.waiting import PoolSettings
from robustbench_vit.engine.width import Width, automatic_width
from robustbench_vit.errors import InputError
from robustbench_vit.plan import Plan

CPU_BATCH = 64
"""Below such a physical batch a CPU's passes through small models get slower per row."""


@dataclass(frozen=True)
class Bench:
    """What every lane works with: the model, and how it may be used. Rechecks ask `model` itself."""

    model: Any
    device: torch.device
    width: Width
    seed: int
    draws: int = 1  # of a model that answers at random, when a candidate is rechecked
    search: Search = Search()
    ask: Ask | None = None  # how attacks ask the model, while `opened`; the model itself otherwise

    @property
    def pool(self) -> PoolSettings:
        """How many rows run at once; an accelerator wants all its slots filled."""
        rows = self.width.rows
        return PoolSettings(rows, min(rows, CPU_BATCH) if self.device.type == "cpu" else rows)

    def oracle(self) -> Oracle:
        """The model as attacks ask it, counting from zero."""
        few = self.search.few_shapes
        return Oracle(self.searched, self.device, self.width.gradients, self.width.forwards, few_shapes=few)

    @contextmanager
    def opened(self) -> Iterator[Bench]:
        """This bench with the model made ready to be asked as `search` says; to be opened once for all lanes."""
        with asked(self.model, self.search, self.device) as ask:
            yield replace(self, ask=ask)

    @property
    def searched(self) -> Any:
        """What attacks ask."""
        return self.model if self.ask is None else self.ask


def make_bench(
    model: Any,
    image: Tensor,
    device: torch.device,
    width: int | None,
    plan: Plan,
    search: Search | None = None,
    processes: int = 1,
) -> Bench:
    """How the engine may use a model that is on the device; `width` None looks how much memory it needs.

    `processes` share the device. Raises InputError for a width below one, and OutOfMemoryError.
    """
    if width is not None and width < 1:
        raise InputError(f"width must be at least 1, got {width}")
    chosen = Width(width, width, width) if width else automatic_width(model, image, device, processes)
    return Bench(model, device, chosen, plan.seed, plan.draws, search or Search())
