"""From a board's card and its records to a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robustbench_vit.boards.columns import BEST_KNOWN, RANK, Column, Kind, Measured, Value, columns
from robustbench_vit.boards.families import Family, families
from robustbench_vit.boards.flat import field_names, field_values
from robustbench_vit.boards.protocols import require_board, require_evidence, require_one_protocol
from robustbench_vit.boards.ranking import ranked
from robustbench_vit.cards import BoardCard, Entry, Loaded, Workspace
from robustbench_vit.errors import InputError, ProtocolMismatchError
from robustbench_vit.records import Record, Reliability

if TYPE_CHECKING:
    import pandas as pd

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
    rank: int | None = None  # None without a record, and where ranks mean nothing
    adaptive: tuple[str, ...] = ()  # attacks that ran on this entry beside the board's
    missing: tuple[str, ...] = ()  # adaptive attacks on the card that the record doesn't hold
    only_adaptive: Mapping[float, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # see Record; by eps


@dataclass(frozen=True)
class Table:
    """A board's rows, best first, with what they have in common."""

    board: str
    card: BoardCard
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    samples: int | None  # of each row, at most where rows stopped early; None without records
    profile: str  # 'full'; 'until': rows stopped early; or 'smoke': numbers that mean nothing
    protocol_ids: Mapping[str, str]  # by precision, in the card's order; one entry, but where rows differ in it
    custom: Mapping[str, tuple[str, ...]]  # attacks that bear a published protocol's name and are not it
    families: tuple[Family, ...] = ()  # recipes with several trainings
    half_width: float | None = None  # of the interval at which rows stopped; see docs/gate.md

    def custom_name(self, text: str) -> str | None:
        """The attack whose column's title or key this is, when it isn't what its name claims."""
        return next((n for n in self.custom if text == n or text.startswith((f"{n} ", f"{n}@", f"{n}:"))), None)

    def field_names(self) -> list[str]:
        """The names of a row's values, an interval being three; those of a custom attack start with `custom:`."""
        return [name for column in self.columns for name in self._fields(column)]

    def _fields(self, column: Column) -> list[str]:
        return [f"custom:{name}" if self.custom_name(name) else name for name in field_names(column)]

    def to_frame(self) -> pd.DataFrame:
        """A pandas row per entry, best first, under the same names as in the CSV; `rank` and `entry` are always there.

        Shares are fractions, and what has no record is missing (NaN or NA).
        """
        import pandas as pd

        rows = [field_values(row.cells, self.columns) for row in self.rows]
        frame = pd.DataFrame(rows, columns=self.field_names())
        types = {name: _DTYPES[column.kind] for column in self.columns for name in self._fields(column)}
        always = {RANK: [row.rank for row in self.rows], "entry": [row.entry for row in self.rows]}
        for place, name in enumerate(name for name in always if name not in types):
            frame.insert(place, name, always[name])
        return frame.astype({**types, RANK: _DTYPES[Kind.LABEL]})


_DTYPES = {
    Kind.TEXT: "object",
    Kind.LABEL: "Int64",
    Kind.COUNT: "Int64",
    Kind.SHARE: "float64",
    Kind.INTERVAL: "float64",
    Kind.MEAN: "float64",
    Kind.SECONDS: "float64",
}
"""How pandas holds the numbers; pandas' Int64 may be missing."""


def build_table(board: Loaded[BoardCard], workspace: Workspace, records: Mapping[str, Record]) -> Table:
    """The table of `records` (by entry), sorted by what survives the board's last attack at its first eps.

    Raises ProtocolMismatchError when records differ in their protocol, or belong to another board, model or defense,
    and InputError for columns that don't exist and levels outside (0, 1).
    """
    card = board.card
    _require_levels(board)
    held = {entry.name: records[entry.name] for entry in card.entries if entry.name in records}
    require_one_protocol(held, card.precision)
    require_board(board, workspace, held)
    require_evidence(board, workspace, held)
    _require_entries(board, held)
    first = next(iter(held.values()), None)
    profile = first.protocol["profile"] if first else "full"
    decisive = {name: r.at(card.attacks[-1], card.eps[0]) for name, r in held.items() if r.complete}
    ids = _protocol_ids(card, held)
    shown = columns(card, board.shown, _lanes(board, workspace), list(ids), profile)
    ranks = ranked(decisive, card.alpha) if profile == "full" else {}
    entries = sorted(card.entries, key=_order(decisive))
    return Table(
        board=board.name,
        card=card,
        columns=tuple(shown),
        rows=tuple(_row(entry, held.get(entry.name), entry.name in decisive, ranks, shown) for entry in entries),
        samples=_samples(first),
        profile=profile,
        half_width=first.protocol["until"]["half_width"] if first and profile == "until" else None,
        protocol_ids=ids,
        custom=_custom(card, held),
        families=families(card.entries, decisive, _best_known(card, held, decisive)) if profile == "full" else (),
    )


