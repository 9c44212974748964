"""Defense cards with some fields changed, for reports that ask what a field is good for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_vit.cards import DefenseCard, Loaded, open_workspace


def changed_card(name: str, changes: Mapping[str, Any]) -> Loaded[DefenseCard]:
    """The card `name` with these fields; settings of a part are laid over its own unless they name another part."""
    loaded = open_workspace().defense(name)
    fields = loaded.card.model_dump()
    for field, change in changes.items():
        old = fields[field]
        if isinstance(change, dict) and isinstance(old, dict) and change.get("name", old["name"]) == old["name"]:
            change = {**old, **change}
        fields[field] = change
    return Loaded(loaded.name, loaded.path, loaded.shown, DefenseCard.model_validate(fields))
