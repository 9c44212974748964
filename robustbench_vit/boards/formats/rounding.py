"""How many decimals numbers have in forms for machines."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

_DIGITS = 6


def rounded(value: T) -> T | float:
    """A float with six decimals; anything else as it is."""
    return round(value, _DIGITS) if isinstance(value, float) else value
