"""A table as Markdown, CSV or JSON text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from robustbench_vit.boards.columns import Column, Estimate, Kind, Value
from robustbench_vit.boards.table import Row, Table
from robustbench_vit.cards.numbers import show_number

_DIGITS = 6
"""Decimals of shares in CSV and JSON."""

_POLICIES = {
    "B": "it answers at random: gradients are averaged over draws, and one wrong draw breaks a sample",
    "C": "it has no useful gradient: attacked by scores and decisions only, so the number says little",
}

Renderer = Callable[[Table], str]


def render(table: Table, form: str) -> str:
    """The table as text in one of FORMATS, ending in a newline."""
    return FORMATS[form](table)


def markdown(table: Table) -> str:
    """A caption and an aligned table; shares in percent."""
    header = [_title(column, table) for column in table.columns]
    body = [_markdown_row(row, table.columns) for row in table.rows]
    right = [column.kind is not Kind.TEXT for column in table.columns]
    widths = [max(3, *(len(line[i]) for line in [header, *body])) for i in range(len(header))]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    lines = [_aligned(line, widths, right) for line in [header, rule, *body]]
    return "\n".join([caption(table), "", *lines, "", *notes(table)])


def _title(column: Column, table: Table) -> str:
    """A column's title; an attack that is not what its name claims is called custom."""
    name = _custom_name(column.title, table)
    return column.title if name is None else f"custom ({name}){column.title.removeprefix(name)}"


def _custom_name(text: str, table: Table) -> str | None:
    """The attack whose column's title or key this is, when it isn't what its name claims."""
    return next((n for n in table.custom if text == n or text.startswith((f"{n} ", f"{n}@", f"{n}:"))), None)


def notes(table: Table) -> list[str]:
    """What a reader must know of single rows: attacks that deviate, other policies, evidence of masked gradients."""
    lines = [f"`{attack}` here is custom: {'; '.join(fields)}." for attack, fields in table.custom.items()]
    for row in table.rows:
        if row.policy in _POLICIES:
            lines.append(f"{row.entry}: policy {row.policy}, {_POLICIES[row.policy]}.")
        for eps, found in row.reliability.items():
            if found.against:
                said = "; ".join(reason.message for reason in found.against)
                at = f" at eps {show_number(eps)}" if len(row.reliability) > 1 else ""
                lines.append(f"{row.entry}: {found.evidence} evidence of masked gradients{at}: {said}")
    return [*(f"- {line}" for line in lines), *([""] if lines else [])]


def _aligned(cells: list[str], widths: list[int], right: list[bool]) -> str:
    padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return f"| {' | '.join(padded)} |"


def caption(table: Table) -> str:
    """What all rows of the table share, in a sentence or two."""
    card = table.card
    eps = ", ".join(show_number(value) for value in card.eps)
    about = f"{card.data.name}/{card.data.split}, {card.norm}, eps {eps}"
    if table.samples is None:
        return f"No records yet; {about}."
    if table.profile == "smoke":
        return f"Smoke profile: {table.samples} samples and shortened attacks; these numbers mean nothing."
    return (
        f"{table.samples} samples of {about}; percent of all samples, [Wilson {100 * card.confidence:g} % intervals]; "
        f"'after' counts the samples a lane left robust, passes are means per sample; "
        f"ranked by {card.attacks[-1]}; {_protocols(table)}."
    )


def _protocols(table: Table) -> str:
    """The protocol's id; where rows differ in their precision, an id for each."""
    if len(table.protocol_ids) == 1:
        return f"protocol `{next(iter(table.protocol_ids.values()))}`"
    return f"protocols {', '.join(f'`{name}` ({precision})' for precision, name in table.protocol_ids.items())}"


def _markdown_row(row: Row, columns: tuple[Column, ...]) -> list[str]:
    cells = [_text(value, column.kind) for value, column in zip(row.cells, columns, strict=True)]
    empty = [i for i, column in enumerate(columns) if column.kind is not Kind.TEXT]
    if row.note and empty:
        cells[empty[0]] = row.note
    return cells


def _text(value: Value, kind: Kind) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if kind is Kind.SHARE:
        return f"{100 * value:.1f}"
    if kind is Kind.COUNT:
        return f"{value:,}"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def comma_separated(table: Table) -> str:
    """A line per entry; shares as fractions, an interval as three columns, nothing for a missing record."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in table.columns for name in _csv_names(column)]
    writer.writerow([f"custom:{name}" if _custom_name(name, table) else name for name in names])
    for row in table.rows:
        pairs = zip(row.cells, table.columns, strict=True)
        writer.writerow([value for cell, column in pairs for value in _csv_values(cell, column)])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    if column.kind is not Kind.INTERVAL:
        return [column.key]
    attack = column.key.removesuffix(":interval")
    return [f"{attack}:estimate", f"{attack}:low", f"{attack}:high"]


def _csv_values(value: Value, column: Column) -> list[Any]:
    if column.kind is not Kind.INTERVAL:
        return [_number(value)]
    if not isinstance(value, Estimate):
        return [None, None, None]
    return [_number(value.value), _number(value.low), _number(value.high)]


def as_json(table: Table) -> str:
    """The table with what its rows share; shares as fractions, numbers as numbers, null for a missing record."""
    card = table.card
    content = {
        "board": table.board,
        "about": card.about,
        "data": {"name": card.data.name, "split": card.data.split},
        "samples": table.samples,
        "norm": card.norm,
        "eps": list(card.eps),
        "confidence": card.confidence,
        "profile": table.profile,
        "protocol_ids": dict(table.protocol_ids),
        "ranked_by": card.attacks[-1],
        "custom": {attack: list(fields) for attack, fields in table.custom.items()},
        "columns": [{"key": c.key, "title": c.title, "kind": c.kind.value} for c in table.columns],
        "rows": [_json_row(row, table.columns) for row in table.rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _json_row(row: Row, columns: tuple[Column, ...]) -> dict[str, Any]:
    cells = {column.key: _json_value(value) for value, column in zip(row.cells, columns, strict=True)}
    reliability = [{"eps": eps, **found.to_dict(timed=False)} for eps, found in row.reliability.items()]
    return {"entry": row.entry, "note": row.note, "policy": row.policy, **cells, "verdict": reliability}


def _json_value(value: Value) -> Any:
    if isinstance(value, Estimate):
        return {"estimate": _number(value.value), "low": _number(value.low), "high": _number(value.high)}
    return _number(value)


def _number(value: Value) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value


FORMATS: dict[str, Renderer] = {"md": markdown, "csv": comma_separated, "json": as_json}
"""How a table can be written; the names are also the suffixes of the files."""
