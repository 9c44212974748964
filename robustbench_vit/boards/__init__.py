"""Records -> table -> Markdown, CSV, LaTeX, JSON, pandas. No torch."""

from robustbench_vit.boards.formats import FORMATS, render
from robustbench_vit.boards.generated import board_folder, board_table, publish, stale
from robustbench_vit.boards.printing import EXTRA, printed
from robustbench_vit.boards.table import Table, build_table
from robustbench_vit.boards.view import BoardView, load_board

__all__ = [
    "EXTRA",
    "FORMATS",
    "BoardView",
    "Table",
    "board_folder",
    "board_table",
    "build_table",
    "load_board",
    "printed",
    "publish",
    "render",
    "stale",
]
