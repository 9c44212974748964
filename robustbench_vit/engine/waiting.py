"""What waits to run: turns that have not begun, and rows that were put aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise, row_key
from robustbench_vit.attacks.rows import RowAttack, Start
from robustbench_vit.engine.oracle import SMALLEST, out_of_memory
from robustbench_vit.engine.running import Running, Slot
from robustbench_vit.engine.turns import Turns
from robustbench_vit.errors import OutOfMemoryError


@dataclass(frozen=True)
class Samples:
    """Images under attack, on the device, with the classes that targeted attacks aim at."""

    ids: tuple[str, ...]
    x: Tensor  # (n, c, h, w)
    y: Tensor  # (n,)
    ranking: Tensor  # int64 (n, classes): classes by clean logit, largest first

    def take(self, positions: Sequence[int]) -> Samples:
        """The samples at `positions`."""
        index = torch.tensor(list(positions), dtype=torch.int64, device=self.x.device)
        return Samples(tuple(self.ids[p] for p in positions), self.x[index], self.y[index], self.ranking[index])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PoolSettings:
    """How many rows run at once; results don't depend on it.

    Free slots take later turns of running samples where padding would be computed anyway, and up to `speculate_to`
    rows as long as no larger share than `speculate_below` of the turns succeeds: a success cancels later turns. With
    `speculate_to` 0 none is started early.
    """

    width: int
    speculate_to: int
    speculate_below: float = 0.02


@dataclass(frozen=True)
class RowSource:
    """What rows are made from: an attack, samples, a radius, and the seed of their noise."""

    attack: RowAttack[Any]
    algorithm: str
    samples: Samples
    eps: float
    seed: int

    @property
    def turns(self) -> int:
        """Rows per sample."""
        return turns_of(self.attack, self.samples.ranking.shape[1])


class Waiting:
    """Hands out the rows that run next; `width` of them at most at a time, fewer where memory ran out."""

    def __init__(self, source: RowSource, turns: Turns, settings: PoolSettings, computed: Callable[[int], int]) -> None:
        """`computed` says how many images the model sees when it is asked about so many."""
        self._source, self.turns, self._settings, self._computed = source, turns, settings, computed
        self._targeted = source.attack.targets(source.samples.ranking.shape[1])
        self._parked: list[Running] = []
        self.width = settings.width

    def put_aside(self, rows: Running) -> None:
        """Takes back rows that shall go on later."""
        self._parked.append(rows)

    def cancel(self, slots: set[Slot]) -> int:
        """Drops rows among those put aside; returns the passes they have had."""
        wasted, parked = 0, []
        for rows in self._parked:
            gone = [i for i, slot in enumerate(rows.slots) if slot in slots]
            left = [i for i, slot in enumerate(rows.slots) if slot not in slots]
            wasted += rows.passes(gone)
            if left:
                parked.append(rows.take(left) if gone else rows)
        self._parked = parked
        return wasted

    def take(self, running: int) -> Running | None:
        """Rows that join so many running ones: those put aside before, then new ones; None when none waits."""
        begun: Running | None = None
        while self._parked and running < self.width:
            parked = self._unpark(self.width - running)
            running += len(parked)
            begun = parked if begun is None else begun.join(parked)
        slots = [] if self._parked else self._new_slots(running)
        while slots:
            try:
                started = self._start(slots)
                return started if begun is None else begun.join(started)
            except (RuntimeError, MemoryError) as error:
                slots = self._fewer(slots, error)
        return begun

    def _unpark(self, most: int) -> Running:
        """Rows that were put aside, as many as there is room for."""
        rows = self._parked.pop()
        if len(rows) > most:
            self._parked.append(rows.take(range(most, len(rows))))
            rows = rows.take(range(most))
        return rows.to(self._source.samples.x.device)

    def _new_slots(self, running: int) -> list[Slot]:
        slots: list[Slot] = []
        while running + len(slots) < self.width:
            started = self.turns.start(speculate=False)
            if started is None:
                break
            slots.append(self.slot(*started))
        limit = min(self._speculate_to(running + len(slots)), self.width)
        while running + len(slots) < limit:
            started = self.turns.start(speculate=True)
            if started is None:
                break
            slots.append(self.slot(*started))
        return slots

    def _speculate_to(self, rows: int) -> int:
        if not self._settings.speculate_to:
            return rows
        likely = self.turns.chance <= self._settings.speculate_below
        return max(self._computed(rows), self._settings.speculate_to if likely else 0)

    def slot(self, sample: int, turn: int) -> Slot:
        """Whose row a turn of a sample is."""
        return Slot(sample, turn, turn % self._source.attack.restarts(), turn // self._source.attack.restarts())

    def _start(self, slots: list[Slot]) -> Running:
        """New rows in their first state."""
        device, samples = self._source.samples.x.device, self._source.samples
        index = torch.tensor([slot.sample for slot in slots], device=device)
        target = torch.full_like(index, -1)
        if self._targeted:
            target = samples.ranking[index, torch.tensor([slot.rank + 1 for slot in slots], device=device)]
        keys = torch.tensor([self._key(slot) for slot in slots], dtype=torch.int64, device=device)
        eps = torch.full((len(slots),), self._source.eps, dtype=samples.x.dtype, device=device)
        restart = torch.tensor([slot.restart for slot in slots], device=device)
        state = self._source.attack.init(Start(samples.x[index], samples.y[index], target, eps, restart), Noise(keys))
        return Running(slots, state, index, keys, torch.zeros_like(index), torch.zeros_like(index))

    def _key(self, slot: Slot) -> tuple[int, int]:
        return row_key(
            self._source.seed, self._source.samples.ids[slot.sample], self._source.algorithm, slot.restart, slot.rank
        )

    def _fewer(self, slots: list[Slot], error: RuntimeError | MemoryError) -> list[Slot]:
        """Half of the rows, after there was no memory to start them all; the others wait again."""
        self.narrow(error, len(slots))
        kept = slots[: -(-len(slots) // 2)]
        for slot in reversed(slots[len(kept) :]):
            self.turns.put_back(slot.sample, slot.turn)
        return kept

    def narrow(self, error: RuntimeError | MemoryError, rows: int) -> None:
        """Halves the width after an error that means too little memory; other errors go on their way."""
        if not out_of_memory(error):
            raise error
        if rows <= SMALLEST:
            raise OutOfMemoryError(
                f"{self._source.samples.x.device} has too little memory for {rows} images of this model at a time;"
                " free some, use a device with more, or evaluate smaller images"
            ) from error
        self.width = max(SMALLEST, rows // 2)


def turns_of(attack: RowAttack[Any], num_classes: int) -> int:
    """Rows per sample: restarts of every target."""
    return attack.restarts() * max(attack.targets(num_classes), 1)
