"""Continuous batching of rows: admit, step, verify what was found, retire.

A row leaves the moment it is finished or claims a success, and a waiting one takes its place. The only synchronisation
with the device is one copy of the rows' flags per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.rows import Forgetting, Oracles, RowAttack
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.running import Running, Slot
from robustbench_vit.engine.turns import Turns
from robustbench_vit.engine.verify import BATCH, Checked, Verifier
from robustbench_vit.engine.waiting import PoolSettings, RowSource, Samples, Waiting
from robustbench_vit.records.rows import RowKey, RowResult

PATIENCE = 20
"""Steps after which claims are rechecked even when they don't fill the verifier's batch."""


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
        surrogates: Mapping[str, Any] | None = None,
    ) -> None:
        """`known` lists (sample position, turn, found) of rows that need not run again; `surrogates` are views."""
        self._attack, self._lane_key, self._samples, self._eps = attack, lane_key, samples, eps
        self._oracle, self._verifier = oracle, verifier
        self._oracles = Oracles(oracle.view(attack.access), dict(surrogates or {}))
        self._targeted = attack.targets(samples.ranking.shape[1])
        source = RowSource(attack, algorithm, samples, eps, seed)
        self._turns = Turns(len(samples), source.turns, known)
        self._waiting = Waiting(source, self._turns, settings, oracle.computed)
        self._running: Running | None = None
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
        new = self._waiting.take(running)
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

    def _step(self) -> list[RowResult]:
        """One step of the running rows, and the results of those that it decided."""
        rows = self._running
        if rows is None:
            return self._recheck()
        self._oracle.count(len(rows))
        try:
            state = self._attack.step(rows.state, self._oracles, Noise(rows.keys))
            candidates, finished = self._attack.best(state), self._attack.finished(state)
        except (RuntimeError, MemoryError) as error:
            self._park(rows, error)
            return []
        rows.state = state
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
        self._waiting.narrow(error, len(rows))
        passes, width = self._oracle.passes, self._waiting.width
        self.wasted += int(passes.forwards.sum() + passes.backwards.sum()) + passes.padding
        self._waiting.put_aside(rows.take(range(width, len(rows))).to(torch.device("cpu")))
        self._running = rows.take(range(width))

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
            cancelled |= {self._waiting.slot(slot.sample, turn) for turn in pointless}
            results.append(self._result(slot, shown, forwards[i], backwards[i]))
        self.wasted += sum(forwards[i] + backwards[i] for i, slot in enumerate(rows.slots) if slot in cancelled)
        if going_on := [i for i in again if rows.slots[i] not in cancelled]:
            rows = rows.take(going_on)
            if isinstance(self._attack, Forgetting):
                rows.state = self._attack.forget(rows.state)
            self._waiting.put_aside(rows)
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
        self.wasted += self._waiting.cancel(slots)
        rows = self._running
        if rows is not None and (at := [i for i, slot in enumerate(rows.slots) if slot in slots]):
            self.wasted += rows.passes(at)
            self._admit(at)


def image_bytes(image: Tensor) -> bytes:
    """float32 (c, h, w) as bytes."""
    return image.detach().to("cpu", torch.float32).contiguous().numpy().astype(np.float32).tobytes()
