"""A board in Python: its card, its records and its table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vit.boards.folder import board_folder, load_records
from robustbench_vit.boards.formats import html
from robustbench_vit.boards.reported import ReportedRow, reported_rows
from robustbench_vit.boards.table import Table, build_table
from robustbench_vit.cards import BoardCard, Loaded, Workspace, open_workspace
from robustbench_vit.cards.workspace import FOLDERS
from robustbench_vit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_vit.records import Record

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class BoardView:
    """A board with the records it was made from; notebooks show its table."""

    name: str
    card: BoardCard
    records: Mapping[str, Record]  # by entry
    table: Table
    reported: tuple[ReportedRow, ...] = ()  # what papers report, apart from what was measured

    def to_frame(self) -> pd.DataFrame:
        """See `Table.to_frame`."""
        return self.table.to_frame()

    def _repr_html_(self) -> str:
        return html(self.table)


@dataclass(frozen=True)
class _Found:
    """A board and where its records lie."""

    board: Loaded[BoardCard]
    workspace: Workspace
    records: Path


def load_board(board: StrPath, records: StrPath | None = None) -> BoardView:
    """A board's card, records and table.

    `board` is the name of a board in the current workspace, the path of a board's card, the folder beside the card, or
    a run's folder (`runs/BOARD`), whose board is found by its name. `records` is a folder with other records than those
    that belong to it. Raises InputError when there is no such board or folder, and ProtocolMismatchError when the
    records may not share a table or belong to another board.
    """
    found = _find(board)
    folder = found.records if records is None else Path(records)
    if records is not None and not folder.is_dir():
        raise InputError(f"no folder with records at {folder}")
    held, card = load_records(folder), found.board.card
    own = {entry.name: held[entry.name] for entry in card.entries if entry.name in held}
    table = build_table(found.board, found.workspace, own)
    return BoardView(found.board.name, card, own, table, reported_rows(found.board))


def _find(board: StrPath) -> _Found:
    path, workspace = Path(board), open_workspace()
    if path.suffix in (".yaml", ".yml"):
        return _of_card(path)
    if str(board) in workspace.names("board") or not path.exists():
        found = workspace.board(os.fspath(board))
        return _Found(found, workspace, board_folder(found) / "records")
    return _of_folder(path.resolve(), workspace)


def _of_card(path: Path) -> _Found:
    """The board of a card; attack cards are looked up in the workspace it lies in, else in the current one."""
    parent = path.resolve().parent
    workspace = open_workspace(parent.parent if parent.name == FOLDERS["board"] else None)
    found = workspace.board(str(path))
    return _Found(found, workspace, board_folder(found) / "records")


def _of_folder(folder: Path, workspace: Workspace) -> _Found:
    """The board that a folder belongs to: its card stands beside it, or a board of the workspace has its name."""
    card = folder.parent / f"{folder.name}.yaml"
    if card.is_file():
        return _of_card(card)
    run = folder.parent if folder.name == "records" else folder
    name = run.name.removesuffix("-smoke")
    if name not in workspace.names("board"):
        known = ", ".join(workspace.names("board")) or "none"
        raise InputError(
            f"{folder} belongs to no board: there is no {card.name} beside it, and no board is called '{name}' "
            f"(known: {known}); give the board's card or name, and this folder as records"
        )
    held = run / "records"
    return _Found(workspace.board(name), workspace, held if held.is_dir() else run)
