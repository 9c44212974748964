"""Rows that papers and RobustBench report, in a table of their own: nobody measured them here."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_vit.boards.folder import board_folder, require_writable
from robustbench_vit.boards.formats.latex import escape
from robustbench_vit.boards.formats.markdown import aligned
from robustbench_vit.boards.formats.text import MISSING, Grid
from robustbench_vit.boards.robustbench import ModelInfo, read_model_info, require_board
from robustbench_vit.cards import BoardCard, Loaded
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.errors import InputError
from robustbench_vit.storage import write_atomic

CAPTION = "Reported by their authors or by RobustBench, not measured here: other code, other seeds"
_DIGITS = 6
_FIELDS = (
    "rank",
    "row",
    "architecture",
    "eps",
    "clean",
    "autoattack",
    "best_known",
    "claimed",
    "additional_data",
    "unreliable",
    "venue",
    "paper",
    "authors",
    "link",
)


@dataclass(frozen=True)
class ReportedRow:
    """One file of a board's folder `reported`."""

    name: str  # of the file
    info: ModelInfo
    rank: int  # among reported rows of the same eps: 1 + those of which the best known attack leaves more


@dataclass(frozen=True)
class ReportedFile:
    """A file that was imported."""

    target: Path
    info: ModelInfo
    present: bool  # it lay there already


def reported_folder(board: Loaded[BoardCard]) -> Path:
    """Where a board keeps what others report."""
    return board_folder(board) / "reported"


def reported_rows(board: Loaded[BoardCard]) -> tuple[ReportedRow, ...]:
    """The board's reported rows, best first by eps; raises InputError naming every file that doesn't belong."""
    found: dict[str, ModelInfo] = {}
    faults: list[str] = []
    for path in sorted(reported_folder(board).glob("*.json")):
        try:
            info = read_model_info(path)
            require_board(info, board.card, board.shown, path)
            found[path.stem] = info
        except InputError as error:
            faults += str(error).splitlines()
    if faults:
        raise InputError("\n".join(faults))
    order = sorted(found, key=lambda name: (found[name].eps, -found[name].best_known, name))
    return tuple(ReportedRow(name, found[name], _rank(found[name], list(found.values()))) for name in order)


def import_rows(paths: Sequence[Path], board: Loaded[BoardCard]) -> dict[Path, ReportedFile]:
    """Copies model_info files into the board's folder, and returns what lies there now by the path it came from.

    Every file is checked before the first is copied. Raises InputError, naming each file, for those that are not in
    RobustBench's format, are about other data or another budget, or have the name of another row; and for a board
    inside an installed package.
    """
    taken, faults = {}, []
    for path in paths:
        try:
            taken[path] = _importable(path, board)
        except InputError as error:
            faults += str(error).splitlines()
    contents: dict[Path, bytes] = {}
    for path, row in taken.items():
        content = path.read_bytes()
        held = row.target.read_bytes() if row.present else contents.setdefault(row.target, content)
        if held != content:
            faults.append(f"{path}: {board.shown} has another row '{row.target.stem}'; rename the file")
    if faults:
        raise InputError("\n".join(faults))
    for target, content in contents.items():
        write_atomic(target, content)
    return taken


def _importable(path: Path, board: Loaded[BoardCard]) -> ReportedFile:
    if path.suffix != ".json":
        raise InputError(f"{path}: rows of RobustBench are .json files")
    info = read_model_info(path)
    require_board(info, board.card, board.shown, path)
    target = reported_folder(board) / path.name
    require_writable(target, board, "put a board of your own, with another name, into leaderboards/ of your workspace")
    return ReportedFile(target, info, target.is_file())


def _rank(info: ModelInfo, every: Sequence[ModelInfo]) -> int:
    return 1 + sum(other.best_known > info.best_known for other in every if math.isclose(other.eps, info.eps))


def with_reported(text: str, rows: Sequence[ReportedRow], form: str, board: str) -> str:
    """A table's text in one of its formats with the reported rows below it; CSV has a file of its own for them."""
    if not rows or form == "csv":
        return text
    return _json(text, rows) if form == "json" else f"{text}\n{_BELOW[form](rows, board)}"


