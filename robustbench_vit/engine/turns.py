"""Which row starts next, and when a sample is decided. Plain integers; no torch.

A sample's rows in one lane are its *turns* 0, 1, … (target by target, restart by restart). The verdict, and everything
recorded of it, is that of running the turns one after another until the first success. When slots stay free, later
turns start early; if an earlier turn then succeeds, they are cancelled, and their passes count as wasted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class _Sample:
    limit: int  # turns from here on are pointless: a success at this turn, or the number of turns
    pending: deque[int]  # turns not started, ascending
    running: set[int] = field(default_factory=set)

    @property
    def decided(self) -> bool:
        return not self.running and not self.pending


class Turns:
    """The rows of one lane for samples 0 … n-1."""

    def __init__(self, samples: int, turns: int, known: Iterable[tuple[int, int, bool]] = ()) -> None:
        """`known` lists (sample, turn, found) of rows that retired before an interruption."""
        self._samples = [_Sample(turns, deque(range(turns))) for _ in range(samples)]
        for sample, turn, found in known:
            if turn in self._samples[sample].pending:  # a speculated turn may lie behind an earlier success
                self._samples[sample].pending.remove(turn)
            if found:
                self._cut(sample, turn)
        self._ready = deque(i for i, s in enumerate(self._samples) if s.pending)

    def start(self, speculate: bool) -> tuple[int, int] | None:
        """The (sample, turn) to start now; with `speculate` also a later turn of a sample that is running."""
        while self._ready:
            sample = self._ready.popleft()
            if self._samples[sample].pending and not self._samples[sample].running:
                return self._begin(sample)
        if not speculate:
            return None
        waiting = [(s.pending[0], i) for i, s in enumerate(self._samples) if s.pending]
        return self._begin(min(waiting)[1]) if waiting else None

    def _begin(self, sample: int) -> tuple[int, int]:
        turn = self._samples[sample].pending.popleft()
        self._samples[sample].running.add(turn)
        return sample, turn

    def report(self, sample: int, turn: int, found: bool) -> list[int]:
        """Takes in a retired row; returns the running turns of its sample that are now pointless."""
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
