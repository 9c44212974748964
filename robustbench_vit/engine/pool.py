"""Continuous batching of rows: admit, step, verify what was found, retire.

A row leaves the moment it is finished or claims a success, and a waiting one takes its place. The only synchronisation
with the device is one copy of the rows' flags per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise, row_key
from robustbench_vit.attacks.rows import Forgetting, Oracles, RowAttack, Start
from robustbench_vit.engine.oracle import SMALLEST, Oracle, out_of_memory
from robustbench_vit.engine.running import Running, Slot
from robustbench_vit.engine.turns import Turns
from robustbench_vit.engine.verify import BATCH, Checked, Verifier
from robustbench_vit.errors import OutOfMemoryError
from robustbench_vit.records.rows import RowKey, RowResult

PATIENCE = 20
"""Steps after which claims are rechecked even when they don't fill the verifier's batch."""


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
class _Claims:
    """Rows that believe they have succeeded, and what with."""

    rows: Running
    images: Tensor  # (row, c, h, w)
    finished: list[bool]


@dataclass(frozen=True)
class _Shown:
    """A candidate that holds; or one that some draws of a random model get wrong, but not most of them."""

    distance: float
    wrong_draws: int | None  # of a random model
    image: bytes


class Pool:
    """Runs one row attack on samples at one eps."""

    def __init__(
        self,
        attack: RowAttack[Any],
        algorithm: str,
        lane_key: str,
        samples: Samples,
        eps: float,
        seed: int,
        oracle: Oracle,
        verifier: Verifier,
        settings: PoolSettings,
        known: Sequence[tuple[int, int, bool]] = (),
    ) -> None:
        """`known` lists (sample position, turn, found) of rows that need not run again."""
        self._attack, self._algorithm, self._lane_key = attack, algorithm, lane_key
        self._samples, self._eps, self._seed = samples, eps, seed
        self._oracle, self._verifier, self._settings = oracle, verifier, settings
        self._oracles = Oracles(oracle.view(attack.access))
        self._targeted = attack.targets(samples.ranking.shape[1])
        self._turns = Turns(len(samples), turns_of(attack, samples.ranking.shape[1]), known)
        self._width = settings.width
        self._running: Running | None = None
        self._parked: list[Running] = []  # rows for which there was no memory, on the host
        self._claims: list[_Claims] = []
        self._waited = 0  # steps since the oldest claim
        self._rejected: dict[Slot, Tensor] = {}  # (c, h, w) the candidate that failed its row's last recheck
        self._wavering: dict[Slot, _Shown] = {}
        self.wasted = 0  # passes spent on padding and on cancelled rows

    def run(self) -> Iterator[list[RowResult]]:
        """The rows retired by each step, until every sample is decided."""
        while True:
            self._admit([])
            if self._running is None and not self._claims:
                return
            yield self._step()

    def _admit(self, free: list[int]) -> None:
        """Starts rows in the places `free` among the running ones, then behind them; places that stay free close."""
        rows = self._running
        running = 0 if rows is None else len(rows) - len(free)
        new = self._begin(running)
        if rows is None or running == 0:
            self._running = new
            return
        refilled = free[: len(new)] if new is not None else []
        if new is not None:
            rows.replace(refilled, new.take(range(len(refilled))) if len(refilled) < len(new) else new)
        if len(refilled) < len(free):
            closed = set(free[len(refilled) :])
            rows = rows.take([i for i in range(len(rows)) if i not in closed])
        if new is not None and len(refilled) < len(new):
            rows = rows.join(new.take(range(len(refilled), len(new))))
        self._running = rows

    def _begin(self, running: int) -> Running | None:
        """Rows that join so many running ones: those parked before, then new ones."""
        begun: Running | None = None
        while self._parked and running < self._width:
            parked = self._unpark(self._width - running)
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
        return rows.to(self._samples.x.device)

    def _new_slots(self, running: int) -> list[Slot]:
        slots: list[Slot] = []
        while running + len(slots) < self._width:
            started = self._turns.start(speculate=False)
            if started is None:
                break
            slots.append(self._slot(*started))
        limit = min(self._speculate_to(running + len(slots)), self._width)
        while running + len(slots) < limit:
            started = self._turns.start(speculate=True)
            if started is None:
                break
            slots.append(self._slot(*started))
        return slots

    def _speculate_to(self, rows: int) -> int:
        if not self._settings.speculate_to:
            return rows
        likely = self._turns.chance <= self._settings.speculate_below
        return max(self._oracle.computed(rows), self._settings.speculate_to if likely else 0)

    def _slot(self, sample: int, turn: int) -> Slot:
        return Slot(sample, turn, turn % self._attack.restarts(), turn // self._attack.restarts())

    def _start(self, slots: list[Slot]) -> Running:
        """New rows in their first state."""
        device, samples = self._samples.x.device, self._samples
        index = torch.tensor([slot.sample for slot in slots], device=device)
        target = torch.full_like(index, -1)
        if self._targeted:
            target = samples.ranking[index, torch.tensor([slot.rank + 1 for slot in slots], device=device)]
        keys = torch.tensor([self._key(slot) for slot in slots], dtype=torch.int64, device=device)
        eps = torch.full((len(slots),), self._eps, dtype=samples.x.dtype, device=device)
        restart = torch.tensor([slot.restart for slot in slots], device=device)
        state = self._attack.init(Start(samples.x[index], samples.y[index], target, eps, restart), Noise(keys))
        return Running(slots, state, index, keys, torch.zeros_like(index), torch.zeros_like(index))

    def _key(self, slot: Slot) -> tuple[int, int]:
        return row_key(self._seed, self._samples.ids[slot.sample], self._algorithm, slot.restart, slot.rank)

    def _fewer(self, slots: list[Slot], error: RuntimeError | MemoryError) -> list[Slot]:
        """Half of the rows, after there was no memory to start them all; the others wait again."""
        self._narrow(error, len(slots))
        kept = slots[: -(-len(slots) // 2)]
        for slot in reversed(slots[len(kept) :]):
            self._turns.put_back(slot.sample, slot.turn)
        return kept

    def _narrow(self, error: RuntimeError | MemoryError, rows: int) -> None:
        """Halves the width after an error that means too little memory; other errors go on their way."""
        if not out_of_memory(error):
            raise error
        if rows <= SMALLEST:
            raise OutOfMemoryError(
                f"{self._samples.x.device} has too little memory for {rows} images of this model at a time;"
                " free some, use a device with more, or evaluate smaller images"
            ) from error
        self._width = max(SMALLEST, rows // 2)

    def _step(self) -> list[RowResult]:
        """One step of the running rows, and the results of those that it decided."""
        rows = self._running
        if rows is None:
            return self._recheck()
        self._oracle.count(len(rows))
        try:
            rows.state = self._attack.step(rows.state, self._oracles, Noise(rows.keys))
            candidates, finished = self._attack.best(rows.state), self._attack.finished(rows.state)
        except (RuntimeError, MemoryError) as error:
            self._park(rows, error)
            return []
        passes = self._oracle.passes
        rows.forwards += passes.forwards
        rows.backwards += passes.backwards
        self.wasted += passes.padding
        claims = candidates.found & finished if self._attack.stop == "exhausted" else candidates.found
        claimed, ended = torch.stack((claims, finished)).tolist()
        results = []
        if any(claimed) or any(ended):
            results = self._leave(rows, candidates.x, self._unheard(rows, candidates.x, claimed), ended)
        return results + (self._recheck() if self._recheck_is_due() else [])

    def _park(self, rows: Running, error: RuntimeError | MemoryError) -> None:
        """Puts half of the rows aside, after there was no memory for a step; it starts over with the others."""
        self._narrow(error, len(rows))
        passes = self._oracle.passes
        self.wasted += int(passes.forwards.sum() + passes.backwards.sum()) + passes.padding
        self._parked.append(rows.take(range(self._width, len(rows))).to(torch.device("cpu")))
        self._running = rows.take(range(self._width))

    def _unheard(self, rows: Running, images: Tensor, claimed: list[bool]) -> list[int]:
        """Positions that claim a success; the image that was rejected last would only be rejected again."""
        at = [i for i, claims in enumerate(claimed) if claims]
        again = [i for i in at if rows.slots[i] in self._rejected] if self._rejected else []
        if not again:
            return at
        before = torch.stack([self._rejected[rows.slots[i]] for i in again])
        same = (images[again] == before).flatten(1).all(1).tolist()
        known = {i for i, equal in zip(again, same, strict=True) if equal}
        return [i for i in at if i not in known]

    def _leave(self, rows: Running, images: Tensor, claimed: list[int], ended: list[bool]) -> list[RowResult]:
        """Takes rows that claim a success or are finished out of the running ones, and admits others."""
        if claimed:
            self._claims.append(_Claims(rows.take(claimed), images[claimed], [ended[i] for i in claimed]))
            self._turns.hold([rows.slots[i].sample for i in claimed])
        claiming = set(claimed)
        over = [i for i, end in enumerate(ended) if end and i not in claiming]
        results = []
        if over:
            forwards, backwards = rows.forwards.tolist(), rows.backwards.tolist()
            for i in over:
                self._turns.report(rows.slots[i].sample, rows.slots[i].turn, False)
                results.append(self._result(rows.slots[i], None, forwards[i], backwards[i]))
        if claimed or over:
            self._admit(sorted([*claimed, *over]))
        return results

    def _recheck_is_due(self) -> bool:
        """Whether claims fill the verifier's batch, have waited for long, or nothing else is left to run."""
        if not self._claims:
            return False
        self._waited += 1
        if self._waited >= PATIENCE or sum(len(claims.rows) for claims in self._claims) >= BATCH:
            return True
        return self._running is None or all(self._turns.held(slot.sample) for slot in self._running.slots)

    def _recheck(self) -> list[RowResult]:
        """The results of rows whose claims hold, or that are finished anyway; the others go on."""
        rows, images, finished = self._gathered()
        checked = self._check(rows, images)
        forwards, backwards, holds = rows.forwards.tolist(), rows.backwards.tolist(), checked.holds.tolist()
        self._turns.release()
        cancelled: set[Slot] = set()
        again, results = [], []
        for i, slot in enumerate(rows.slots):
            if slot in cancelled:
                continue
            shown = self._shown(checked, i, images[i]) if holds[i] else None
            if shown is None:
                self._reject(slot, images[i], checked, i)
            if shown is None and not finished[i]:
                again.append(i)
                continue
            pointless = self._turns.report(slot.sample, slot.turn, shown is not None)
            cancelled |= {self._slot(slot.sample, turn) for turn in pointless}
            results.append(self._result(slot, shown, forwards[i], backwards[i]))
        self.wasted += sum(forwards[i] + backwards[i] for i, slot in enumerate(rows.slots) if slot in cancelled)
        if going_on := [i for i in again if rows.slots[i] not in cancelled]:
            rows = rows.take(going_on)
            if isinstance(self._attack, Forgetting):
                rows.state = self._attack.forget(rows.state)
            self._parked.append(rows)
        if cancelled:
            self._cancel(cancelled)
        return results

    def _gathered(self) -> tuple[Running, Tensor, list[bool]]:
        """All claims: their rows, images (row, c, h, w), and which of them are finished."""
        claims, self._claims, self._waited = self._claims, [], 0
        rows = claims[0].rows
        for later in claims[1:]:
            rows = rows.join(later.rows)
        return rows, torch.cat([c.images for c in claims]), [end for c in claims for end in c.finished]

    def _check(self, rows: Running, images: Tensor) -> Checked:
        eps = torch.full((len(rows),), self._eps, dtype=self._samples.x.dtype, device=rows.index.device)
        checked = self._verifier.check(images, self._samples.x[rows.index], self._samples.y[rows.index], eps)
        rows.forwards += self._verifier.draws
        self.wasted += -len(rows) % BATCH * self._verifier.draws
        return checked

    def _shown(self, checked: Checked, i: int, image: Tensor) -> _Shown:
        wrong = int(checked.wrong_draws[i]) if self._verifier.draws > 1 else None
        return _Shown(float(checked.distance[i]), wrong, image_bytes(image))

    def _reject(self, slot: Slot, image: Tensor, checked: Checked, i: int) -> None:
        """Remembers a candidate that failed, and of a random model the one that most draws get wrong."""
        self._rejected[slot] = image
        wrong = int(checked.wrong_draws[i])
        if bool(checked.inside[i]) and wrong > 0:
            best = self._wavering.get(slot)
            if best is None or best.wrong_draws is None or wrong > best.wrong_draws:
                self._wavering[slot] = self._shown(checked, i, image)

    def _result(self, slot: Slot, found: _Shown | None, forwards: int, backwards: int) -> RowResult:
        wavering = self._wavering.pop(slot, None)
        self._rejected.pop(slot, None)
        shown = found or wavering
        return RowResult(
            RowKey(self._lane_key, self._eps, self._samples.ids[slot.sample], slot.turn),
            slot.restart,
            int(self._samples.ranking[slot.sample, slot.rank + 1]) if self._targeted else None,
            found is not None,
            shown.distance if shown else None,
            forwards,
            backwards,
            shown.image if shown else None,
            shown.wrong_draws if shown else None,
        )

    def _cancel(self, slots: set[Slot]) -> None:
        """Drops rows whose results no longer count."""
        self._parked = [left for rows in self._parked if (left := self._without(rows, slots)) is not None]
        rows = self._running
        if rows is not None and (at := [i for i, slot in enumerate(rows.slots) if slot in slots]):
            self._waste(rows, at)
            self._admit(at)

    def _without(self, rows: Running, slots: set[Slot]) -> Running | None:
        at = [i for i, slot in enumerate(rows.slots) if slot in slots]
        if not at:
            return rows
        self._waste(rows, at)
        left = [i for i in range(len(rows)) if i not in set(at)]
        return rows.take(left) if left else None

    def _waste(self, rows: Running, at: list[int]) -> None:
        self.wasted += int((rows.forwards[at] + rows.backwards[at]).sum())


def turns_of(attack: RowAttack[Any], num_classes: int) -> int:
    """Rows per sample: restarts of every target."""
    return attack.restarts() * max(attack.targets(num_classes), 1)


def image_bytes(image: Tensor) -> bytes:
    """float32 (c, h, w) as bytes."""
    return image.detach().to("cpu", torch.float32).contiguous().numpy().astype(np.float32).tobytes()
