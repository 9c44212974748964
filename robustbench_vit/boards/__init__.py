"""Records -> table -> Markdown, CSV, JSON. No torch."""

from robustbench_vit.boards.formats import FORMATS, render
from robustbench_vit.boards.generated import board_folder, board_table, publish, stale
from robustbench_vit.boards.table import Table, build_table

__all__ = ["FORMATS", "Table", "board_folder", "board_table", "build_table", "publish", "render", "stale"]
