"""A fresh record against the one that is committed with its board, for one attack and eps. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vit.boards import board_folder
from robustbench_vit.comparing import Item
from robustbench_vit.comparing.judge import compare
from robustbench_vit.comparing.sources import Source
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record

if TYPE_CHECKING:
    from robustbench_vit.testing.demand import Asked

ANY_DROP = 0.99
"""Largest admitted drop where none is named: so large that nothing is said about it."""


def committed_path(asked: Asked) -> Path:
    """Where the board keeps the entry's record."""
    return board_folder(asked.board) / "records" / f"{asked.entry}.json"


def require_committed(asked: Asked) -> None:
    """Raises InputError when the board has no record to compare the entry with."""
    path = committed_path(asked)
    if not path.is_file():
        raise InputError(
            f"max_drop compares '{asked.entry}' with its committed record, and there is none at {path};"
            f" `rbvit run {asked.board.name} --publish` makes it"
        )


def against_committed(asked: Asked, fresh: Record, max_drop: float | None, alpha: float) -> Item:
    """What became of the number asked about; `fresh` holds all that was evaluated.

    Without `max_drop` only the samples that flipped mean something. Raises InputError for a committed record that
    cannot be read or shares no sample, and ProtocolMismatchError for one that was made otherwise.
    """
    path = committed_path(asked)
    sides = (("the committed record", Record.load(path)), ("this test", fresh))
    before, after = (Source(name, path, {asked.entry: _only(asked, record)}) for name, record in sides)
    compared = compare(before, after, ANY_DROP if max_drop is None else max_drop, alpha)
    (item,) = compared.items
    return item if max_drop is None else dataclasses.replace(item, notes=(*item.notes, *compared.notes))


def _only(asked: Asked, record: Record) -> Record:
    """The record as if the one number had been evaluated alone, so that Holm's adjustment counts it alone."""
    narrowed = record.at(asked.attack, asked.eps)
    attacks = {asked.attack: record.protocol["attacks"][asked.attack]}
    return dataclasses.replace(narrowed, protocol={**record.protocol, "attacks": attacks, "eps": [asked.eps]})
