"""What the board digits-vit says of token dropping, tokens-to-token and refined attention.

`python -m benchmarks.digits_vit` writes docs/digits-vit.md from the board's committed records; it computes no attack.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import digits_vit_page as page
from benchmarks.figures import dots
from robustbench_vit.boards import board_folder
from robustbench_vit.boards.folder import load_records
from robustbench_vit.cards import BoardCard, open_workspace
from robustbench_vit.records import Record
from robustbench_vit.storage import write_atomic

BOARD = "digits-vit"
DOCS = Path(__file__).resolve().parent.parent / "docs"
REPORT, FIGURE = DOCS / "digits-vit.md", DOCS / page.FIGURE


def pages(card: BoardCard, records: Mapping[str, Record]) -> tuple[str, str]:
    """The page and its figure."""
    held = page.Board(card, records)
    labels = (held.attack, f"{page.BEST}; a mark per training")
    return page.report(held), dots(page.rows_of_figure(held), labels, "robust accuracy, %")


def main() -> None:
    """See the module's docstring."""
    board = open_workspace().board(BOARD)
    records = load_records(board_folder(board) / "records")
    if not records:
        sys.exit(f"no records of {BOARD}; `rbvit run {BOARD} --publish` makes them")
    text, figure = pages(board.card, records)
    write_atomic(REPORT, text.encode())
    write_atomic(FIGURE, figure.encode())
    print(text)


if __name__ == "__main__":
    main()
