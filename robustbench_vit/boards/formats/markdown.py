"""A table as Markdown."""

from __future__ import annotations

from robustbench_vit.boards.formats.text import Grid, caption, families_caption, families_grid, grid, notes
from robustbench_vit.boards.table import Table


def markdown(table: Table) -> str:
    """A caption and an aligned table, one of families where there are some, and notes on single rows."""
    blocks = [caption(table), aligned(grid(table))]
    if table.families:
        blocks += [families_caption(table), aligned(families_grid(table))]
    if said := notes(table):
        blocks.append("\n".join(f"- {line}" for line in said))
    return "\n\n".join(blocks) + "\n"


def aligned(grid: Grid) -> str:
    """The lines of a Markdown table whose columns have one width each."""
    texts = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in [grid.header, *grid.rows]]
    widths = [max(3, *(len(line[i]) for line in texts)) for i in range(len(grid.header))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, grid.right, strict=True)]
    return "\n".join(_line(line, widths, grid.right) for line in [texts[0], rule, *texts[1:]])


def _line(cells: list[str], widths: list[int], right: list[bool]) -> str:
    padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return f"| {' | '.join(padded)} |"
