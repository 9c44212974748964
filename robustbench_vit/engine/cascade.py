"""The cascade: clean answers first, then lane after lane on the samples still robust."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.engine.lanes import Bench, Lane, check_lane_kinds, run_lane
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.pool import Samples
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.plan import AttackPlan, Plan
from robustbench_vit.records.journal import Batch, Known
from robustbench_vit.records.rows import CleanResult, LaneSpec, credited

NOTE_EVERY = 0.3
"""Seconds between two stock-takings for the progress bar."""


@dataclass(frozen=True)
class Stage:
    """One attack with its lanes built."""

    plan: AttackPlan
    lanes: tuple[Lane, ...]

    def specs(self, num_classes: int) -> list[LaneSpec]:
        """What outcomes need to know of the lanes."""
        return [lane.spec(num_classes) for lane in self.lanes]


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    attack: str
    lane: str
    decided: int  # samples, under this attack
    robust: int  # samples not broken so far, under this attack
    samples: int
    work_done: float  # in forward equivalents (a backward counts two), estimated
    work_left: float  # upper bound: as if no further sample fell


def build_stages(plan: Plan) -> list[Stage]:
    """The plan's attacks built from their cards; raises CardError and InputError before any work."""
    stages = [
        Stage(attack, tuple(Lane(lane, build_attack(lane.loaded, plan.norm)) for lane in attack.lanes))
        for attack in plan.attacks
    ]
    check_lane_kinds([lane for stage in stages for lane in stage.lanes])
    return stages


class Cascade:
    """Evaluates one model; `known` grows as results come, and what it already holds is not computed again."""

    def __init__(self, plan: Plan, bench: Bench, x: Tensor, y: Tensor, known: Known) -> None:
        """x (n, c, h, w) in [0, 1] and y (n,), in the order of the plan's samples, on the bench's device."""
        self._plan, self._bench, self._x, self._y = plan, bench, x, y
        self._stages = build_stages(plan)
        self.known = known
        self._clock = time.perf_counter()
        self.progress: Progress | None = None
        self._work_done = 0.0
        self._noted = 0.0

    def run(self) -> Iterator[Batch]:
        """What was decided, step by step (batches may be empty); `known` remembers it too."""
        with frozen(self._bench.model):
            yield from self._clean()
            samples, correct = self._samples()
            for eps in self._plan.eps:
                for stage in self._stages:
                    yield from self._stage(stage, samples, correct, eps)

    def _clean(self) -> Iterator[Batch]:
        missing = [i for i, sample in enumerate(self._plan.samples) if sample not in self.known.clean]
        verifier = Verifier(self._bench.model, NORMS[self._plan.norm])
        for begin in range(0, len(missing), 256):
            at = torch.tensor(missing[begin : begin + 256], device=self._x.device)
            logits = verifier.logits(self._x[at]).float().cpu()
            right = (logits.argmax(1) == self._y[at].cpu()).tolist()
            yield self._keep(
                Batch(
                    self._plan.attacks[0].name,
                    clean=tuple(
                        CleanResult(self._plan.samples[i], ok, row.numpy().tobytes())
                        for i, ok, row in zip(at.tolist(), right, logits, strict=True)
                    ),
                )
            )

    def _samples(self) -> tuple[Samples, list[int]]:
        """All samples with their classes ranked by clean logit, and the positions of the correct ones."""
        clean = [self.known.clean[sample] for sample in self._plan.samples]
        logits = torch.from_numpy(np.stack([np.frombuffer(c.logits, np.float32) for c in clean]))
        ranking = logits.argsort(dim=1, descending=True, stable=True).to(self._x.device)
        samples = Samples(self._plan.samples, self._x, self._y, ranking)
        return samples, [i for i, c in enumerate(clean) if c.correct]

    def _stage(self, stage: Stage, samples: Samples, correct: Sequence[int], eps: float) -> Iterator[Batch]:
        undecided, classes = list(correct), samples.ranking.shape[1]
        for number, lane in enumerate(stage.lanes):
            spec = lane.spec(classes)
            if undecided:
                remaining = samples.take(undecided)
                for retired in run_lane(lane, remaining, eps, self._bench, self.known.rows):
                    yield self._keep(Batch(stage.plan.name, rows=retired.rows, wasted=retired.wasted))
                    if self._clock - self._noted > NOTE_EVERY:
                        self._noted = self._clock
                        self._note(stage, number, remaining, undecided, eps)
            undecided = [i for i in undecided if not self._broken(spec, eps, samples.ids[i])]
        self._note_end(stage, undecided)

    def _broken(self, spec: LaneSpec, eps: float, sample: str) -> bool:
        return credited(spec, eps, sample, self.known.rows)[1] is True

    def _keep(self, batch: Batch) -> Batch:
        now = time.perf_counter()
        batch = Batch(batch.attack, batch.clean, batch.rows, now - self._clock, batch.wasted)
        self._clock = now
        self.known.add(batch)
        self._work_done += sum(row.forwards + 2 * row.backwards for row in batch.rows)
        return batch

    def _note(self, stage: Stage, number: int, running: Samples, undecided: Sequence[int], eps: float) -> None:
        """Takes stock for the progress bar, with as little work as possible."""
        classes = running.ranking.shape[1]
        lane = stage.lanes[number]
        spec = lane.spec(classes)
        states = [credited(spec, eps, sample, self.known.rows) for sample in running.ids]
        broken = sum(state is True for _, state in states)
        ended = sum(len(rows) for rows, state in states if state is not True)
        survivors = len(undecided) - broken
        per_turn = _work(lane, classes) / spec.turns
        left = survivors * _work(lane, classes) - ended * per_turn
        left += sum(survivors * _work(later, classes) for later in stage.lanes[number + 1 :])
        left += len(undecided) * sum(_work(later, classes) for s in self._after(stage) for later in s.lanes)
        total = len(self._plan.samples)
        decided = (
            total - survivors
            if number + 1 < len(stage.lanes)
            else total - (len(states) - sum(s is not None for _, s in states))
        )
        self.progress = Progress(stage.plan.name, lane.plan.name, decided, survivors, total, self._work_done, left)

    def _note_end(self, stage: Stage, undecided: Sequence[int]) -> None:
        left, total = self.progress.work_left if self.progress else 0.0, len(self._plan.samples)
        name = stage.lanes[-1].plan.name
        self.progress = Progress(stage.plan.name, name, total, len(undecided), total, self._work_done, left)

    def _after(self, stage: Stage) -> Sequence[Stage]:
        return self._stages[self._stages.index(stage) + 1 :]


def _work(lane: Lane, classes: int) -> float:
    """Forward equivalents of one sample that survives the lane."""
    cost = lane.attack.cost(classes)
    return cost.forwards + 2 * cost.backwards
