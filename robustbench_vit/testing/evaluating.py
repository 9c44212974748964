"""Entries of boards, evaluated in this process, each once for all tests that ask about it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.engine.bench import make_bench
from robustbench_vit.engine.float32 import ieee_float32
from robustbench_vit.engine.intake.asking import logits
from robustbench_vit.engine.search import Search
from robustbench_vit.engine.stock import Progress
from robustbench_vit.errors import RunLockedError
from robustbench_vit.evaluation import run_plan
from robustbench_vit.recording import complete, make_record
from robustbench_vit.records.journal import Batch, Journal, Known, open_journal
from robustbench_vit.running.entries import Prepared, board_plan, chosen, prepare, surrogate_model
from robustbench_vit.subject import find_device, placed

if TYPE_CHECKING:
    from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
    from robustbench_vit.records import Record

PROBE = 16
"""Samples whose clean answers tell a model from its older self; few, so that more samples find the rows of fewer."""
WAIT = 0.2
"""Seconds between two looks at whether another process has finished with an entry."""


@dataclass
class Evaluations:
    """What the tests of this process have had evaluated, and where the journals of all processes are."""

    folder: Path
    n: int | None = None  # the first n samples of a board; all when None or when there are fewer
    device: str = "cpu"
    records: dict[tuple[Path, str], Record] = field(default_factory=dict)  # by the board's file and the entry

    def record(self, board: Loaded[BoardCard], entry: str, workspace: Workspace) -> Record:
        """The entry's record under all attacks of its board; raises RobustbenchError for what cannot be evaluated."""
        key = (board.path.resolve(), entry)
        if key not in self.records:
            (chosen_entry,) = chosen(board, [entry])
            self.records[key] = self._evaluate(board, chosen_entry, workspace)
        return self.records[key]

    def _evaluate(self, board: Loaded[BoardCard], entry: Entry, workspace: Workspace) -> Record:
        device = find_device(self.device, None)
        search = Search(board.card.precision[0])
        search.require(device)
        data = load_dataset(board.card.data.name, board.card.data.split)
        plan, data = board_plan(board, workspace, self._samples(board, data), smoke=False, data=data)
        item = prepare(board, entry, workspace, plan, data)
        item = replace(item, plan=replace(item.plan, evidence=()))  # demands are about the board's own attacks
        folder = self.folder / board.name / entry.name / _behaviour(item)
        with _own_journal(folder) as journal:
            run = journal.run(item.key, item.name)
            known = journal.known(run)
            width = None
            if not complete(item.plan, known):
                surrogate = surrogate_model(board, entry, workspace)
                width = _attack(item, device, search, known, journal, run, surrogate)
        ran = {"device": str(device), "width": width, "threads": torch.get_num_threads(), "workers": 0, **search.ran}
        return make_record(item.plan, item.subject.entry, item.data, known, item.findings, ran, images=False)

    def _samples(self, board: Loaded[BoardCard], data: Dataset) -> int | None:
        choice = board.card.data.samples
        return None if self.n is None else min(self.n, len(data) if choice == "all" else int(choice))


def _attack(
    item: Prepared,
    device: torch.device,
    search: Search,
    known: Known,
    journal: Journal,
    run: int,
    surrogate: torch.nn.Module | None,
) -> int:
    """Computes what `known` doesn't hold yet, every batch going into the journal; returns the rows run at a time."""
    model = item.subject.model
    with placed(model, device):
        bench = make_bench(model, torch.from_numpy(item.data.x[0]), device, None, item.plan, search)

    def keep(batch: Batch, _: Progress | None) -> None:
        rows = tuple(replace(row, image=None) for row in batch.rows)  # tests want verdicts, and caches stay small
        journal.append(run, [replace(batch, rows=rows)])

    run_plan(item.plan, item.subject, item.data, bench, known, keep, surrogate)
    return bench.width.rows


def _behaviour(item: Prepared) -> str:
    """Sixteen hexadecimal digits of the model's clean answers.

    Journals know a model by its weights and structure. Between two runs of tests its code may change with neither, and
    what an older self answered must not be taken for the new one's. Models that answer at random can't be told so.
    """
    if item.plan.random:
        return "random"
    with ieee_float32():
        answers = logits(item.subject.model, torch.from_numpy(item.data.x[:PROBE]))
    return hashlib.sha256(answers.numpy().tobytes()).hexdigest()[:16]


@contextmanager
def _own_journal(folder: Path) -> Iterator[Journal]:
    """The journal in `folder`; waits while another process evaluates the same entry, whose rows are then in it."""
    with ExitStack() as stack:
        while True:
            try:
                journal = stack.enter_context(open_journal(folder))
                break
            except RunLockedError:
                time.sleep(WAIT)
        yield journal
