"""Which row starts next, and when a sample is decided. Plain integers; no torch.

A sample's rows in one lane are its *turns* 0, 1, … (target by target, restart by restart). The verdict, and everything
recorded of it, is that of running the turns one after another until the first success. When slots stay free, later
turns start early; if an earlier turn then succeeds, they are cancelled, and their passes count as wasted.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class _Sample:
    limit: int  # turns from here on are pointless: a success at this turn, or the number of turns
    pending: deque[int]  # turns not started, ascending
    running: set[int] = field(default_factory=set)


class Turns:
    """The rows of one lane for samples 0 … n-1; every call takes about as long whatever n."""

    def __init__(self, samples: int, turns: int, known: Iterable[tuple[int, int, bool]] = ()) -> None:
        """`known` lists (sample, turn, found) of rows that retired before an interruption."""
        self._samples = [_Sample(turns, deque(range(turns))) for _ in range(samples)]
        for sample, turn, found in known:
            if turn in self._samples[sample].pending:  # a speculated turn may lie behind an earlier success
                self._samples[sample].pending.remove(turn)
            if found:
                self._cut(sample, turn)
        self._ready = deque(i for i, s in enumerate(self._samples) if s.pending)
        self._further: list[tuple[int, int]] = []  # a heap of (turn, sample) that may start early; some are outdated
        self._held: set[int] = set()
        self._reported = self._found = 0

    @property
    def chance(self) -> float:
        """How often a turn succeeds, going by those reported (Laplace's rule: one half before the first)."""
        return (self._found + 1) / (self._reported + 2)

    def start(self, speculate: bool) -> tuple[int, int] | None:
        """The (sample, turn) to start now; with `speculate` also a later turn of a sample that is running."""
        while self._ready:
            sample = self._ready.popleft()
            if self._samples[sample].pending and not self._samples[sample].running:
                return self._begin(sample)
        while speculate and self._further:
            turn, sample = heapq.heappop(self._further)
            pending = self._samples[sample].pending
            if pending and pending[0] == turn and sample not in self._held:
                return self._begin(sample)
        return None

    def _begin(self, sample: int) -> tuple[int, int]:
        state = self._samples[sample]
        turn = state.pending.popleft()
        state.running.add(turn)
        if state.pending:
            heapq.heappush(self._further, (state.pending[0], sample))
        return sample, turn

    def put_back(self, sample: int, turn: int) -> None:
        """Takes back the last start of a sample, as if it had not been; it is the next to start again."""
        state = self._samples[sample]
        state.running.discard(turn)
        state.pending.appendleft(turn)
        if state.running:
            heapq.heappush(self._further, (turn, sample))
        else:
            self._ready.appendleft(sample)

    def hold(self, samples: Iterable[int]) -> None:
        """No further turn of these starts early until `release`: a running one claims to have succeeded."""
        self._held.update(samples)

    def held(self, sample: int) -> bool:
        """Whether a turn of the sample claims to have succeeded."""
        return sample in self._held

    def release(self) -> None:
        """Ends every `hold`."""
        for sample in self._held:
            if self._samples[sample].pending:
                heapq.heappush(self._further, (self._samples[sample].pending[0], sample))
        self._held.clear()

    def report(self, sample: int, turn: int, found: bool) -> list[int]:
        """Takes in a retired row; returns the running turns of its sample that are now pointless."""
        self._reported, self._found = self._reported + 1, self._found + found
        state = self._samples[sample]
        state.running.discard(turn)
        cancelled = self._cut(sample, turn) if found else []
        if state.pending and not state.running:
            self._ready.append(sample)
        return cancelled

    def _cut(self, sample: int, turn: int) -> list[int]:
        state = self._samples[sample]
        state.limit = min(state.limit, turn)
        state.pending = deque(t for t in state.pending if t < state.limit)
        cancelled = [t for t in state.running if t > state.limit]
        state.running -= set(cancelled)
        return cancelled
