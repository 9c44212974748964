"""Entries at work: worker processes compute, this process journals what they decide and shows how far they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.data import Dataset
from robustbench_vit.engine.bench import Bench, make_bench
from robustbench_vit.engine.search import Search
from robustbench_vit.errors import RobustbenchError
from robustbench_vit.evaluation import Watcher
from robustbench_vit.plan import Plan
from robustbench_vit.progress import Bars
from robustbench_vit.records.journal import Journal, Known
from robustbench_vit.running.entries import Prepared, board_plan, entry_subject, surrogate_model
from robustbench_vit.running.workers import Message, Task, run_tasks
from robustbench_vit.subject import Subject, find_device, placed


class Interrupted(RobustbenchError):
    """Ctrl-C; everything decided is in the journal."""

    exit_code = 130


@dataclass(frozen=True)
class Evaluation:
    """An entry that is ready to be evaluated in this process."""

    plan: Plan
    subject: Subject
    data: Dataset
    bench: Bench
    known: Known
    surrogate: Any | None


Evaluate = Callable[[Evaluation, Watcher], None]
"""Computes what an evaluation's `known` doesn't hold yet; picklable."""


@dataclass(frozen=True)
class EntryWork:
    """What a worker does with an entry; travels to the worker process."""

    board: Loaded[BoardCard]
    workspace: Workspace
    entry: Entry
    plan: Plan
    n: int | None  # the first n samples of the board
    smoke: bool
    device: str
    width: int | None
    search: Search
    evaluate: Evaluate
    known: Known = field(default_factory=Known)
    processes: int = 1  # that share the machine

    def __call__(self, send: Watcher) -> None:
        _, data = board_plan(self.board, self.workspace, self.n, self.smoke)
        subject = entry_subject(self.board, self.entry, self.workspace)
        device = find_device(self.device, subject.model)
        image = torch.from_numpy(data.x[0])
        with placed(subject.model, device):
            bench = make_bench(subject.model, image, device, self.width, self.plan, self.search, self.processes)
        surrogate = surrogate_model(self.board, self.entry, self.workspace)
        self.evaluate(Evaluation(self.plan, subject, data, bench, self.known, surrogate), send)


@dataclass(frozen=True)
class Job:
    """An entry to evaluate, and how to tell that it is done."""

    item: Prepared
    work: EntryWork
    done: Callable[[Known], bool]


def count_workers(asked: int | None, device: str, jobs: int) -> int:
    """How many processes share so many jobs; by default one per core on a CPU, one on an accelerator."""
    default = (os.cpu_count() or 1) if device.startswith("cpu") else 1
    return max(1, min(asked or default, jobs))


class Session:
    """One open journal and what is going on around it."""

    def __init__(
        self,
        journal: Journal,
        folder: Path,
        workers: int | None,
        bars: Bars | None,
        finish: Callable[[Job, Known], None],
    ) -> None:
        """`finish` is called for every entry that is done, with all that is known of it."""
        self._journal, self._folder, self._asked, self._bars, self._finish = journal, folder, workers, bars, finish
        self._numbers: dict[str, int] = {}
        self._known: dict[str, Known] = {}
        self._failed: dict[str, BaseException] = {}
        self._shown: set[str] = set()
        self.rows_computed: dict[str, int] = {}

    def work(self, jobs: Sequence[Job]) -> None:
        """Does what is left to do. Raises what went wrong, and Interrupted on Ctrl-C; what is decided is kept."""
        by_name = {job.item.name: job for job in jobs}
        for name, job in by_name.items():
            self._numbers[name] = self._journal.run(job.item.key, name)
            self._known[name] = self._journal.known(self._numbers[name])
            self.rows_computed[name] = 0
        left = [job for name, job in by_name.items() if not job.done(self._known[name])]
        for job in jobs:
            if job not in left:
                self._finish(job, self._known[job.item.name])
        device = jobs[0].work.device if jobs else "cpu"
        workers = count_workers(self._asked, device, len(left))
        tasks = run_tasks([self._task(job, workers) for job in left], workers)
        try:
            with closing(tasks):  # an error here must end the workers
                for message in tasks:
                    self._take(message, by_name[message.task])
        except KeyboardInterrupt:
            raise Interrupted(self._interrupted()) from None
        if self._failed:
            raise self._failure()

    def _task(self, job: Job, workers: int) -> Task:
        return Task(job.item.name, replace(job.work, known=self._known[job.item.name], processes=workers))

    def _take(self, message: Message, job: Job) -> None:
        """Journals what a worker sent, shows it, and hands on a finished entry."""
        name = message.task
        if message.batch is not None:
            if self._bars and name not in self._shown:
                self._bars.open(name, len(job.item.plan.samples))
                self._shown.add(name)
            self._journal.append(self._numbers[name], [message.batch])
            self._known[name].add(message.batch)
            self.rows_computed[name] += len(message.batch.rows)
            if self._bars:
                self._bars.update(name, message.progress)
        if message.error is not None:
            self._failed[name] = message.error
        elif message.done:
            self._finish(job, self._known[name])
        if message.done and self._bars:
            self._bars.close(name)

    def _interrupted(self) -> str:
        decided = sum(len(known.rows) for known in self._known.values())
        return (
            f"interrupted; {decided} rows of {len(self._known)} entries are kept in {self._folder}."
            " Run the same command again to go on."
        )

    def _failure(self) -> BaseException:
        """The errors of all entries that failed; the others are finished."""
        bug = next((error for error in self._failed.values() if not isinstance(error, RobustbenchError)), None)
        if bug is not None:
            return bug
        return RobustbenchError("\n".join(f"entry '{name}': {error}" for name, error in self._failed.items()))
