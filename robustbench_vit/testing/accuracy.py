"""A robust accuracy as tests see it: a number with its interval and its record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering

from robustbench_vit.records import Record
from robustbench_vit.statistics import INTERVALS


@total_ordering
@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """The robust accuracy of an entry of a board; compares with numbers like the number `value`."""

    value: float  # a share of all samples
    interval: tuple[float, float]  # as the board's card has it made
    n: int
    record: Record  # narrowed to the attack and eps asked about
    confidence: float = 0.95

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (int, float, RobustAccuracy)):
            return self.value == float(other)
        return NotImplemented

    def __lt__(self, other: object) -> bool:
        if isinstance(other, (int, float, RobustAccuracy)):
            return self.value < float(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        low, high = self.interval
        outcome = self.record.outcomes[0]
        return (
            f"RobustAccuracy({self.value:.3f} [{low:.3f}, {high:.3f}], n = {self.n}, "
            f"{self.record.entry['name']}, {outcome.attack}, {outcome.norm} {outcome.eps:g})"
        )


def accuracy_of(record: Record, confidence: float = 0.95, interval: str = "wilson") -> RobustAccuracy:
    """The robust accuracy of a record that is narrowed to one attack and eps."""
    value, n = record.robust_accuracy, record.n
    return RobustAccuracy(value, INTERVALS[interval](round(value * n), n, confidence), n, record, confidence)
