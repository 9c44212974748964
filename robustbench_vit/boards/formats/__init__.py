"""A table as text: Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

from collections.abc import Callable

from robustbench_vit.boards.formats.csv import comma_separated
from robustbench_vit.boards.formats.html import html
from robustbench_vit.boards.formats.json import as_json
from robustbench_vit.boards.formats.latex import latex
from robustbench_vit.boards.formats.markdown import markdown
from robustbench_vit.boards.table import Table

__all__ = ["FORMATS", "Renderer", "html", "render"]

Renderer = Callable[[Table], str]

FORMATS: dict[str, Renderer] = {"md": markdown, "csv": comma_separated, "json": as_json, "tex": latex}
"""How a table can be written; the names are also the suffixes of the files."""


def render(table: Table, form: str) -> str:
    """The table as text in one of FORMATS, ending in a newline."""
    return FORMATS[form](table)
