"""Taking stock of a running cascade, for progress bars: what is decided, and about how much work is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vit.attacks.rows import Cost


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    attack: str
    lane: str
    decided: int  # samples, under this attack
    robust: int  # samples not broken so far, under this attack
    samples: int
    work_done: float  # in forward equivalents, a backward counting two
    work_left: float  # upper bound: as if no further sample fell


class Stock:
    """The books of one evaluation: lanes in the order they run, each entered by the samples still undecided."""

    def __init__(self, samples: int, lanes: Sequence[tuple[str, str, Cost]]) -> None:
        """`lanes` lists (attack, lane, cost of a sample that survives the lane), budget after budget."""
        self._samples = samples
        self._lanes = lanes
        self._number = -1
        self._correct = 0
        self._entered = 0
        self._spent = 0.0  # in this lane
        self._done = 0.0

    def enter(self, undecided: int) -> None:
        """The next lane begins."""
        self._number += 1
        self._entered, self._spent = undecided, 0.0
        first = self._number == 0 or self._lanes[self._number][0] != self._lanes[self._number - 1][0]
        self._correct = undecided if first else self._correct

    def spend(self, work: float) -> None:
        """Work done in this lane, in forward equivalents."""
        self._spent += work
        self._done += work

    def take(self, broken: int, survived: int) -> Progress:
        """The progress when so many samples that entered this lane are broken, and so many have survived it."""
        attack, lane, cost = self._lanes[self._number]
        left = self._entered - broken
        here = max(left * _work(cost) - self._spent * left / max(self._entered, 1), 0.0)
        later = sum(
            (left if other == attack else self._correct) * _work(c) for other, _, c in self._lanes[self._number + 1 :]
        )
        last = self._number + 1 == len(self._lanes) or self._lanes[self._number + 1][0] != attack
        decided = self._samples - left + (survived if last else 0)
        return Progress(attack, lane, decided, left, self._samples, self._done, here + later)


def _work(cost: Cost) -> float:
    return cost.forwards + 2 * cost.backwards
