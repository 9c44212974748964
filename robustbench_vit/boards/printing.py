"""What `rbvit table` prints: a board's table in one of its formats, or what belongs to it in a paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robustbench_vit.boards.folder import board_folder, load_records
from robustbench_vit.boards.generated import board_table, board_text
from robustbench_vit.boards.methods import methods_text, policies_of
from robustbench_vit.boards.references import references_text
from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.records import Record


def printed(board: Loaded[BoardCard], workspace: Workspace, form: str, records: Path | None = None) -> str:
    """The board in one of FORMATS or EXTRA; `records` is a folder, by default the board's own."""
    if form in EXTRA:
        return EXTRA[form](board, workspace, records)
    return board_text(board, workspace, form, records)


def _methods(board: Loaded[BoardCard], workspace: Workspace, records: Path | None) -> str:
    table = board_table(board, workspace, records)
    return methods_text(board, workspace, table, _held(board, records))


def _references(board: Loaded[BoardCard], workspace: Workspace, records: Path | None) -> str:
    table, held = board_table(board, workspace, records), _held(board, records)
    measured = [held[row.entry] for row in table.rows if row.note is None]
    return references_text(board, workspace, policies_of(measured))


def _held(board: Loaded[BoardCard], records: Path | None) -> dict[str, Record]:
    return load_records(records or board_folder(board) / "records")


EXTRA: dict[str, Callable[[Loaded[BoardCard], Workspace, Path | None], str]] = {
    "bib": _references,
    "methods": _methods,
}
"""What can be printed of a board besides its table: BibTeX of what it rests on, and the sentences for a paper."""
