"""A table as HTML, for notebooks."""

from __future__ import annotations

from html import escape

from robustbench_vit.boards.formats.text import Grid, caption, families_caption, families_grid, grid, notes
from robustbench_vit.boards.table import Table


def html(table: Table) -> str:
    """A caption and a table, one of families where there are some, and notes on single rows."""
    parts = [_table(caption(table), grid(table))]
    if table.families:
        parts.append(_table(families_caption(table), families_grid(table)))
    if said := notes(table):
        parts.append(f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in said)}</ul>")
    return f"<div>{''.join(parts)}</div>\n"


def _table(about: str, grid: Grid) -> str:
    head = _line("th", grid.header, grid.right)
    body = "\n".join(_line("td", row, grid.right) for row in grid.rows)
    return f"<table><caption>{_text(about)}</caption>\n<thead>{head}</thead>\n<tbody>{body}</tbody></table>\n"


def _line(tag: str, cells: list[str], right: list[bool]) -> str:
    sides = ["right" if r else "left" for r in right]
    shown = (f'<{tag} style="text-align: {s}">{_text(c)}</{tag}>' for c, s in zip(cells, sides, strict=True))
    return f"<tr>{''.join(shown)}</tr>"


def _text(text: str) -> str:
    """Escaped, with code between its tags in the place of backticks."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
