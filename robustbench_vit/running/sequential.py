"""Evaluation that stops as early as a rule allows: samples in a fixed order, a chunk at a time.

The rule hears of samples in that order, whatever order the engine finishes them in and however they are cut into
chunks, and is asked after every one. So when it stops depends on the verdicts alone: not on the width, the chunks, or
on how often the run was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Generic, Protocol, Self, TypeVar

from robustbench_vit.data import Dataset
from robustbench_vit.engine.cascade import Stage, build_stages
from robustbench_vit.engine.stock import Progress
from robustbench_vit.evaluation import Watcher, run_plan
from robustbench_vit.plan import Plan
from robustbench_vit.recording import classes_of
from robustbench_vit.records import Outcome, Status
from robustbench_vit.records.journal import Batch, Known
from robustbench_vit.records.rows import LaneSpec, outcome
from robustbench_vit.running.session import Evaluation
from robustbench_vit.statistics import InOrder, in_order, sample_order

SMALLEST_CHUNK = 32
"""Samples in a chunk at least. Fewer leave the device idle; what a chunk has begun when the rule stops is lost.

64 samples of the digits board's cnn-pgd-at took 24 s of one core in one chunk, 31 s in two, 50 s in four.
"""


class Rule(Protocol):
    """When to stop, given what it has heard; frozen."""

    @property
    def over(self) -> bool:
        """Whether it has heard enough; then `take` is not called any more."""
        ...

    def take(self, sample: str, robust: bool) -> Self:
        """The rule after one more sample."""
        ...

    def ahead(self) -> int:
        """About how many more samples it takes if nothing surprising comes; sizes the next chunk and nothing else."""
        ...


R = TypeVar("R", bound=Rule)


class _Over(Exception):
    """The rule has heard enough."""


class Listener(Generic[R]):
    """Tells a rule of finished samples in a fixed order: one that finishes early waits for its predecessors."""

    def __init__(self, rule: R, order: Sequence[str]) -> None:
        self.rule = rule
        self._waiting: InOrder[bool] = in_order(order)
        self._heard: set[str] = set()

    def hear(self, sample: str, robust: bool) -> None:
        """Takes note of a sample, the moment it finishes; later rows of a decided sample change nothing."""
        if sample in self._heard:
            return
        self._heard.add(sample)
        for finished, verdict in self._waiting.finish(sample, robust):
            if not self.rule.over:
                self.rule = self.rule.take(finished, verdict)


def heard(rule: R, order: Sequence[str], verdicts: Mapping[str, bool]) -> R:
    """The rule after all verdicts that are known, up to the first sample of the order without one."""
    listener = Listener(rule, order)
    for sample, robust in verdicts.items():
        listener.hear(sample, robust)
    return listener.rule


def follow(
    rule: R,
    order: Sequence[str],
    evaluate: Callable[[Sequence[str], Callable[[str, bool], None]], None],
    known: Mapping[str, bool],
    width: int,
) -> R:
    """The rule when it is over, or when it has heard of every sample.

    `evaluate` is given the samples of a chunk and a function to call with every verdict as it falls, which ends the
    evaluation by an exception when the rule is over; `known` holds the verdicts that need no evaluation. `width` is how
    many rows run at a time: no chunk is larger, none smaller than `SMALLEST_CHUNK` while there are enough samples.
    """
    listener = Listener(rule, order)
    for sample, robust in known.items():
        listener.hear(sample, robust)

    def finish(sample: str, robust: bool) -> None:
        listener.hear(sample, robust)
        if listener.rule.over:
            raise _Over

    waiting = [sample for sample in order if sample not in known]
    while waiting and not listener.rule.over:
        size = max(min(listener.rule.ahead(), width), SMALLEST_CHUNK)
        chunk, waiting = waiting[:size], waiting[size:]
        with suppress(_Over):
            evaluate(chunk, finish)
    return listener.rule


def evaluate_in_order(rule: R, order: Sequence[str], work: Evaluation, send: Watcher) -> R:
    """The rule when it is over, or has heard of every sample; runs the ranking attack alone (see `ranking`)."""
    plan = ranking(work.plan)
    verdicts = Verdicts(plan, work.known)
    before = verdicts.all()
    place = {sample: position for position, sample in enumerate(plan.samples)}
    stand = _Stand(len(order), len(before), sum(before.values()))

    def evaluate(chunk: Sequence[str], finish: Callable[[str, bool], None]) -> None:
        part, data = narrowed(plan, work.data, [place[sample] for sample in chunk])
        stand.begin(len(chunk))

        def watch(batch: Batch, progress: Progress | None) -> None:
            send(batch, stand.whole(progress))
            for sample, robust in verdicts.fallen(batch):
                finish(sample, robust)

        run_plan(part, work.subject, data, work.bench, work.known, watch, judge=False)

    return follow(rule, order, evaluate, before, work.bench.width.rows)


def ranking(plan: Plan) -> Plan:
    """The plan with the attack and the eps only that rank a board's entries: the protocol's last, and the first."""
    return dataclasses.replace(plan, attacks=plan.attacks[-1:], eps=plan.eps[:1], evidence=())


def narrowed(plan: Plan, data: Dataset, positions: Sequence[int]) -> tuple[Plan, Dataset]:
    """The plan, of the same protocol, and the data for the samples at these positions, in this order."""
    part = data.take(list(positions))
    return dataclasses.replace(plan, samples=part.sample_ids), part


def ordered(plan: Plan, seed: int) -> list[str]:
    """The plan's samples in the order of a seed."""
    return [plan.samples[position] for position in sample_order(plan.samples, seed)]


