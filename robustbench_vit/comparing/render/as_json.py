"""A comparison as JSON: everything, numbers unrounded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from robustbench_vit.comparing.comparison import Comparison, Conclusion, Item, Side

FORMAT = "robustbench_vit/comparison/1"


def as_json(comparison: Comparison) -> str:
    """JSON text, ending in a newline; shares are fractions of 1."""
    content = {
        "format": FORMAT,
        "command": comparison.command,
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "max_drop": comparison.max_drop,
        "alpha": comparison.alpha,
        "conclusion": comparison.conclusion,
        "counts": {conclusion.value: comparison.count(conclusion) for conclusion in Conclusion},
        "new": list(comparison.new),
        "notes": list(comparison.notes),
        "items": [_item(item) for item in comparison.items],
        **comparison.extra,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _item(item: Item) -> dict[str, Any]:
    values = dataclasses.asdict(item)
    return {
        **values,
        "candidate_entry": item.candidate_entry or item.entry,
        "drop": item.drop,
        "baseline": _side(item.baseline),
        "candidate": _side(item.candidate),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        **dataclasses.asdict(side),
        "robust_accuracy": side.robust_accuracy,
        "clean_accuracy": side.clean_accuracy,
    }
