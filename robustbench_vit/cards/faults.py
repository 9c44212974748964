"""Faults of a card in words: which file, which field, what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError


def describe(
    error: ValidationError, where: str, fields_at: Mapping[str, Iterable[str]], place: Sequence[str] = ()
) -> list[str]:
    """One line per fault of `error`.

    `fields_at` maps the dotted place of a mapping ('' is the top) to the field names legal there, for 'did you mean'.
    `place` is where on the card the value stands that was validated, when that is not the whole card.
    """
    return list(dict.fromkeys(_line(fault, where, fields_at, place) for fault in error.errors()))


def _line(fault: Any, where: str, fields_at: Mapping[str, Iterable[str]], within: Sequence[str]) -> str:
    place = [*within, *(str(part) for part in fault["loc"] if not _is_union_tag(part))]
    name = ".".join(place)
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown field '{name}'{_did_you_mean(place, fields_at)}"
    if fault["type"] in ("missing", "missing_keyword_only_argument", "missing_argument"):
        return f"{where}: missing field '{name}'; a card states every setting"
    message = _message(fault)
    got = "" if "got " in message or repr(fault["input"]) in message else f", got {fault['input']!r}"
    return f"{where}: field '{name}': {message}{got}" if name else f"{where}: {message}"


def _message(fault: Any) -> str:
    """Pydantic's message as the rest of a sentence about the field."""
    if fault["type"] == "too_short":
        return f"should have at least {fault['ctx']['min_length']} item"
    if fault["type"] in ("model_type", "dict_type"):
        return "should be a mapping such as {name: …}"
    return _SUBJECT.sub("should", fault["msg"].removeprefix("Value error, "))


_SUBJECT = re.compile(r"^(Input|String|List) should")


def _is_union_tag(part: Any) -> bool:
    """Pydantic names the member of a union in an error's place; a person reading the card never wrote it."""
    return isinstance(part, str) and (
        "[" in part or part in ("int", "float", "str", "constrained-int", "Component", "all")
    )


def _did_you_mean(place: list[str], fields_at: Mapping[str, Iterable[str]]) -> str:
    parent = ".".join(part for part in place[:-1] if not part.isdigit())
    close = difflib.get_close_matches(place[-1], list(fields_at.get(parent, ())), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
