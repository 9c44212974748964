"""What lanes work with: a model on a device, how it is asked, and how many rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from robustbench_vit.attacks.rows import Access
from robustbench_vit.engine.oracle import Oracle, Recorder
from robustbench_vit.engine.search import Ask, Search, asked
from robustbench_vit.engine.waiting import PoolSettings
from robustbench_vit.engine.width import Width, automatic_width
from robustbench_vit.errors import AttackError, InputError
from robustbench_vit.plan import Plan

CPU_BATCH = 64
"""Below such a physical batch a CPU's passes through small models get slower per row."""


class Inside(Protocol):
    """What a model offers to attacks that know how it is built."""

    @property
    def recorder(self) -> Recorder | None:
        """Shows what the model attends to."""
        ...

    @property
    def surrogates(self) -> Mapping[str, Callable[[], Any]]:
        """Models made from its own weights, by name; each a function that builds one."""
        ...


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
    inside: Inside | None = None

    @property
    def pool(self) -> PoolSettings:
        """How many rows run at once; an accelerator wants all its slots filled."""
        rows = self.width.rows
        return PoolSettings(rows, min(rows, CPU_BATCH) if self.device.type == "cpu" else rows)

    def oracle(self, access: Access) -> Oracle:
        """The model as attacks of this access ask it, counting from zero.

        Internals are seen in the model itself only: not compiled, in float32, whatever the search does otherwise.
        """
        inside = access >= Access.INTERNALS
        return Oracle(
            self.model if inside else self.searched,
            self.device,
            self.width.gradients,
            self.width.forwards,
            few_shapes=self.search.few_shapes,
            recorder=self.inside.recorder if inside and self.inside is not None else None,
        )

    def surrogate(self, name: str) -> Any:
        """A model made from this one's weights; raises AttackError when it has none of the name."""
        known = {} if self.inside is None else self.inside.surrogates
        if name not in known:
            raise AttackError(f"this model has no surrogate '{name}'; it has: {', '.join(known) or 'none'}")
        return known[name]()

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
