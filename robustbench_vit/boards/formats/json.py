"""A table as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from robustbench_vit.boards.columns import Column, Estimate, Value
from robustbench_vit.boards.families import Family
from robustbench_vit.boards.formats.rounding import rounded
from robustbench_vit.boards.table import Row, Table


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
        "interval": card.interval,
        "alpha": card.alpha,
        "profile": table.profile,
        "protocol_ids": dict(table.protocol_ids),
        "ranked_by": card.attacks[-1],
        "custom": {attack: list(fields) for attack, fields in table.custom.items()},
        "columns": [{"key": c.key, "title": c.title, "kind": c.kind.value} for c in table.columns],
        "rows": [_row(row, table.columns) for row in table.rows],
        "families": [_family(family) for family in table.families],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _row(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    cells = {column.key: _value(value) for value, column in zip(row.cells, columns, strict=True)}
    reliability = [{"eps": eps, **found.to_dict(timed=False)} for eps, found in row.reliability.items()]
    head = {"entry": row.entry, "note": row.note, "policy": row.policy, "rank": row.rank}
    return {**head, **cells, "verdict": reliability, **_evidence(row)}


def _evidence(row: Row) -> dict[str, Any]:
    """The adaptive attacks of a row, and what fell to them alone; nothing for rows without."""
    if not row.adaptive:
        return {}
    alone = [
        {"eps": eps, "samples": {name: list(by) for name, by in found.items()}}
        for eps, found in row.only_adaptive.items()
    ]
    return {"adaptive": list(row.adaptive), "only_to_adaptive": alone}


def _value(value: Value) -> Any:
    if isinstance(value, Estimate):
        return {"estimate": rounded(value.value), "low": rounded(value.low), "high": rounded(value.high)}
    return rounded(value)


def _family(family: Family) -> dict[str, Any]:
    return {
        "family": family.name,
        "entries": list(family.entries),
        "training_seeds": list(family.training_seeds),
        "missing": family.missing,
        "clean": rounded(family.clean),
        "robust": rounded(family.robust),
        "deviation": rounded(family.deviation),
        "low": rounded(family.low),
        "high": rounded(family.high),
        **({} if family.best_known is None else {"best_known": rounded(family.best_known)}),
    }
