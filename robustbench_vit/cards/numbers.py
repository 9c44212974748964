"""Numbers as people write them on cards and command lines: 0.2, 1e-3, 8/255."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_FRACTION = re.compile(r"\s*([-+]?[0-9.]+(?:e[-+]?\d+)?)\s*/\s*([0-9.]+)\s*", re.IGNORECASE)


def parse_number(value: Any) -> float:
    """`value` as a finite float; strings may be fractions such as '8/255'. Raises ValueError saying what is legal."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a number such as 0.2 or 8/255, got {value!r}")
    if isinstance(value, str):
        value = _parse_text(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number}")
    return number


def _parse_text(text: str) -> float:
    fraction = _FRACTION.fullmatch(text)
    try:
        if fraction is None:
            return float(text)
        top, bottom = (float(part) for part in fraction.groups())
    except ValueError:
        raise ValueError(f"expected a number such as 0.2 or 8/255, got {text!r}") from None
    if bottom == 0:
        raise ValueError(f"division by zero in {text!r}")
    return top / bottom


Number = Annotated[float, BeforeValidator(parse_number)]
"""A float field of a card; `8/255` is legal."""


def show_number(value: float) -> str:
    """`value` as people write budgets: a short decimal, else n/255 when it is one, else every digit."""
    short = f"{value:g}"
    if float(short) == value:
        return short
    top = round(value * 255)
    return f"{top}/255" if top / 255 == value else repr(value)
