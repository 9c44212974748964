"""`rbvit gate`: are a board's entries, as they are now, no worse than a baseline, on as few samples as it takes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.comparing import Comparison
from robustbench_vit.comparing.comparison import SEQUENTIAL_TEST
from robustbench_vit.comparing.judge import check_levels, least_for_not_worse, least_for_worse
from robustbench_vit.comparing.sources import Source
from robustbench_vit.engine.search import Search
from robustbench_vit.errors import InputError
from robustbench_vit.plan import Plan
from robustbench_vit.progress import Bars
from robustbench_vit.records import Record
from robustbench_vit.records.journal import Known, open_journal
from robustbench_vit.running.baselines import (
    baseline_record,
    load_baseline,
    ranked,
    require_baseline,
    require_same_policy,
    unchanged,
)
from robustbench_vit.running.board import check_different, check_space, require_workers
from robustbench_vit.running.entries import Prepared, board_plan, chosen, entry_subject, prepare
from robustbench_vit.running.gated import Gated, Terms, as_it_was, gated
from robustbench_vit.running.not_worse import EvaluateGate, NotWorse
from robustbench_vit.running.sequential import Verdicts, heard, ordered
from robustbench_vit.running.session import EntryWork, Job, Session
from robustbench_vit.subject import find_device


@dataclass(frozen=True)
class GateOptions:
    """What a gate decides by, and how it is run."""

    max_drop: float = 0.02  # the largest admitted drop in robust accuracy, a share
    alpha: float = 0.05
    entries: tuple[str, ...] = ()  # names; all when empty
    baseline: str | None = None  # default: the board's own records
    order_seed: int | None = None  # of the order of the samples; default: the board's
    always: bool = False  # evaluate entries whose weights are the baseline's, too
    device: str = "cpu"
    width: int | None = None
    workers: int | None = None
    out: Path | None = None  # default: runs/BOARD-gate in the current folder


@dataclass(frozen=True)
class _Gate:
    """One call: what it was asked, and what everything is compared with."""

    board: Loaded[BoardCard]
    workspace: Workspace
    options: GateOptions
    search: Search
    plan: Plan
    source: Source
    records: Mapping[str, Record]  # the baseline, by entry
    terms: Terms

    @property
    def order_seed(self) -> int:
        """Of the order of the samples."""
        return self.board.card.seed if self.options.order_seed is None else self.options.order_seed

    def job(self, entry: Entry, item: Prepared) -> Job:
        """What a worker does with the entry, and how to tell that it is done."""
        rule = self._rule(item.name)
        work = EntryWork(
            self.board, self.workspace, entry, item.plan, None, False,
            self.options.device, self.options.width, self.search, EvaluateGate(rule, self.order_seed),
        )  # fmt: skip
        return Job(item, work, partial(self._done, item.plan, rule))

    def found(self, item: Prepared, known: Known) -> Gated:
        """What became of an entry that is done."""
        order = ordered(item.plan, self.order_seed)
        verdicts = Verdicts(item.plan, known)
        rule = heard(self._rule(item.name), order, verdicts.all())
        return gated(item, order, rule, verdicts, self.records[item.name], self.terms)

    def _rule(self, name: str) -> NotWorse:
        kept = ranked(self.records[name], self.plan, None)
        baseline = dict(zip(kept.samples, kept.robust.tolist(), strict=True))
        return NotWorse.at(baseline, self.terms.max_drop, self.terms.alpha, self.terms.entries)

    def _done(self, plan: Plan, rule: NotWorse, known: Known) -> bool:
        after = heard(rule, ordered(plan, self.order_seed), Verdicts(plan, known).all())
        return after.over or after.test.n == len(plan.samples)


def gate_board(
    board: Loaded[BoardCard], workspace: Workspace, options: GateOptions, bars: Bars | None = None
) -> Comparison:
    """Whether the board's entries are no worse than their baseline, each decided on as few samples as it takes.

    Run again after an interruption it goes on, and comes to the same conclusion. Raises RobustbenchError for bad input
    before any work starts, and Interrupted (exit code 130) on Ctrl-C.
    """
    check_levels(options.max_drop, options.alpha)
    require_workers(options.workers)
    entries = chosen(board, options.entries)
    search = Search(board.card.precision[0])
    search.require(find_device(options.device, None))
    plan, data = board_plan(board, workspace, None, smoke=False)
    source = load_baseline(board, workspace, options.baseline)
    records = {entry.name: _checked(board, source, entry, plan, len(entries) == 1) for entry in entries}
    same = [] if options.always else _unchanged(board, workspace, entries, records)
    left = [entry for entry in entries if entry not in same]
    terms = Terms(options.max_drop, options.alpha, max(len(left), 1))
    _require_enough(board, plan, terms)
    prepared = [prepare(board, entry, workspace, plan, data) for entry in left]
    check_different(board, prepared)
    for item in prepared:
        require_same_policy(records[item.name], item, _shown(source, item.name))
    gate = _Gate(board, workspace, options, search, plan, source, records, terms)
    found = {entry.name: as_it_was(entry.name, records[entry.name], plan, terms) for entry in same}
    found |= _evaluated(gate, [gate.job(*pair) for pair in zip(left, prepared, strict=True)], data.x.nbytes, bars)
    return _comparison(gate, [found[entry.name] for entry in entries])


def _evaluated(gate: _Gate, jobs: Sequence[Job], image_bytes: int, bars: Bars | None) -> dict[str, Gated]:
    """What became of the entries that had to be evaluated."""
    found: dict[str, Gated] = {}
    if not jobs:
        return found

    def finish(job: Job, known: Known) -> None:
        found[job.item.name] = gate.found(job.item, known)

    folder = gate.options.out or Path("runs") / f"{gate.board.name}-gate"
    with open_journal(folder) as journal:
        check_space(folder, len(jobs) * image_bytes)
        Session(journal, folder, gate.options.workers, bars, finish).work(jobs)
    return found


def _unchanged(
    board: Loaded[BoardCard], workspace: Workspace, entries: Sequence[Entry], records: Mapping[str, Record]
) -> list[Entry]:
    """The entries that are their baseline itself."""
    return [entry for entry in entries if unchanged(records[entry.name], entry_subject(board, entry, workspace))]


def _shown(source: Source, name: str) -> str:
    return f"the baseline of '{name}' in {source.name}"


def _checked(board: Loaded[BoardCard], source: Source, entry: Entry, plan: Plan, alone: bool) -> Record:
    record = baseline_record(source, entry, alone)
    require_baseline(record, plan, board.card.precision, _shown(source, entry.name), board.shown)
    return record


def _require_enough(board: Loaded[BoardCard], plan: Plan, terms: Terms) -> None:
    """Raises InputError when the board's samples are too few to decide anything, however they fall."""
    worse = least_for_worse(terms.alpha, terms.entries)
    not_worse = least_for_not_worse(terms.max_drop, terms.alpha)
    if (n := len(plan.samples)) < min(worse, not_worse):
        raise InputError(
            f"{board.shown}: {n} samples are too few to decide anything; 'not worse' takes {not_worse:,} even without"
            f" a flip, 'worse' takes {worse}"
        )


