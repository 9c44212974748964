"""The cascade: clean answers first, then lane after lane on the samples still robust."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.engine.lanes import Bench, Lane, check_lane_kinds, run_lane
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.stock import Progress, Stock
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.engine.waiting import Samples
from robustbench_vit.errors import ModelError
from robustbench_vit.plan import AttackPlan, Plan
from robustbench_vit.records.journal import Batch, Known
from robustbench_vit.records.rows import CleanResult, LaneSpec, credited

NOTE_EVERY, NOTE_COST = 0.3, 0.005
"""Seconds between two stock-takings for the progress bar, and the share of the time they may take."""


@dataclass(frozen=True)
class Stage:
    """One attack with its lanes built."""

    plan: AttackPlan
    lanes: tuple[Lane, ...]

    def specs(self, num_classes: int) -> list[LaneSpec]:
        """What outcomes need to know of the lanes."""
        return [lane.spec(num_classes) for lane in self.lanes]


def build_stages(plan: Plan) -> list[Stage]:
    """The plan's attacks built from their cards; raises CardError and InputError before any work."""
    stages = [
        Stage(attack, tuple(Lane(lane, build_attack(lane.loaded, plan.norm)) for lane in attack.lanes))
        for attack in plan.all_attacks
    ]
    check_lane_kinds([lane for stage in stages for lane in stage.lanes])
    return stages


@contextmanager
def drawing(plan: Plan, device: torch.device) -> Iterator[None]:
    """While open, a model that answers at random draws from generators seeded by the plan; theirs come back.

    So a run can be repeated; but unlike the attacks' own noise these draws depend on the order of the calls.
    """
    if not plan.random:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(plan.seed)
        yield


class Cascade:
    """Evaluates one model; `known` grows as results come, and what it already holds is not computed again."""

    def __init__(self, plan: Plan, bench: Bench, x: Tensor, y: Tensor, known: Known) -> None:
        """x (n, c, h, w) in [0, 1] and y (n,), in the order of the plan's samples, on the bench's device."""
        self._plan, self._bench, self._x, self._y = plan, bench, x, y
        self._stages = build_stages(plan)
        self._stock = Stock(len(plan.samples), [])
        self.known = known
        self._clock = time.perf_counter()
        self.progress: Progress | None = None
        self._next_note = 0.0

    def run(self) -> Generator[Batch, None, None]:
        """What was decided, step by step (batches may be empty); `known` remembers it too."""
        with frozen(self._bench.model), drawing(self._plan, self._x.device):
            yield from self._clean()
            samples, correct = self._samples()
            self._stock = self._books(samples.ranking.shape[1])
            with self._bench.opened() as bench:  # here, because a model that is compiled should be so once
                for eps in self._plan.eps:
                    for stage in self._stages:
                        yield from self._stage(stage, samples, correct, eps, bench)

    def _books(self, classes: int) -> Stock:
        lanes = [(stage, lane) for _ in self._plan.eps for stage in self._stages for lane in stage.lanes]
        costs = [(stage.plan.name, lane.plan.name, lane.attack.cost(classes)) for stage, lane in lanes]
        return Stock(len(self._plan.samples), costs)

    def _clean(self) -> Iterator[Batch]:
        missing = [i for i, sample in enumerate(self._plan.samples) if sample not in self.known.clean]
        verifier = Verifier(self._bench.model, NORMS[self._plan.norm], self._bench.draws)
        for begin in range(0, len(missing), 256):
            at = torch.tensor(missing[begin : begin + 256], device=self._x.device)
            logits, wrong = (answer.cpu() for answer in verifier.answers(self._x[at], self._y[at]))
            logits = logits.float()
            if not bool(logits.isfinite().all()):
                first = self._plan.samples[int(at.cpu()[~logits.isfinite().all(1)][0])]
                raise ModelError(f"the model returns NaN or infinite logits on the clean sample {first}")
            right = (2 * wrong <= verifier.draws).tolist()
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
        # Of a random model the mean logits may rank another class first, although most draws are right.
        own = torch.tensor([c.correct for c in clean]).unsqueeze(1) & (
            torch.arange(logits.shape[1]) == self._y.cpu().unsqueeze(1)
        )
        logits = logits.masked_fill(own, torch.inf)
        ranking = logits.argsort(dim=1, descending=True, stable=True).to(self._x.device)
        samples = Samples(self._plan.samples, self._x, self._y, ranking)
        return samples, [i for i, c in enumerate(clean) if c.correct]

    def _stage(
        self, stage: Stage, samples: Samples, correct: Sequence[int], eps: float, bench: Bench
    ) -> Iterator[Batch]:
        undecided, classes = list(correct), samples.ranking.shape[1]
        for lane in stage.lanes:
            spec = lane.spec(classes)
            self._stock.enter(len(undecided))
            if undecided:
                remaining = samples.take(undecided)
                for retired in run_lane(lane, remaining, eps, bench, self.known.rows):
                    self._stock.spend(retired.work)
                    yield self._keep(Batch(stage.plan.name, rows=retired.rows, wasted=retired.wasted))
                    self._note(spec, remaining.ids, eps)
            undecided = [i for i in undecided if not self._broken(spec, eps, samples.ids[i])]

    def _broken(self, spec: LaneSpec, eps: float, sample: str) -> bool:
        return credited(spec, eps, sample, self.known.rows)[1] is True

    def _keep(self, batch: Batch) -> Batch:
        now = time.perf_counter()
        batch = Batch(batch.attack, batch.clean, batch.rows, now - self._clock, batch.wasted)
        self._clock = now
        self.known.add(batch)
        return batch

    def _note(self, spec: LaneSpec, running: Sequence[str], eps: float) -> None:
        """Takes stock now and then; it looks at every running sample."""
        if self._clock < self._next_note:
            return
        states = [credited(spec, eps, sample, self.known.rows)[1] for sample in running]
        self.progress = self._stock.take(broken=states.count(True), survived=states.count(False))
        took = time.perf_counter() - self._clock
        self._next_note = self._clock + max(NOTE_EVERY, took / NOTE_COST)
