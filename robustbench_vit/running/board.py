"""Runs a board: every check first, then the entries in worker processes, every retired row into the journal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.cards.schema import Precision
from robustbench_vit.engine.bench import make_bench
from robustbench_vit.engine.search import Search
from robustbench_vit.errors import InputError, RobustbenchError, StorageError
from robustbench_vit.evaluation import Watcher, run_plan
from robustbench_vit.plan import Plan
from robustbench_vit.progress import Bars
from robustbench_vit.recording import complete, make_record
from robustbench_vit.records import Record
from robustbench_vit.records.journal import Journal, Known, open_journal
from robustbench_vit.running.entries import Prepared, board_plan, chosen, entry_subject, prepare, surrogate_model
from robustbench_vit.running.workers import Message, Task, run_tasks
from robustbench_vit.subject import find_device, placed

SPARE_BYTES = 16 * 2**20
"""Free space a run needs beyond its images."""


class Interrupted(RobustbenchError):
    """Ctrl-C; everything decided is in the journal."""

    exit_code = 130


@dataclass(frozen=True)
class RunOptions:
    """How a board is run; but for the precision none of it changes a verdict by more than roundings do."""

    entries: tuple[str, ...] = ()  # names; all when empty
    n: int | None = None  # the first n samples
    device: str = "cpu"
    width: int | None = None
    workers: int | None = None  # default: one per core on a CPU, one on an accelerator
    out: Path | None = None  # default: runs/BOARD in the current folder
    smoke: bool = False
    precision: Precision | None = None  # default: the board's first
    compiled: bool = False
    channels_last: bool = False

    def search(self, board: Loaded[BoardCard]) -> Search:
        """How models are asked; raises InputError for a precision that the board doesn't admit."""
        search = Search(self.precision or board.card.precision[0], self.compiled, self.channels_last)
        if search.precision not in board.card.precision:
            admitted, more = board.card.precision, [*board.card.precision, search.precision]
            raise InputError(
                f"{board.shown} admits precision {', '.join(admitted)}, not {search.precision}: its rows would not be"
                f" comparable. To let them share its table all the same, say `precision: [{', '.join(more)}]` on the"
                " card"
            )
        return search


@dataclass
class BoardRun:
    """What a run left behind."""

    folder: Path
    plan: Plan
    records: dict[str, Record] = field(default_factory=dict)
    rows_computed: dict[str, int] = field(default_factory=dict)  # retired in this run, per entry


def run_folder(board: Loaded[BoardCard], options: RunOptions) -> Path:
    """Where the run keeps its journal and its records."""
    if options.out is not None:
        return options.out
    return Path("runs") / (f"{board.name}-smoke" if options.smoke else board.name)


def run_board(
    board: Loaded[BoardCard], workspace: Workspace, options: RunOptions, bars: Bars | None = None
) -> BoardRun:
    """Evaluates the board's entries, or what is left of them.

    Raises RobustbenchError for bad input before any work starts, and Interrupted (exit code 130) on Ctrl-C.
    """
    entries = chosen(board, options.entries)
    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers must be at least 1, got {options.workers}")
    search = options.search(board)
    search.require(find_device(options.device, None))
    plan, data = board_plan(board, workspace, options.n, options.smoke)
    plan = plan.in_precision(search.precision)
    prepared = [prepare(board, entry, workspace, plan, data) for entry in entries]
    _check_different(board, prepared)
    run = BoardRun(run_folder(board, options), plan)
    with open_journal(run.folder) as journal:
        _check_space(run.folder, len(prepared) * data.x.nbytes * len(plan.eps))
        _Session(board, workspace, options, journal, run, bars).work(entries, prepared)
    return run


