"""A baseline's records replaced by a candidate's, with the reason kept beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustbench_vit.boards.folder import record_files
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.comparing.comparison import Conclusion, Item
from robustbench_vit.comparing.judge import check_levels, judge
from robustbench_vit.comparing.pairing import deviations
from robustbench_vit.comparing.sources import Pair, Source, find, require_usable
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.records import Record
from robustbench_vit.storage import write_atomic

LOG = "baseline.jsonl"
ADDED = "added"
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Change:
    """One entry of a baseline that got another record; a line of its log."""

    date: str  # UTC
    reason: str
    entry: str
    before: Mapping[str, Any] | None  # weights_sha256, protocol_id, n and robust accuracies; None for an added entry
    after: Mapping[str, Any]
    conclusion: str  # 'worse', 'undecided', 'not worse'; 'added' or 'not comparable'
    differs: tuple[str, ...] = ()  # why it isn't comparable: the fields in which the records' protocols differ, …

    def to_json(self) -> str:
        """The line of the log."""
        values = asdict(self)
        named = {"from" if key == "before" else "to" if key == "after" else key: values[key] for key in values}
        return json.dumps(named, ensure_ascii=False)


@dataclass(frozen=True)
class Updated:
    """What an update did: a line of the log per entry, and the comparisons behind the conclusions."""

    folder: Path
    changes: tuple[Change, ...]
    items: tuple[Item, ...]
    unchanged: tuple[str, ...]  # entries whose record is the same already


def update(
    baseline: str,
    candidate: Source,
    reason: str,
    workspace: Workspace,
    max_drop: float = 0.02,
    alpha: float = 0.05,
    entries: Sequence[str] = (),
) -> Updated:
    """Puts the candidate's records, without images, in the place of the baseline's, and adds to the baseline's log.

    `baseline` is a folder of records (which may be empty), a board or a record's file. Entries of the baseline that
    the candidate lacks stay, new ones are added; `entries` restricts it to those. Each file is replaced whole.
    Raises InputError for an empty reason, incomplete records, those that stopped early where the baseline is a board's,
    and a board of the installed package.
    """
    check_levels(max_drop, alpha)
    if not reason.strip():
        raise InputError("--reason is empty; say why the baseline changes, it is kept in its log")
    target = find(baseline, workspace)
    _require_own(target)
    pairs, added, paths = _planned(target, candidate, entries)
    folder = target.parent if target.is_file() else target
    for pair in (*pairs, *added):
        where = f"{candidate.name}: the record of '{pair.candidate_entry}'"
        require_usable(pair.candidate, where)
        _require_of_a_whole_run(pair.candidate, folder, where)
    changing = [pair for pair in pairs if pair.baseline.to_dict() != pair.candidate.to_dict()]
    items = judge([pair for pair in changing if not _obstacles(pair)], max_drop, alpha)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    changes = [_change(pair, items, now, reason.strip()) for pair in changing]
    changes += [Change(now, reason.strip(), pair.entry, None, _summary(pair.candidate), ADDED) for pair in added]
    for pair in (*changing, *added):
        pair.candidate.save(paths[pair.entry])
    _append(folder / LOG, changes)
    unchanged = tuple(pair.entry for pair in pairs if pair not in changing)
    return Updated(folder, tuple(changes), tuple(items), unchanged)


def _obstacles(pair: Pair) -> tuple[str, ...]:
    """Why the record that is replaced cannot be compared with the new one; empty when it can."""
    found = [str(difference) for difference in deviations(pair.baseline, pair.candidate)]
    if not pair.baseline.complete:
        found.append("the record before is incomplete")
    if not {o.sample for o in pair.baseline.outcomes} & {o.sample for o in pair.candidate.outcomes}:
        found.append("no sample in common")
    return tuple(found)


def _require_own(target: Path) -> None:
    builtin = builtin_layer()
    if builtin.name == "_workspace" and target.resolve().is_relative_to(builtin):
        raise InputError(f"{target} is part of the installed package, which is never written to; copy it first")


def _require_of_a_whole_run(record: Record, folder: Path, where: str) -> None:
    """Raises InputError for a record that stopped early, where the folder is a board's: its rows share all samples."""
    board = folder.parent
    if record.protocol.get("profile") == "until" and board.with_name(f"{board.name}.yaml").is_file():
        raise InputError(f"{where} stopped early (--until), and rows of a board share all samples; run it in full")


def _planned(target: Path, candidate: Source, entries: Sequence[str]) -> tuple[list[Pair], list[Pair], dict[str, Path]]:
    """The pairs to replace, those to add (with the candidate on both sides), and each entry's file."""
    for entry in entries:
        if entry not in candidate.records:
            raise UnknownNameError("entry", entry, candidate.records, candidate.name)
    chosen = {name: record for name, record in candidate.records.items() if not entries or name in entries}
    if target.is_file():
        if len(chosen) > 1:
            raise InputError(f"{target} is one record, {candidate.name} has {len(chosen)}; choose one with --entry")
        held, files = Record.load(target, images=False), {target.stem: target}
        ((name, record),) = chosen.items()
        return [Pair(target.stem, name, held, record)], [], files
    before = {path.stem: Record.load(path, images=False) for path in record_files(target)}
    paths = {name: target / f"{name}.json" for name in chosen}
    pairs = [Pair(name, name, before[name], record) for name, record in chosen.items() if name in before]
    added = [Pair(name, name, record, record) for name, record in chosen.items() if name not in before]
    return pairs, added, paths


def _change(pair: Pair, items: Sequence[Item], now: str, reason: str) -> Change:
    found = [item.conclusion for item in items if item.entry == pair.entry]
    conclusion = min(found, key=list(Conclusion).index).value if found else NOT_COMPARABLE
    before, after = _summary(pair.baseline), _summary(pair.candidate)
    return Change(now, reason, pair.entry, before, after, conclusion, _obstacles(pair))


def _summary(record: Record) -> dict[str, Any]:
    """What the log keeps of a record."""
    criterion = record.protocol.get("criterion")
    return {
        "weights_sha256": record.entry.get("weights_sha256"),
        "protocol_id": record.protocol_id,
        "n": record.n,
        "robust_accuracy": [
            {"attack": attack, "norm": record.protocol["norm"], "eps": eps, "value": found.robust_accuracy}
            for attack in record.protocol["attacks"]
            for eps in record.protocol["eps"]
            for found in [record.at(attack, eps, criterion)]
        ],
    }


def _append(path: Path, changes: Sequence[Change]) -> None:
    """The log with more lines; it is replaced whole, so that no half line is left behind."""
    if changes:
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_atomic(path, (before + "".join(f"{change.to_json()}\n" for change in changes)).encode())


def read_log(baseline: str, workspace: Workspace) -> list[Change]:
    """The changes of a baseline, oldest first. Raises InputError without a log, or for a line that isn't one."""
    target = find(baseline, workspace)
    path = (target.parent if target.is_file() else target) / LOG
    if not path.is_file():
        raise InputError(f"{baseline} has no {LOG}: it was never changed by `rbvit baseline update`")
    changes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            values["before"], values["after"] = values.pop("from"), values.pop("to")
            changes.append(Change(**{**values, "differs": tuple(values["differs"])}))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not a line of a baseline's log: {error!r}") from error
    return changes