def _best_known(card: BoardCard, held: Mapping[str, Record], finished: Iterable[str]) -> dict[str, float] | None:
    """The share of best known robust samples by entry, at the first eps; None on boards that don't show it."""
    if not any(name.partition(":")[0] == BEST_KNOWN for name in card.columns):
        return None
    return {name: float(held[name].best_known(card.attacks[-1], card.eps[0]).mean()) for name in finished}


def _require_levels(board: Loaded[BoardCard]) -> None:
    for name in ("confidence", "alpha"):
        if not 0 < (value := getattr(board.card, name)) < 1:
            raise InputError(f"{board.shown}: {name} lies between 0 and 1, got {value:g}")


def _samples(first: Record | None) -> int | None:
    """How many samples each row has, or may have had before it stopped."""
    if first is None:
        return None
    return int(first.protocol["data"]["n"]) if first.protocol["profile"] == "until" else first.n


def _lanes(board: Loaded[BoardCard], workspace: Workspace) -> dict[str, list[str]]:
    """The names of the lanes of every attack."""
    card = board.card
    attacks = [*card.attacks, *card.adaptive]
    return {attack: [lane.name for lane in workspace.lanes(attack, card.norm, board.shown)] for attack in attacks}


def _protocol_ids(card: BoardCard, held: Mapping[str, Record]) -> dict[str, str]:
    """The protocols of the records, by their precision."""
    found = {record.protocol["precision"]: record.protocol_id for record in held.values()}
    return {precision: found[precision] for precision in card.precision if precision in found}


def _custom(card: BoardCard, held: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """The attacks that are not what their name claims, by the first record of each."""
    ran = {attack: record for record in reversed([*held.values()]) for attack in record.attacks}
    full = {attack: record for attack, record in ran.items() if record.protocol["profile"] != "smoke"}
    known = [attack for attack in (*card.attacks, *card.adaptive) if attack in full]
    return {attack: tuple(found) for attack in known if (found := full[attack].custom(attack))}


def _row(entry: Entry, record: Record | None, finished: bool, ranks: Mapping[str, int], shown: Sequence[Column]) -> Row:
    if record is None or not finished:
        cells = tuple(column.of_entry(entry) if column.of_entry else None for column in shown)
        return Row(entry.name, cells, NO_RECORD if record is None else INCOMPLETE)
    measured = Measured(entry, record, ranks.get(entry.name))
    return Row(
        entry=entry.name,
        cells=tuple(column.value(measured) for column in shown),
        reliability={judgement.eps: judgement.reliability for judgement in record.judgements},
        policy=record.policy,
        rank=measured.rank,
        adaptive=tuple(record.evidence),
        missing=missing_evidence(entry, record),
        only_adaptive={eps: record.only_adaptive(eps) for eps in record.protocol["eps"]} if record.evidence else {},
    )


def missing_evidence(entry: Entry, record: Record) -> tuple[str, ...]:
    """The entry's adaptive attacks that its record doesn't hold."""
    return tuple(attack for attack in entry.adaptive if attack not in record.evidence)


def _order(decisive: Mapping[str, Record]) -> Callable[[Entry], tuple[bool, float, float, str]]:
    """A sort key: robust accuracy, then clean accuracy, then name; entries without a complete record come last."""

    def key(entry: Entry) -> tuple[bool, float, float, str]:
        record = decisive.get(entry.name)
        if record is None:
            return (True, 0.0, 0.0, entry.name)
        return (False, -record.robust_accuracy, -record.clean_accuracy, entry.name)

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
