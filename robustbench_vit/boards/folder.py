"""Where a board's files lie: its records beside its card, and what may be written there."""

from __future__ import annotations

from pathlib import Path

from robustbench_vit.cards import BoardCard, Loaded
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record


def board_folder(board: Loaded[BoardCard]) -> Path:
    """The folder beside the board's card, with its weights, its records and what is made from them."""
    return board.path.parent / board.name


def load_records(folder: Path) -> dict[str, Record]:
    """The records in `folder` by the name of their file (an entry's name); none when there is no such folder.

    Without their images: those of all entries together may need more memory than there is.
    """
    return {path.stem: Record.load(path, images=False) for path in record_files(folder)}


def record_files(folder: Path) -> list[Path]:
    """The folder's records; a table may stand beside them."""
    return [path for path in sorted(folder.glob("*.json")) if path.name != "table.json"]


def require_writable(path: Path, board: Loaded[BoardCard], instead: str) -> None:
    """Raises InputError, saying what to do `instead`, when `path` lies inside an installed package."""
    builtin = builtin_layer()
    if builtin.name == "_workspace" and path.resolve().is_relative_to(builtin):
        raise InputError(f"board '{board.name}' is part of the installed package, which is never written to; {instead}")
