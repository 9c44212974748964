"""The files made from a board's card, its records and what others report, and the README's block."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustbench_vit.boards.badge import BADGE_START, badge
from robustbench_vit.boards.folder import board_folder, load_records, record_files, require_writable
from robustbench_vit.boards.formats import FORMATS, render
from robustbench_vit.boards.methods import METHODS_START, methods_text, policies_of
from robustbench_vit.boards.references import references_text
from robustbench_vit.boards.reported import ReportedRow, reported_csv, reported_rows, with_reported
from robustbench_vit.boards.table import Table, build_table, missing_evidence
from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record
from robustbench_vit.storage import write_atomic

__all__ = ["board_folder", "board_table", "board_text", "citation", "load_records", "publish", "stale"]

_REPORTED = "table.reported.csv"
_METHODS = "methods.txt"
_REFERENCES = "references.bib"
_BADGES = "badges"
_NOTHING = {"md": "{}\n", "tex": "% needs \\usepackage{{booktabs}}\n% {}\n"}


def board_table(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> Table:
    """The table of the records in `records` (default: the board's own)."""
    return build_table(board, workspace, _held(board, records))


def board_text(board: Loaded[BoardCard], workspace: Workspace, form: str, records: Path | None = None) -> str:
    """The board in one of FORMATS: its table, and below it, in all but CSV, the rows that others report."""
    return _text(board_table(board, workspace, records), reported_rows(board), form)


def citation(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> str:
    """The methods sentences, where something is measured, and below them the BibTeX."""
    held = _held(board, records)
    table = build_table(board, workspace, held)
    measured = _measured(table, held)
    bib = references_text(board, workspace, policies_of(measured.values()))
    return f"{methods_text(board, workspace, table, measured)}\n{bib}" if measured else bib


def _measured(table: Table, held: Mapping[str, Record]) -> dict[str, Record]:
    """The complete records by entry, best first."""
    return {row.entry: held[row.entry] for row in table.rows if row.note is None}


def publish(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> list[Path]:
    """Writes the files made from a board and returns those that changed; removes the ones that are made no more.

    The files of the board's own records stand in the board's folder, and the README above it shows the table between
    `<!-- board:NAME -->` and `<!-- /board -->`. Those of other `records` (a folder) stand in that folder, or beside it
    when it is called records.
    Raises InputError for a board inside an installed package, which is never written to.
    """
    changed = []
    instead = f"give the records of your own run: --records runs/{board.name}/records"
    files = _files(board, workspace, records, _held(board, records))
    for path, text in files.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            require_writable(path, board, instead)
            write_atomic(path, text.encode())
            changed.append(path)
    for path in _left_over(_place(board, records), files):
        require_writable(path, board, instead)
        path.unlink()
        changed.append(path)
    return changed


def stale(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> list[str]:
    """What differs from what the records say, a line each; empty when everything is fresh."""
    faults = []
    held = _held(board, records)
    files = _files(board, workspace, records, held)
    for path, text in files.items():
        if not path.is_file():
            faults.append(f"{path}: does not exist")
        elif path.read_text(encoding="utf-8") != text:
            faults.append(f"{path}: differs from what the records say")
    faults += [f"{path}: nothing stands behind it any more" for path in _left_over(_place(board, records), files)]
    return faults + _stray_records(board, records) + _changed_weights(board, held) + _missing_evidence(board, held)


def _held(board: Loaded[BoardCard], records: Path | None) -> dict[str, Record]:
    """The records in `records`, by default the board's own; raises InputError when there is no such folder."""
    if records is not None and not records.is_dir():
        raise InputError(f"no folder with records at {records}")
    return load_records(records or board_folder(board) / "records")


def _files(
    board: Loaded[BoardCard], workspace: Workspace, records: Path | None, held: Mapping[str, Record]
) -> dict[Path, str]:
    """Every generated file with the text it should have."""
    table, reported = build_table(board, workspace, held), reported_rows(board)
    measured = _measured(table, held)
    folder = _place(board, records)
    texts = {f"table.{form}": _text(table, reported, form) for form in FORMATS}
    texts[_REFERENCES] = references_text(board, workspace, policies_of(measured.values()))
    if reported:
        texts[_REPORTED] = reported_csv(reported)
    if measured and table.profile == "full":
        texts[_METHODS] = methods_text(board, workspace, table, measured)
        texts |= {f"{_BADGES}/{name}.svg": _badge(board.card, record) for name, record in measured.items()}
    files = {folder / name: text for name, text in texts.items()}
    readme = board.path.parent.parent / "README.md"
    if records is None and readme.is_file():
        text = readme.read_text(encoding="utf-8")
        if block(board.name).search(text):
            files[readme] = with_block(text, board.name, texts["table.md"])
    return files


def _text(table: Table, reported: Sequence[ReportedRow], form: str) -> str:
    """The table in a format, and what others report; without entries, no empty table for people to read."""
    own = _NOTHING.get(form) if not table.card.entries else None
    card = table.card
    eps = ", ".join(show_number(value) for value in card.eps)
    about = f"Nothing is measured here; {card.data.name}/{card.data.split}, {card.norm}, eps {eps}."
    return with_reported(own.format(about) if own else render(table, form), reported, form, table.board)


def _badge(card: BoardCard, record: Record) -> str:
    return badge(record, card.attacks[-1], card.eps[0], card.confidence, card.interval)


def _place(board: Loaded[BoardCard], records: Path | None) -> Path:
    """The folder of the generated files."""
    if records is None:
        return board_folder(board)
    return records.parent if records.name == "records" else records


def _left_over(folder: Path, files: Mapping[Path, str]) -> list[Path]:
    """Files that this module wrote, to judge by their names and their beginnings, and would not write now."""
    named = {folder / _REPORTED: reported_csv(()), folder / _METHODS: METHODS_START}
    named |= dict.fromkeys(sorted((folder / _BADGES).glob("*.svg")), BADGE_START)
    return [path for path, start in named.items() if path not in files and _starts_with(path, start)]


def _starts_with(path: Path, start: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(len(start.encode())) == start.encode()


def block(board: str) -> re.Pattern[str]:
    """Finds the generated block of a board."""
    return re.compile(rf"(<!-- board:{re.escape(board)} -->\n).*?(<!-- /board -->)", re.DOTALL)


def with_block(text: str, board: str, content: str) -> str:
    """`text` with `content` in the board's block."""
    return block(board).sub(lambda found: f"{found[1]}{content}{found[2]}", text)


def _stray_records(board: Loaded[BoardCard], records: Path | None) -> list[str]:
    """Records of entries that the board doesn't have."""
    folder = records or board_folder(board) / "records"
    entries = {entry.name for entry in board.card.entries}
    return [
        f"{path}: {board.shown} has no entry '{path.stem}'" for path in record_files(folder) if path.stem not in entries
    ]


def _missing_evidence(board: Loaded[BoardCard], held: Mapping[str, Record]) -> list[str]:
    """Adaptive attacks on the card that never ran."""
    return [
        f"{board.shown}: adaptive attack '{attack}' has not run on '{entry.name}'; run the board again"
        for entry in board.card.entries
        if entry.name in held
        for attack in missing_evidence(entry, held[entry.name])
    ]


def _changed_weights(board: Loaded[BoardCard], held: Mapping[str, Record]) -> list[str]:
    """Weights files that are not those a record was made with."""
    faults = []
    for entry in board.card.entries:
        path = board_folder(board) / entry.weights
        said = held[entry.name].entry.get("weights_sha256") if entry.name in held else None
        if said and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != said:
            faults.append(f"{path}: not the weights that '{entry.name}' was evaluated with; run the board again")
    return faults
