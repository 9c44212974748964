r"""A table as LaTeX: a `table` environment with booktabs' rules, to be pasted or `\input`."""

from __future__ import annotations

import re

from robustbench_vit.boards.columns import RANK, ranking_keys
from robustbench_vit.boards.formats.text import (
    Grid,
    caption,
    families_caption,
    families_grid,
    grid,
    notes,
    significance,
)
from robustbench_vit.boards.table import Table

_ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedblright{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "α": r"$\alpha$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}
"""What LaTeX would read as a command, or what a font of its own may lack."""

_ROW_OPENERS = ("[", "*")
r"""What `\\` on the line before would take for its argument."""


def latex(table: Table) -> str:
    """A table, and one of families where there are some; the best rows (rank 1) are bold in the ranking column.

    The document needs the package booktabs. Rows that a test cannot tell from the best are bold with it.
    """
    about = f"{caption(table)} {_bold_means(table)}".rstrip()
    parts = [_environment(about, f"tab:{_label(table.board)}", _bold(grid(table), table), notes(table))]
    if table.families:
        about = families_caption(table)
        parts.append(_environment(about, f"tab:{_label(table.board)}-families", _escaped(families_grid(table)), []))
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def escape(text: str) -> str:
    r"""Plain text for LaTeX; what stands between backticks in \texttt, between quotes in LaTeX's own."""
    shown = "".join(_ESCAPED.get(character, character) for character in text)
    return re.sub(r"(?<!\w)'([^'`]+)'", r"`\1'", re.sub("`([^`]*)`", _code, shown))


def _code(found: re.Match[str]) -> str:
    return rf"\texttt{{{found[1]}}}"


def _label(board: str) -> str:
    """The board's name with what a label may hold."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", board)


def _escaped(grid: Grid) -> Grid:
    rows = [[escape(cell) for cell in row] for row in grid.rows]
    return Grid([escape(title) for title in grid.header], rows, grid.right)


def _bold(grid: Grid, table: Table) -> Grid:
    """The texts for LaTeX, with the best rows' cells bold in the ranking columns."""
    ranking = [i for i, column in enumerate(table.columns) if column.key in ranking_keys(table.card)]
    shown = _escaped(grid)
    for row, cells in zip(table.rows, shown.rows, strict=True):
        for i in ranking if row.rank == 1 else []:
            cells[i] = rf"\textbf{{{cells[i]}}}"
    return shown


def _bold_means(table: Table) -> str:
    if all(row.rank is None for row in table.rows):
        return ""
    if any(column.key == RANK for column in table.columns):
        return f"Bold: {RANK} 1."
    return f"Bold: no row is significantly above it ({significance(table.card)})."


def _environment(about: str, label: str, grid: Grid, said: list[str]) -> str:
    """The lines of a `table` environment; `said` stands below the table."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(about)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if right else 'l' for right in grid.right)}@{{}}}}",
        r"\toprule",
        _line(grid.header),
        r"\midrule",
        *(_line(row) for row in grid.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip{{\footnotesize {escape(line)}\par}}" for line in said),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    line = " & ".join(cells)
    guard = "{}" if line.startswith(_ROW_OPENERS) else ""
    return rf"{guard}{line} \\"
