"""Runs a board: every check first, then the entries in worker processes, every retired row into the journal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.cards.schema import Precision
from robustbench_vit.engine.search import Search
from robustbench_vit.errors import InputError, StorageError
from robustbench_vit.evaluation import Watcher, run_plan
from robustbench_vit.plan import Plan
from robustbench_vit.progress import Bars
from robustbench_vit.recording import complete, make_record
from robustbench_vit.records import Record
from robustbench_vit.records.journal import Known, open_journal
from robustbench_vit.running.entries import Prepared, board_plan, chosen, prepare
from robustbench_vit.running.session import EntryWork, Evaluation, Interrupted, Job, Session, count_workers
from robustbench_vit.running.until import EvaluateUntil, Until, complete_until, stopped, until_plan
from robustbench_vit.subject import find_device

__all__ = ["BoardRun", "Interrupted", "RunOptions", "run_board", "run_folder"]

SPARE_BYTES = 16 * 2**20
"""Free space a run needs beyond its images."""


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
    until: Until | None = None  # when an entry has had enough samples; default: never

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
    kind = "-smoke" if options.smoke else "" if options.until is None else "-until"
    return Path("runs") / f"{board.name}{kind}"


def run_board(
    board: Loaded[BoardCard], workspace: Workspace, options: RunOptions, bars: Bars | None = None
) -> BoardRun:
    """Evaluates the board's entries, or what is left of them.

    Raises RobustbenchError for bad input before any work starts, and Interrupted (exit code 130) on Ctrl-C.
    """
    entries = chosen(board, options.entries)
    require_workers(options.workers)
    search = options.search(board)
    search.require(find_device(options.device, None))
    plan, data = board_plan(board, workspace, options.n, options.smoke)
    plan = plan.in_precision(search.precision)
    if options.until is not None:
        plan = until_plan(plan, options.until)
    prepared = [prepare(board, entry, workspace, plan, data) for entry in entries]
    check_different(board, prepared)
    run = BoardRun(run_folder(board, options), plan)
    jobs = [_job(board, workspace, options, search, *pair) for pair in zip(entries, prepared, strict=True)]
    with open_journal(run.folder) as journal:
        kept = sum(1 + len(item.plan.evidence) for item in prepared)
        check_space(run.folder, kept * data.x.nbytes * len(plan.eps))
        record = _Recorder(board, options, run, count_workers(options.workers, options.device, len(jobs)))
        session = Session(journal, run.folder, options.workers, bars, record)
        run.rows_computed = session.rows_computed
        session.work(jobs)
    run.records = {entry.name: run.records[entry.name] for entry in entries}  # not as they finished
    return run


def _job(
    board: Loaded[BoardCard],
    workspace: Workspace,
    options: RunOptions,
    search: Search,
    entry: Entry,
    item: Prepared,
) -> Job:
    evaluate = evaluate_whole if options.until is None else EvaluateUntil(options.until)
    work = EntryWork(
        board, workspace, entry, item.plan, options.n, options.smoke, options.device, options.width, search, evaluate
    )
    done = partial(complete, item.plan) if options.until is None else partial(complete_until, item, options.until)
    return Job(item, work, done)


def require_workers(workers: int | None) -> None:
    """Raises InputError for fewer worker processes than one."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")


@dataclass(frozen=True)
class _Recorder:
    """Writes the records of entries that are done."""

    board: Loaded[BoardCard]
    options: RunOptions
    run: BoardRun
    workers: int

    def __call__(self, job: Job, known: Known) -> None:
        item = job.item if self.options.until is None else stopped(job.item, known, self.options.until)
        ran = {
            "device": self.options.device,
            "width": self.options.width or "automatic",
            "workers": self.workers,
            "threads": 1,
            **self.options.search(self.board).ran,
        }
        record = make_record(item.plan, item.subject.entry, item.data, known, item.findings, ran, images=True)
        record.save(self.run.folder / "records" / f"{item.name}.json")
        self.run.records[item.name] = record


def evaluate_whole(work: Evaluation, send: Watcher) -> None:
    """Evaluates an entry on all samples of its plan."""
    run_plan(work.plan, work.subject, work.data, work.bench, work.known, send, work.surrogate)


def check_different(board: Loaded[BoardCard], prepared: Sequence[Prepared]) -> None:
    """Raises InputError when two entries are one model with the same weights."""
    first: dict[str, str] = {}
    for item in prepared:
        if item.subject.fingerprint in first:
            raise InputError(
                f"{board.shown}: entries '{first[item.subject.fingerprint]}' and '{item.name}' are the same model"
                " with the same weights; keep one of them"
            )
        first[item.subject.fingerprint] = item.name


def check_space(folder: Path, image_bytes: int) -> None:
    """Raises StorageError when the disk cannot hold the journal and the images of the records."""
    needed = 3 * image_bytes + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free / 2**20:.0f} MiB free, the run may need {needed / 2**20:.0f} MiB;"
            " free some space or choose another folder with --out"
        )