class _Session:
    """One open journal and what is going on around it."""

    def __init__(
        self,
        board: Loaded[BoardCard],
        workspace: Workspace,
        options: RunOptions,
        journal: Journal,
        run: BoardRun,
        bars: Bars | None,
    ) -> None:
        self._board, self._workspace, self._options = board, workspace, options
        self._journal, self._run, self._bars = journal, run, bars
        self._numbers: dict[str, int] = {}
        self._known: dict[str, Known] = {}
        self._failed: dict[str, BaseException] = {}

    def work(self, entries: Sequence[Entry], prepared: Sequence[Prepared]) -> None:
        by_name = {item.name: item for item in prepared}
        for item in prepared:
            self._numbers[item.name] = self._journal.run(item.key, item.name)
            self._known[item.name] = self._journal.known(self._numbers[item.name])
            self._run.rows_computed[item.name] = 0
        left = [entry for entry in entries if not complete(by_name[entry.name].plan, self._known[entry.name])]
        for entry in entries:
            if entry not in left:
                self._record(by_name[entry.name])
        workers = self._workers(len(left))
        tasks = run_tasks([self._task(entry, by_name[entry.name].plan, workers) for entry in left], workers)
        try:
            with closing(tasks):  # an error here must end the workers
                for message in tasks:
                    self._take(message, by_name)
        except KeyboardInterrupt:
            raise Interrupted(self._interrupted()) from None
        if self._failed:
            raise self._failure()
        self._run.records = {entry.name: self._run.records[entry.name] for entry in entries}  # not as they finished

    def _workers(self, tasks: int) -> int:
        default = (os.cpu_count() or 1) if self._options.device.startswith("cpu") else 1
        return max(1, min(self._options.workers or default, tasks))

    def _task(self, entry: Entry, plan: Plan, workers: int) -> Task:
        known = self._known[entry.name]
        return Task(entry.name, EntryWork(self._board, self._workspace, entry, plan, self._options, known, workers))

    def _take(self, message: Message, prepared: Mapping[str, Prepared]) -> None:
        """Journals what a worker sent, shows it, and records a finished entry."""
        name = message.task
        if message.batch is not None:
            if not self._known[name].clean and self._bars:
                self._bars.open(name, len(self._run.plan.samples))
            self._journal.append(self._numbers[name], [message.batch])
            self._known[name].add(message.batch)
            self._run.rows_computed[name] += len(message.batch.rows)
            if self._bars:
                self._bars.update(name, message.progress)
        if message.error is not None:
            self._failed[name] = message.error
        elif message.done:
            self._record(prepared[name])
        if message.done and self._bars:
            self._bars.close(name)

    def _record(self, item: Prepared) -> None:
        ran = {
            "device": self._options.device,
            "width": self._options.width or "automatic",
            "workers": self._workers(len(self._numbers)),
            "threads": 1,
            **self._options.search(self._board).ran,
        }
        known = self._known[item.name]
        record = make_record(item.plan, item.subject.entry, item.data, known, item.findings, ran, images=True)
        record.save(self._run.folder / "records" / f"{item.name}.json")
        self._run.records[item.name] = record

    def _interrupted(self) -> str:
        decided = sum(len(known.rows) for known in self._known.values())
        return (
            f"interrupted; {decided} rows of {len(self._known)} entries are kept in {self._run.folder}."
            " Run the same command again to go on."
        )

    def _failure(self) -> BaseException:
        """The errors of all entries that failed; the others are recorded."""
        bug = next((error for error in self._failed.values() if not isinstance(error, RobustbenchError)), None)
        if bug is not None:
            return bug
        return RobustbenchError("\n".join(f"entry '{name}': {error}" for name, error in self._failed.items()))


@dataclass(frozen=True)
class EntryWork:
    """What a worker does with an entry; travels to the worker process."""

    board: Loaded[BoardCard]
    workspace: Workspace
    entry: Entry
    plan: Plan
    options: RunOptions
    known: Known
    processes: int  # that share the machine

    def __call__(self, send: Watcher) -> None:
        _, data = board_plan(self.board, self.workspace, self.options.n, self.options.smoke)
        subject = entry_subject(self.board, self.entry, self.workspace)
        device = find_device(self.options.device, subject.model)
        search = self.options.search(self.board)
        image = torch.from_numpy(data.x[0])
        with placed(subject.model, device):
            bench = make_bench(subject.model, image, device, self.options.width, self.plan, search, self.processes)
        surrogate = surrogate_model(self.board, self.entry, self.workspace)
        run_plan(self.plan, subject, data, bench, self.known, send, surrogate)


def _check_different(board: Loaded[BoardCard], prepared: Sequence[Prepared]) -> None:
    """Raises InputError when two entries are one model with the same weights."""
    first: dict[str, str] = {}
    for item in prepared:
        if item.subject.fingerprint in first:
            raise InputError(
                f"{board.shown}: entries '{first[item.subject.fingerprint]}' and '{item.name}' are the same model"
                " with the same weights; keep one of them"
            )
        first[item.subject.fingerprint] = item.name


def _check_space(folder: Path, image_bytes: int) -> None:
    """Raises StorageError when the disk cannot hold the journal and the images of the records."""
    needed = 3 * image_bytes + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free / 2**20:.0f} MiB free, the run may need {needed / 2**20:.0f} MiB;"
            " free some space or choose another folder with --out"
        )
