"""Where records to compare come from: a record's file, a folder of records, a run, a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_vit.boards.folder import board_folder, record_files
from robustbench_vit.cards import Workspace
from robustbench_vit.errors import InputError, UnknownNameError, nearest
from robustbench_vit.records import Record, Status


@dataclass(frozen=True)
class Source:
    """Records with the place they came from."""

    name: str  # as the user gave it
    path: Path  # a record's file, or the folder with the records
    records: Mapping[str, Record]  # by entry

    @property
    def is_file(self) -> bool:
        """Whether it is one record's file."""
        return self.path.is_file()


@dataclass(frozen=True)
class Pair:
    """An entry's record on both sides."""

    entry: str
    candidate_entry: str
    baseline: Record
    candidate: Record

    @property
    def equal_weights(self) -> bool:
        """Whether both records are of the same weights; those of a model made in Python aren't known."""
        known = self.baseline.entry.get("weights_sha256")
        return known is not None and known == self.candidate.entry.get("weights_sha256")


@dataclass(frozen=True)
class Matched:
    """The entries of both sides, and those that only the candidate has."""

    pairs: tuple[Pair, ...]
    new: tuple[str, ...]


def find(name: str, workspace: Workspace) -> Path:
    """The record's file or the folder of records that `name` stands for.

    `name` is a path of a record, of a folder of records, of a folder that has them in `records/` (a run's or a
    board's), of a board's card, or a board's name. Raises InputError when it is none of them.
    """
    path = Path(name)
    if path.is_dir():
        return path / "records" if (path / "records").is_dir() else path
    if name.endswith((".yaml", ".yml")) or (not path.exists() and name in workspace.names("board")):
        return board_folder(workspace.board(name)) / "records"
    if path.is_file():
        return path
    if path.exists():
        raise InputError(f"{name} is neither a file nor a folder")
    close = _nearest(path, workspace)
    hint = f"; did you mean '{close}'?" if close else "; give a record, a folder of records, a run's folder or a board"
    raise InputError(f"no records at {name}{hint}")


def _nearest(path: Path, workspace: Workspace) -> str | None:
    """What lies beside `path`, or a board, with a name like it."""
    beside = {str(other) for other in path.parent.iterdir()} if path.parent.is_dir() else set()
    return nearest(str(path), {*beside, *workspace.names("board")})


def load(name: str, workspace: Workspace) -> Source:
    """The records that `name` stands for, by entry; see `find`. Raises InputError when there are none."""
    path = find(name, workspace)
    if path.is_file():
        record = Record.load(path, images=False)
        return Source(name, path, {str(record.entry.get("name", path.stem)): record})
    records = {file.stem: Record.load(file, images=False) for file in record_files(path)}
    if not records:
        raise InputError(f"no records in {path}{_elsewhere(path)}")
    return Source(name, path, records)


def _elsewhere(folder: Path) -> str:
    """Which folders inside `folder` hold records, to say in an error."""
    found = sorted(
        str(inside)
        for inside in (folder.iterdir() if folder.is_dir() else ())
        if any(inside.glob("records/*.json")) or any(inside.glob("*.json"))
    )
    return f"; did you mean {', '.join(found[:3])}{', …' if len(found) > 3 else ''}?" if found else ""


def match(baseline: Source, candidate: Source, entries: Sequence[str] = ()) -> Matched:
    """Every entry of the baseline (or those named in `entries`) with the candidate's record of the same name.

    One record against one record belong together whatever their names, when one of them is given as a file. Raises
    InputError, with the nearest names, for entries that a side lacks.
    """
    for entry in entries:
        if entry not in baseline.records:
            raise UnknownNameError("entry", entry, baseline.records, baseline.name)
    wanted = list(dict.fromkeys(entries)) or list(baseline.records)
    if len(wanted) == len(candidate.records) == 1 and (baseline.is_file or candidate.is_file):
        ((other, record),) = candidate.records.items()
        return Matched((Pair(wanted[0], other, baseline.records[wanted[0]], record),), ())
    _require_all(wanted, baseline, candidate)
    pairs = tuple(Pair(entry, entry, baseline.records[entry], candidate.records[entry]) for entry in wanted)
    new = () if entries else tuple(entry for entry in candidate.records if entry not in baseline.records)
    return Matched(pairs, new)


def _require_all(wanted: Sequence[str], baseline: Source, candidate: Source) -> None:
    missing = [entry for entry in wanted if entry not in candidate.records]
    if not missing:
        return
    unpaired = [entry for entry in candidate.records if entry not in baseline.records]
    lines = [f"{candidate.name} lacks {len(missing)} of the {len(wanted)} entries of the baseline {baseline.name}:"]
    for entry in missing:
        close = nearest(entry, unpaired)
        lines.append(f"  '{entry}'" + (f"; did you rename it to '{close}'?" if close else ""))
    raise InputError("\n".join([*lines, "--entry NAME compares only the entries that it names"]))


def require_complete(pairs: Sequence[Pair], baseline: str, candidate: str) -> None:
    """Raises InputError for a record of a smoke profile, or with samples that weren't run."""
    for pair in pairs:
        require_usable(pair.baseline, f"{baseline}: the record of '{pair.entry}'")
        require_usable(pair.candidate, f"{candidate}: the record of '{pair.candidate_entry}'")


def require_usable(record: Record, where: str) -> None:
    """Raises InputError for a record of a smoke profile, or with samples that weren't run."""
    if record.protocol.get("profile") == "smoke":
        raise InputError(f"{where} is of a smoke profile, whose numbers mean nothing; run it without --smoke")
    if not record.complete:
        left = sum(outcome.status is Status.NOT_RUN for outcome in record.outcomes)
        raise InputError(
            f"{where} is incomplete: {left} of {len(record.outcomes)} outcomes were not run;"
            " run the same command again to finish it"
        )
