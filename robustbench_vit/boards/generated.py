"""The files made from a board's records: its tables and the README's block."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from robustbench_vit.boards.formats import FORMATS, render
from robustbench_vit.boards.table import Table, build_table
from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record
from robustbench_vit.storage import write_atomic


def board_folder(board: Loaded[BoardCard]) -> Path:
    """The folder beside the board's card, with its weights, its records and its tables."""
    return board.path.parent / board.name


def load_records(folder: Path) -> dict[str, Record]:
    """The records in `folder` by the name of their file (an entry's name); none when there is no such folder."""
    return {path.stem: Record.load(path) for path in _record_files(folder)}


def _record_files(folder: Path) -> list[Path]:
    """The folder's records; a table may stand beside them."""
    return [path for path in sorted(folder.glob("*.json")) if path.name != "table.json"]


def board_table(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> Table:
    """The table of the records in `records` (default: the board's own)."""
    if records is not None and not records.is_dir():
        raise InputError(f"no folder with records at {records}")
    return build_table(board, workspace, load_records(records or board_folder(board) / "records"))


def publish(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> list[Path]:
    """Writes the tables of a board and returns the files that changed.

    Tables of the board's own records stand in the board's folder, and the README above it shows them between
    `<!-- board:NAME -->` and `<!-- /board -->`. Tables of other `records` (a folder) stand in that folder, or beside it
    when it is called records.
    Raises InputError for a board inside an installed package, which is never written to.
    """
    changed = []
    for path, text in _files(board, workspace, records).items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            _require_writable(path, board)
            write_atomic(path, text.encode())
            changed.append(path)
    return changed


def stale(board: Loaded[BoardCard], workspace: Workspace, records: Path | None = None) -> list[str]:
    """What differs from what the records say, a line each; empty when everything is fresh."""
    faults = []
    for path, text in _files(board, workspace, records).items():
        if not path.is_file():
            faults.append(f"{path}: does not exist")
        elif path.read_text(encoding="utf-8") != text:
            faults.append(f"{path}: differs from what the records say")
    return faults + _stray_records(board, records) + _changed_weights(board, records)


def _files(board: Loaded[BoardCard], workspace: Workspace, records: Path | None) -> dict[Path, str]:
    """Every generated file with the text it should have."""
    table = board_table(board, workspace, records)
    folder = board_folder(board) if records is None else _beside(records)
    files = {folder / f"table.{form}": render(table, form) for form in FORMATS}
    readme = board.path.parent.parent / "README.md"
    if records is None and readme.is_file():
        text = readme.read_text(encoding="utf-8")
        if block(board.name).search(text):
            files[readme] = with_block(text, board.name, render(table, "md"))
    return files


def _beside(records: Path) -> Path:
    return records.parent if records.name == "records" else records


def block(board: str) -> re.Pattern[str]:
    """Finds the generated block of a board."""
    return re.compile(rf"(<!-- board:{re.escape(board)} -->\n).*?(<!-- /board -->)", re.DOTALL)


def with_block(text: str, board: str, content: str) -> str:
    """`text` with `content` in the board's block."""
    return block(board).sub(lambda found: f"{found[1]}{content}{found[2]}", text)


def _require_writable(path: Path, board: Loaded[BoardCard]) -> None:
    builtin = builtin_layer()
    if builtin.name == "_workspace" and path.resolve().is_relative_to(builtin):
        raise InputError(
            f"board '{board.name}' is part of the installed package, which is never written to; "
            f"give the records of your own run: --records runs/{board.name}/records"
        )


def _stray_records(board: Loaded[BoardCard], records: Path | None) -> list[str]:
    """Records of entries that the board doesn't have."""
    folder = records or board_folder(board) / "records"
    entries = {entry.name for entry in board.card.entries}
    return [
        f"{path}: {board.shown} has no entry '{path.stem}'"
        for path in _record_files(folder)
        if path.stem not in entries
    ]


def _changed_weights(board: Loaded[BoardCard], records: Path | None) -> list[str]:
    """Weights files that are not those a record was made with."""
    held = load_records(records or board_folder(board) / "records")
    faults = []
    for entry in board.card.entries:
        path = board_folder(board) / entry.weights
        said = held[entry.name].entry.get("weights_sha256") if entry.name in held else None
        if said and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != said:
            faults.append(f"{path}: not the weights that '{entry.name}' was evaluated with; run the board again")
    return faults