def _markdown(rows: Sequence[ReportedRow], board: str) -> str:
    notes = "\n".join(f"- {_literal(note)}" for note in _notes(rows))
    blocks = [f"{CAPTION}.", aligned(_grid(rows, _markdown_paper, _literal)), *([notes] if notes else [])]
    return "\n\n".join(blocks) + "\n"


def _grid(rows: Sequence[ReportedRow], paper: Callable[[ReportedRow], str], shown: Callable[[str], str]) -> Grid:
    """The titles and cells, texts as `shown` writes them; budgets are a column where they differ."""
    several = len({row.info.eps for row in rows}) > 1
    cells = [
        {**{title: shown(_plain(text)) for title, text in _cells(row).items()}, "paper": paper(row)} for row in rows
    ]
    titles = [title for title in cells[0] if title != "eps" or several]
    right = [title in ("rank", "eps") or title.endswith("%") for title in titles]
    return Grid(titles, [[line[title] for title in titles] for line in cells], right)


def _cells(row: ReportedRow) -> dict[str, str]:
    """The texts by column, but for the paper."""
    info = row.info
    return {
        "rank": str(row.rank),
        "row": row.name,
        "eps": show_number(info.eps),
        "architecture": info.architecture,
        "clean %": _percent(info.clean_acc),
        "AutoAttack %": _percent(info.autoattack_acc),
        "best known %": _percent(info.best_known),
        "extra data": MISSING if info.additional_data is None else "yes" if info.additional_data else "no",
    }


def _plain(text: str) -> str:
    """`text` on one line without HTML tags and LaTeX's mathematics marks."""
    return " ".join(re.sub(r"<[/!a-zA-Z][^>]*>|\\[()]", " ", text).split())


def _literal(text: str) -> str:
    """Plain text as Markdown shows it letter by letter: no link, image, code or HTML."""
    return re.sub(r"([\\`\[\]<])", r"\\\1", text)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def paper_of(row: ReportedRow) -> str:
    """The authors and where it appeared, 'Mo et al., NeurIPS 2022'; the title where no author is named."""
    names = [author.split()[-1] for author in row.info.author_list]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    return _plain(", ".join(part for part in (who or row.info.name, row.info.venue) if part))


def _markdown_paper(row: ReportedRow) -> str:
    said = _literal(paper_of(row))
    linked = re.fullmatch(r"https?://[^\s()<>|]+", row.info.link or "")
    return f"[{said}]({linked[0]})" if linked else said


def _notes(rows: Sequence[ReportedRow]) -> list[str]:
    """What the files add to single rows; markup removed."""
    notes = []
    for row in rows:
        if said := _plain(row.info.footnote or ""):
            notes.append(f"{row.name}: {said}")
        if row.info.unreliable:
            notes.append(f"{row.name}: RobustBench flags AutoAttack's number as unreliable.")
    return notes


def _latex(rows: Sequence[ReportedRow], board: str) -> str:
    grid = _grid(rows, lambda row: escape(paper_of(row)), escape)
    lines = [" & ".join(cells) + r" \\" for cells in [[escape(title) for title in grid.header], *grid.rows]]
    below = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(CAPTION)}.}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', board)}-reported}}",
        rf"\begin{{tabular}}{{@{{}}{''.join('r' if right else 'l' for right in grid.right)}@{{}}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in _notes(rows)),
        r"\end{table}",
    ]
    return "\n".join(below) + "\n"


_BELOW = {"md": _markdown, "tex": _latex}


def _json(text: str, rows: Sequence[ReportedRow]) -> str:
    content = json.loads(text)
    content["reported"] = {"caption": CAPTION, "rows": [_values(row) for row in rows]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def reported_csv(rows: Sequence[ReportedRow]) -> str:
    """A line per reported row; shares as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows(_values(row).values() for row in rows)
    return out.getvalue()


def _values(row: ReportedRow) -> dict[str, Any]:
    info = row.info
    values = (
        row.rank,
        row.name,
        info.architecture,
        round(info.eps, _DIGITS),
        *(
            None if percent is None else round(percent / 100, _DIGITS)
            for percent in (info.clean_acc, info.autoattack_acc, info.best_known, info.reported)
        ),
        info.additional_data,
        info.unreliable,
        info.venue,
        info.name,
        info.authors,
        info.link,
    )
    return dict(zip(_FIELDS, values, strict=True))
