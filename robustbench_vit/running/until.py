"""`rbvit run --until`: an entry has had enough samples when its robust accuracy is known within ± half_width.

The interval is a confidence sequence, which holds at all sample sizes at once, so stopping by it is no cheating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_vit.data import Dataset
from robustbench_vit.errors import InputError
from robustbench_vit.evaluation import Watcher, run_plan
from robustbench_vit.plan import Plan
from robustbench_vit.recording import complete
from robustbench_vit.records import Record
from robustbench_vit.records.journal import Known
from robustbench_vit.running.entries import Prepared
from robustbench_vit.running.sequential import Verdicts, evaluate_in_order, heard, narrowed, ordered
from robustbench_vit.running.session import Evaluation
from robustbench_vit.statistics import ConfidenceSequence

PROFILE = "until"


@dataclass(frozen=True)
class Until:
    """When an entry has had enough samples. Raises InputError for a half-width that isn't between 0 and 0.5."""

    half_width: float  # a share; the interval is to be narrower than twice this
    confidence: float
    order_seed: int  # of the order in which samples are taken

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 0.5:
            meant = f"; did you mean {self.half_width / 100:g}?" if 0.5 <= self.half_width < 50 else ""
            raise InputError(f"--until is half the interval's width, between 0 and 0.5, got {self.half_width:g}{meant}")

    @property
    def rule(self) -> NarrowEnough:
        """The rule before it has heard of any sample."""
        return NarrowEnough(ConfidenceSequence(1 - self.confidence, self.half_width), self.half_width)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a record's protocol says of it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class NarrowEnough:
    """Stops when the confidence sequence of the robust accuracy is narrower than ± half_width."""

    sequence: ConfidenceSequence
    half_width: float

    @property
    def over(self) -> bool:
        """Whether the interval is narrow enough."""
        return self.sequence.narrow

    def take(self, sample: str, robust: bool) -> NarrowEnough:
        """The rule after one more sample."""
        return dataclasses.replace(self, sequence=self.sequence.take(robust))

    def ahead(self) -> int:
        """How many more samples it takes if the width goes on falling with the square root of their number."""
        n = self.sequence.n
        return round(n * ((self._half() / self.half_width) ** 2 - 1)) if n else FIRST_CHUNK

    def _half(self) -> float:
        low, high = self.sequence.interval
        return (high - low) / 2


FIRST_CHUNK = 64
"""Samples after which it can first be told how many more it may take."""


def until_plan(plan: Plan, until: Until) -> Plan:
    """The plan, with a protocol that says how far it goes.

    The protocol names all samples that might be taken, so rows that stopped at different ones may share a table.
    """
    return dataclasses.replace(plan, protocol={**plan.protocol, "profile": PROFILE, "until": until.protocol})


@dataclass(frozen=True)
class EvaluateUntil:
    """Evaluates an entry on as few samples as it takes, then on those by whatever else its plan says."""

    until: Until

    def __call__(self, work: Evaluation, send: Watcher) -> None:
        order = ordered(work.plan, self.until.order_seed)
        rule = evaluate_in_order(self.until.rule, order, work, send)
        plan, data = _first(work, order, rule.sequence.n)
        run_plan(plan, work.subject, data, work.bench, work.known, send, work.surrogate)


def stopped(item: Prepared, known: Known, until: Until) -> Prepared:
    """The entry with the samples only on which it was stopped, in the order in which they were taken."""
    order = ordered(item.plan, until.order_seed)
    rule = heard(until.rule, order, Verdicts(item.plan, known).all())
    plan, data = _first(item, order, rule.sequence.n)
    return dataclasses.replace(item, plan=plan, data=data)


def complete_until(item: Prepared, until: Until, known: Known) -> bool:
    """Whether an entry has had enough samples, or all, and nothing is left to compute on these."""
    order = ordered(item.plan, until.order_seed)
    rule = heard(until.rule, order, Verdicts(item.plan, known).all())
    if not rule.over and rule.sequence.n < len(order):
        return False
    return complete(_first(item, order, rule.sequence.n)[0], known)


def until_lines(records: Mapping[str, Record]) -> list[str]:
    """A line per entry: how many samples it took, and what is known of its robust accuracy."""
    return [_until_line(name, record) for name, record in records.items()]


def _until_line(name: str, record: Record) -> str:
    said, of = record.protocol[PROFILE], record.protocol["data"]["n"]
    attack, eps = list(record.protocol["attacks"])[-1], record.protocol["eps"][0]
    low, high = record.at(attack, eps).interval(said["confidence"])
    enough = (high - low) / 2 < said["half_width"]
    found = f"{name}: {record.n:,} of {of:,} samples, {attack} in [{100 * low:.1f}, {100 * high:.1f}] %"
    asked = f"± {100 * said['half_width']:g}"
    return found if enough else f"{found}: not within {asked}, there are no more samples"


def _first(item: Evaluation | Prepared, order: list[str], n: int) -> tuple[Plan, Dataset]:
    """The plan and the data for the first n samples of the order."""
    place = {sample: position for position, sample in enumerate(item.plan.samples)}
    return narrowed(item.plan, item.data, [place[sample] for sample in order[:n]])