def _comparison(gate: _Gate, found: Sequence[Gated]) -> Comparison:
    return Comparison(
        baseline=gate.source.name,
        candidate=f"{gate.board.shown} as it is now",
        max_drop=gate.terms.max_drop,
        alpha=gate.terms.alpha,
        items=tuple(gated.item for gated in found),
        notes=tuple(_notes(gate, found)),
        command="rbvit gate",
        correction="",
        extra={"order_seed": gate.order_seed, "cost": {g.item.entry: _cost(g) for g in found}},
    )


def _cost(gated: Gated) -> dict[str, Any]:
    return {"evaluated": gated.evaluated, "passes": gated.passes, "passes_saved": gated.saved}


def _notes(gate: _Gate, found: Sequence[Gated]) -> list[str]:
    """What it cost, and what a reader of the intervals must know."""
    used, of = sum(g.item.used or 0 for g in found), sum(g.item.of or 0 for g in found)
    spent, saved = sum(g.passes for g in found), sum(g.saved for g in found)
    share = f" ({100 * saved / (spent + saved):.0f} %)" if spent + saved else ""
    notes = [f"{used:,} of {of:,} samples used, {spent:,} model passes; about {saved:,} saved{share}"]
    if gate.terms.entries > 1:
        notes.append(f"'worse' is decided at alpha / {gate.terms.entries}, as so many entries were evaluated")
    if any(gated.item.decided_by == SEQUENTIAL_TEST for gated in found):
        notes.append("beside a sequential decision stand the intervals of a number of samples fixed beforehand")
    return notes
