"""The order in which sequential decisions look at samples, whatever order they finish in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Generic, TypeVar

from robustbench_vit.errors import InputError

T = TypeVar("T")


def sample_order(sample_ids: Sequence[str], seed: int) -> list[int]:
    """A permutation of the samples' positions, by SHA-256 of (seed, sample id).

    Which of two samples comes first depends on those two and the seed only, not on how many samples there are.
    """
    keys = [hashlib.sha256(f"{seed}\0{sample}".encode()).digest() for sample in sample_ids]
    return sorted(range(len(keys)), key=lambda position: (keys[position], position))


class InOrder(Generic[T]):
    """Gives out finished samples in a fixed order; one that finishes early waits for its predecessors.

    Robust samples take longest. Whoever looked at samples as they finish would see the broken ones first.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._order = tuple(order)
        self._position = {sample: position for position, sample in enumerate(order)}
        if len(self._position) < len(self._order):
            twice = next(sample for place, sample in enumerate(order) if self._position[sample] != place)
            raise InputError(f"sample '{twice}' stands in the order twice")
        self._given = 0
        self._waiting: dict[str, T] = {}

    @property
    def given(self) -> int:
        """How many samples have been given out."""
        return self._given

    @property
    def waiting(self) -> int:
        """How many finished samples wait for a predecessor."""
        return len(self._waiting)

    def finish(self, sample: str, value: T) -> list[tuple[str, T]]:
        """The samples that may be given out now that `sample` has finished, with their values; maybe none."""
        if sample not in self._position:
            raise InputError(f"sample '{sample}' does not stand in the order")
        if sample in self._waiting or self._position[sample] < self._given:
            raise InputError(f"sample '{sample}' finished twice")
        self._waiting[sample] = value
        ready: list[tuple[str, T]] = []
        while self._given < len(self._order) and self._order[self._given] in self._waiting:
            following = self._order[self._given]
            ready.append((following, self._waiting.pop(following)))
            self._given += 1
        return ready


def in_order(order: Sequence[str]) -> InOrder:
    """What gives out finished samples in this order; see InOrder."""
    return InOrder(order)
