"""Where two nested settings differ, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A field in which two nested settings differ."""

    place: str  # dotted
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.place}: {_shown(self.left)} / {_shown(self.right)}"


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    """Every field in which two nested settings differ, by its dotted place."""
    return list(_differences(left, right, ""))


def _differences(left: Any, right: Any, place: str) -> Iterator[Difference]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted(left.keys() | right.keys()):
            inner = f"{place}.{key}" if place else str(key)
            yield from _differences(left.get(key, ABSENT), right.get(key, ABSENT), inner)
    elif _is_list(left) and _is_list(right) and len(left) == len(right):
        for position, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _differences(one, other, f"{place}.{position}")
    elif left is ABSENT or right is ABSENT or left != right:
        yield Difference(place, left, right)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _shown(value: Any) -> str:
    """JSON of `value`, cut when long."""
    if value is ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 72 else text[:69] + "…"
