"""From a board's card and its records to a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustbench_vit.boards.columns import Column, Value, columns
from robustbench_vit.boards.protocols import require_board, require_one_protocol
from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.errors import ProtocolMismatchError
from robustbench_vit.records import Record, Reliability, Status

NO_RECORD = "no record"
INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Row:
    """An entry's cells; `note` says why there are none."""

    entry: str
    cells: tuple[Value, ...]
    note: str | None = None
    reliability: Mapping[float, Reliability] = field(default_factory=dict)  # of the ranking attack, by eps
    policy: str | None = None


@dataclass(frozen=True)
class Table:
    """A board's rows, best first, with what they have in common."""

    board: str
    card: BoardCard
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    samples: int | None  # of each row; None without records
    profile: str  # 'full', or 'smoke': numbers that mean nothing
    protocol_ids: Mapping[str, str]  # by precision, in the card's order; one entry, but where rows differ in it
    custom: Mapping[str, tuple[str, ...]]  # attacks that bear a published protocol's name and are not it


def build_table(board: Loaded[BoardCard], workspace: Workspace, records: Mapping[str, Record]) -> Table:
    """The table of `records` (by entry), sorted by what survives the board's last attack at its first eps.

    Raises ProtocolMismatchError when records differ in their protocol, or belong to another board, model or defense.
    """
    card = board.card
    held = {entry.name: records[entry.name] for entry in card.entries if entry.name in records}
    require_one_protocol(held, card.precision)
    require_board(board, workspace, held)
    _require_entries(board, held)
    lanes = {attack: [lane.name for lane in workspace.lanes(attack, card.norm, board.shown)] for attack in card.attacks}
    ids = _protocol_ids(card, held)
    shown = columns(card, board.shown, lanes, list(ids))
    rows = [_row(entry, held.get(entry.name), shown) for entry in sorted(card.entries, key=_order(card, held))]
    first = next(iter(held.values()), None)
    return Table(
        board=board.name,
        card=card,
        columns=tuple(shown),
        rows=tuple(rows),
        samples=first.n if first else None,
        profile=first.protocol["profile"] if first else "full",
        protocol_ids=ids,
        custom=_custom(card, first),
    )


def _protocol_ids(card: BoardCard, held: Mapping[str, Record]) -> dict[str, str]:
    """The protocols of the records, by their precision."""
    found = {record.protocol["precision"]: record.protocol_id for record in held.values()}
    return {precision: found[precision] for precision in card.precision if precision in found}


def _custom(card: BoardCard, first: Record | None) -> dict[str, tuple[str, ...]]:
    if first is None or first.protocol["profile"] == "smoke":
        return {}
    return {attack: tuple(found) for attack in card.attacks if (found := first.custom(attack))}


def complete(record: Record) -> bool:
    """Whether every sample of the record was run."""
    return all(outcome.status is not Status.NOT_RUN for outcome in record.outcomes)


def _row(entry: Entry, record: Record | None, shown: list[Column]) -> Row:
    if record is None or not complete(record):
        cells = tuple(column.of_entry(entry) if column.of_entry else None for column in shown)
        return Row(entry.name, cells, NO_RECORD if record is None else INCOMPLETE)
    judged = {judgement.eps: judgement.reliability for judgement in record.judgements}
    cells = tuple(column.value(entry, record) for column in shown)
    return Row(entry.name, cells, reliability=judged, policy=record.policy)


def _order(card: BoardCard, held: Mapping[str, Record]) -> Any:
    """A sort key: robust accuracy, then clean accuracy, then name; entries without a complete record come last."""

    def key(entry: Entry) -> tuple[bool, float, float, str]:
        record = held.get(entry.name)
        if record is None or not complete(record):
            return (True, 0.0, 0.0, entry.name)
        return (False, -record.at(card.attacks[-1], card.eps[0]).robust_accuracy, -record.clean_accuracy, entry.name)

    return key


def _require_entries(board: Loaded[BoardCard], held: Mapping[str, Record]) -> None:
    """Raises ProtocolMismatchError when a record is of another model or defense than its entry's."""
    for entry in board.card.entries:
        said = held[entry.name].entry if entry.name in held else {}
        for name in ("model", "defense"):
            if name in said and said[name] != getattr(entry, name):
                raise ProtocolMismatchError(
                    f"the record of '{entry.name}' has the {name} '{said[name]}', {board.shown} says "
                    f"'{getattr(entry, name)}'; evaluate the entry again"
                )