class Verdicts:
    """Which samples are decided under a plan's ranking attack, as `known` grows."""

    def __init__(self, plan: Plan, known: Known) -> None:
        self._plan, self._known = ranking(plan), known
        self._stage: Stage = build_stages(self._plan)[0]
        self._specs: list[LaneSpec] = []

    def all(self) -> dict[str, bool]:
        """Whether each decided sample is robust."""
        found = {sample: self._robust(sample) for sample in self.begun()}
        return {sample: robust for sample, robust in found.items() if robust is not None}

    def fallen(self, batch: Batch) -> Iterator[tuple[str, bool]]:
        """The samples that a batch decided, with whether they are robust."""
        touched = dict.fromkeys([*(c.sample for c in batch.clean), *(row.key.sample for row in batch.rows)])
        for sample in touched:
            robust = self._robust(sample)
            if robust is not None:
                yield sample, robust

    def begun(self) -> list[str]:
        """The samples that the model was asked about."""
        return [sample for sample in self._plan.samples if sample in self._known.clean]

    def outcomes(self, samples: Sequence[str]) -> tuple[Outcome, ...]:
        """What became of these samples."""
        return tuple(self._outcome(sample) for sample in samples)

    def _robust(self, sample: str) -> bool | None:
        found = self._outcome(sample)
        return None if found.status is Status.NOT_RUN else found.robust

    def _outcome(self, sample: str) -> Outcome:
        plan, clean = self._plan, self._known.clean[sample]
        self._specs = self._specs or self._stage.specs(classes_of(self._known))
        criterion = plan.protocol["criterion"]
        name = self._stage.plan.name
        return outcome(name, plan.norm, self._specs, plan.eps[0], clean, self._known.rows, criterion, plan.draws)


class _Stand:
    """How far a sequential evaluation is, from how far its chunks are."""

    def __init__(self, samples: int, decided: int, robust: int) -> None:
        """`decided` samples, `robust` of them, were known before."""
        self._samples, self._decided, self._robust = samples, decided, robust
        self._work, self._chunk = 0.0, 0
        self._last: Progress | None = None

    def begin(self, samples: int) -> None:
        """A chunk begins."""
        if self._last is not None:
            self._decided += self._chunk
            self._robust += self._last.robust
            self._work += self._last.work_done
        self._chunk, self._last = samples, None

    def whole(self, progress: Progress | None) -> Progress | None:
        """A chunk's progress as that of the evaluation; what is left as if the rule never stopped."""
        if progress is None:
            return None
        self._last = progress
        later = self._samples - self._decided - self._chunk
        each = (progress.work_done + progress.work_left) / max(self._chunk, 1)
        return dataclasses.replace(
            progress,
            decided=self._decided + progress.decided,
            robust=self._robust + progress.robust,
            samples=self._samples,
            work_done=self._work + progress.work_done,
            work_left=progress.work_left + later * each,
        )
