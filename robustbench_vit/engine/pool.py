"""Continuous batching of rows: admit, step, verify what was found, retire.

A row leaves the moment its success is verified or it is finished, and a waiting one takes its slot. The only
synchronisation with the device is one copy of the rows' flags per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.attacks.noise import Noise, row_key
from robustbench_vit.attacks.rows import Candidates, Oracles, RowAttack, Start, concatenate, take
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.turns import Turns
from robustbench_vit.engine.verify import Checked, Verifier
from robustbench_vit.records.rows import RowKey, RowResult


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
    """How many rows run at once; results don't depend on it."""

    width: int
    speculate_to: int  # rows up to which free slots take later turns of running samples


@dataclass(frozen=True)
class _Slot:
    sample: int
    turn: int
    restart: int
    rank: int


@dataclass(frozen=True)
class _Verified:
    """A candidate that holds."""

    distance: float
    wrong_draws: int | None  # of a random model


@dataclass(frozen=True)
class _Wavering:
    """A candidate that some draws of a random model get wrong, but not most of them."""

    wrong_draws: int
    distance: float
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
        self._slots: list[_Slot] = []
        self._state: Any = None
        self._index = self._keys = self._forwards = self._backwards = torch.zeros(0, dtype=torch.int64)
        self._rejected: Tensor | None = None  # (row, c, h, w) the candidates that failed their last recheck
        self._wavering: dict[tuple[int, int], _Wavering] = {}  # by (sample, turn)
        self.wasted = 0  # passes spent on padding and on cancelled rows

    def run(self) -> Iterator[list[RowResult]]:
        """The rows retired by each step, until every sample is decided."""
        while True:
            self._admit()
            if not self._slots:
                return
            yield self._step()

    def _admit(self) -> None:
        new: list[_Slot] = []
        while len(self._slots) + len(new) < self._settings.width:
            filled = len(self._slots) + len(new)
            started = self._turns.start(speculate=filled < self._settings.speculate_to)
            if started is None:
                break
            sample, turn = started
            new.append(_Slot(sample, turn, turn % self._attack.restarts(), turn // self._attack.restarts()))
        if new:
            self._join(new)

    def _join(self, new: list[_Slot]) -> None:
        """Puts the new rows' states behind the running ones."""
        device, samples = self._samples.x.device, self._samples
        index = torch.tensor([slot.sample for slot in new], device=device)
        target = torch.full_like(index, -1)
        if self._targeted:
            rank = torch.tensor([slot.rank + 1 for slot in new], device=device)
            target = samples.ranking[index, rank]
        keys = torch.tensor([self._key(slot) for slot in new], dtype=torch.int64, device=device)
        eps = torch.full((len(new),), self._eps, dtype=samples.x.dtype, device=device)
        restart = torch.tensor([slot.restart for slot in new], device=device)
        state = self._attack.init(Start(samples.x[index], samples.y[index], target, eps, restart), Noise(keys))
        nothing = torch.zeros(len(new), dtype=torch.int64, device=device)
        if self._slots:
            state = concatenate([self._state, state])
            index, keys = torch.cat([self._index, index]), torch.cat([self._keys, keys])
        if self._rejected is not None:
            self._rejected = torch.cat([self._rejected, torch.full_like(samples.x[index[-len(new) :]], torch.nan)])
        running = len(self._slots)
        self._forwards = torch.cat([self._forwards[:running].to(device), nothing])
        self._backwards = torch.cat([self._backwards[:running].to(device), nothing])
        self._state, self._index, self._keys = state, index, keys
        self._slots += new

    def _key(self, slot: _Slot) -> tuple[int, int]:
        return row_key(self._seed, self._samples.ids[slot.sample], self._algorithm, slot.restart, slot.rank)

    def _step(self) -> list[RowResult]:
        self._oracle.count(len(self._slots))
        self._state = self._attack.step(self._state, self._oracles, Noise(self._keys))
        passes = self._oracle.passes
        self._forwards += passes.forwards
        self._backwards += passes.backwards
        self.wasted += passes.padding
        candidates, finished = self._attack.best(self._state), self._attack.finished(self._state)
        claims = candidates.found & finished if self._attack.stop == "exhausted" else candidates.found
        if self._rejected is not None:  # the same image again would only be rejected again
            claims = claims & (candidates.x != self._rejected).flatten(1).any(1)
        claimed, ended = torch.stack((claims, finished)).tolist()
        if not any(claimed) and not any(ended):
            return []
        return self._retire(candidates, [i for i, yes in enumerate(claimed) if yes], ended)

    def _retire(self, candidates: Candidates, claimed: list[int], ended: list[bool]) -> list[RowResult]:
        verified = self._verify(candidates, claimed)
        leaving = [i for i, end in enumerate(ended) if end or i in verified]
        forwards, backwards = self._forwards.tolist(), self._backwards.tolist()
        results, cancelled = [], set()
        for i in leaving:
            if i in cancelled:
                continue
            slot = self._slots[i]
            pointless = self._turns.report(slot.sample, slot.turn, i in verified)
            cancelled |= {j for j, s in enumerate(self._slots) if s.sample == slot.sample and s.turn in pointless}
            results.append(self._result(i, candidates, verified.get(i), forwards[i], backwards[i]))
        self.wasted += sum(forwards[j] + backwards[j] for j in cancelled)
        self._keep([i for i in range(len(self._slots)) if i not in cancelled and i not in set(leaving)])
        return results

    def _verify(self, candidates: Candidates, claimed: list[int]) -> dict[int, _Verified]:
        """Positions whose claim holds; a claim that fails leaves its row running."""
        if not claimed:
            return {}
        at = torch.tensor(claimed, device=self._index.device)
        which = self._index[at]
        eps = torch.full((len(at),), self._eps, dtype=self._samples.x.dtype, device=at.device)
        images = candidates.x[at]
        checked: Checked = self._verifier.check(images, self._samples.x[which], self._samples.y[which], eps)
        self._forwards[at] += self._verifier.draws
        holds, distance, wrong = checked.holds.tolist(), checked.distance.tolist(), checked.wrong_draws.tolist()
        if not all(holds):
            self._reject(at, images, checked)
        random = self._verifier.draws > 1
        return {i: _Verified(distance[k], wrong[k] if random else None) for k, i in enumerate(claimed) if holds[k]}

    def _reject(self, at: Tensor, images: Tensor, checked: Checked) -> None:
        """Remembers candidates that failed, and of a random model those that some draws get wrong."""
        if self._rejected is None:
            self._rejected = torch.full((len(self._slots), *images.shape[1:]), torch.nan, dtype=images.dtype)
            self._rejected = self._rejected.to(images.device)
        failed = ~checked.holds
        self._rejected[at[failed]] = images[failed]
        for k in (failed & checked.inside & (checked.wrong_draws > 0)).nonzero().flatten().tolist():
            slot, wrong = self._slots[int(at[k])], int(checked.wrong_draws[k])
            best = self._wavering.get((slot.sample, slot.turn))
            if best is None or wrong > best.wrong_draws:
                found = _Wavering(wrong, float(checked.distance[k]), image_bytes(images[k]))
                self._wavering[slot.sample, slot.turn] = found

    def _result(
        self, i: int, candidates: Candidates, verified: _Verified | None, forwards: int, backwards: int
    ) -> RowResult:
        slot = self._slots[i]
        shown: _Verified | _Wavering | None = verified or self._wavering.pop((slot.sample, slot.turn), None)
        image = image_bytes(candidates.x[i]) if verified else getattr(shown, "image", None)
        return RowResult(
            RowKey(self._lane_key, self._eps, self._samples.ids[slot.sample], slot.turn),
            slot.restart,
            int(self._samples.ranking[slot.sample, slot.rank + 1]) if self._targeted else None,
            verified is not None,
            shown.distance if shown else None,
            forwards,
            backwards,
            image,
            shown.wrong_draws if shown else None,
        )

    def _keep(self, positions: list[int]) -> None:
        self._slots = [self._slots[i] for i in positions]
        at = torch.tensor(positions, dtype=torch.int64, device=self._index.device)
        self._state = take(self._state, at)
        self._index, self._keys = self._index[at], self._keys[at]
        self._forwards, self._backwards = self._forwards[at], self._backwards[at]
        self._rejected = None if self._rejected is None else self._rejected[at]


def turns_of(attack: RowAttack[Any], num_classes: int) -> int:
    """Rows per sample: restarts of every target."""
    return attack.restarts() * max(attack.targets(num_classes), 1)


def image_bytes(image: Tensor) -> bytes:
    """float32 (c, h, w) as bytes."""
    return image.detach().to("cpu", torch.float32).contiguous().numpy().astype(np.float32).tobytes()
