"""The rows in a pool: whose they are, their state, and the passes they have had."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.rows import concatenate, put, take


@dataclass(frozen=True)
class Slot:
    """Whose row it is."""

    sample: int  # position
    turn: int
    restart: int
    rank: int  # of the target


@dataclass
class Running:
    """Rows side by side; dimension 0 of every tensor is the row."""

    slots: list[Slot]
    state: Any  # of the attack
    index: Tensor  # int64 (row,) positions of the samples
    keys: Tensor  # int64 (row, 2) of their noise
    forwards: Tensor  # int64 (row,) so far
    backwards: Tensor  # int64 (row,)

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, positions: Sequence[int]) -> Running:
        """Copies of some rows."""
        at = torch.tensor(list(positions), dtype=torch.int64, device=self.index.device)
        return Running(
            [self.slots[i] for i in positions],
            take(self.state, at),
            self.index[at],
            self.keys[at],
            self.forwards[at],
            self.backwards[at],
        )

    def join(self, new: Running) -> Running:
        """These rows and then the new ones."""
        if not self.slots:
            return new
        return Running(
            self.slots + new.slots,
            concatenate([self.state, new.state]),
            torch.cat([self.index, new.index]),
            torch.cat([self.keys, new.keys]),
            torch.cat([self.forwards, new.forwards]),
            torch.cat([self.backwards, new.backwards]),
        )

    def replace(self, positions: Sequence[int], new: Running) -> None:
        """Puts as many new rows in the place of those at `positions`; nothing is copied but they."""
        at = torch.tensor(list(positions), dtype=torch.int64, device=self.index.device)
        for i, slot in zip(positions, new.slots, strict=True):
            self.slots[i] = slot
        self.state = put(self.state, at, new.state)
        for name in ("index", "keys", "forwards", "backwards"):
            getattr(self, name).index_copy_(0, at, getattr(new, name))

    def passes(self, positions: Sequence[int]) -> int:
        """Forward and backward passes that some rows have had."""
        at = list(positions)
        return int((self.forwards[at] + self.backwards[at]).sum()) if at else 0

    def to(self, device: torch.device) -> Running:
        """The rows on another device."""
        moved = {f.name: getattr(self.state, f.name).to(device) for f in dataclasses.fields(self.state)}
        tensors = (self.index, self.keys, self.forwards, self.backwards)
        return Running(self.slots, type(self.state)(**moved), *(t.to(device) for t in tensors))
