"""The columns a board's card may name, and what each shows of a record.

entry, model, defense     what stands on the card
clean                     share classified correctly without an attack
ATTACK                    share that survives every lane of the attack
ATTACK:interval           the same with its interval
ATTACK:majority           of random models: share that most draws classify correctly, whatever the attack found
ATTACK:survivors          a column for each lane: samples still robust after it
ATTACK:forwards           model passes per sample, a mean over all samples
ATTACK:backwards
ATTACK:seconds            wall time of the attack
seconds                   wall time of all the board's attacks
parameters                of the model
policy                    A deterministic, B answers at random, C no useful gradient
precision                 in which adversarial images were searched; shown by itself where one isn't fp32
reliability               evidence that gradients are masked, under the last attack; the strongest of all eps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from robustbench_vit.cards import BoardCard, Entry
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cards.schema import PRECISIONS
from robustbench_vit.errors import InputError, nearest
from robustbench_vit.records import Evidence, Record


class Kind(StrEnum):
    """What a column's values are, and so how they are written."""

    TEXT = "text"
    SHARE = "share"  # in [0, 1]
    INTERVAL = "interval"  # an Estimate
    COUNT = "count"
    MEAN = "mean"
    SECONDS = "seconds"


@dataclass(frozen=True)
class Estimate:
    """A share with its interval."""

    value: float
    low: float
    high: float


Value = str | int | float | Estimate | None
"""A cell; None when there is nothing to show."""


@dataclass(frozen=True)
class Column:
    """A column of a table; `of_entry` columns need no record."""

    key: str
    title: str
    kind: Kind
    value: Callable[[Entry, Record], Value]
    of_entry: Callable[[Entry], str] | None = None


def _entry_column(key: str, of_entry: Callable[[Entry], str]) -> Column:
    return Column(key, key, Kind.TEXT, lambda entry, record: of_entry(entry), of_entry)


def _parameters(entry: Entry, record: Record) -> Value:
    return record.entry.get("parameters")


def _reliability(entry: Entry, record: Record) -> Value:
    found = [judgement.reliability for judgement in record.judgements]
    if not found:
        return "not assessed"
    worst = max(found, key=lambda reliability: list(Evidence).index(reliability.evidence))
    return worst.flag or "none"


_FIXED = {
    "entry": _entry_column("entry", lambda entry: entry.name),
    "model": _entry_column("model", lambda entry: entry.model),
    "defense": _entry_column("defense", lambda entry: entry.defense),
    "clean": Column("clean", "clean %", Kind.SHARE, lambda entry, record: record.clean_accuracy),
    "parameters": Column("parameters", "parameters", Kind.COUNT, _parameters),
    "policy": Column("policy", "policy", Kind.TEXT, lambda entry, record: record.policy),
    "precision": Column("precision", "precision", Kind.TEXT, lambda entry, record: record.protocol["precision"]),
    "reliability": Column("reliability", "masked gradients", Kind.TEXT, _reliability),
}
_PER_ATTACK = ("interval", "majority", "survivors", "forwards", "backwards", "seconds")


def column_names(attacks: Sequence[str]) -> list[str]:
    """Every column that a board with these attacks may name."""
    return [*_FIXED, "seconds", *(n for a in attacks for n in (a, *(f"{a}:{part}" for part in _PER_ATTACK)))]


def column_faults(card: BoardCard, where: str) -> list[str]:
    """A line for every column of the card that doesn't exist or stands twice."""
    known = column_names(card.attacks)
    faults = []
    for name in dict.fromkeys(card.columns):
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"
            faults.append(f"{where}: unknown column '{name}'; {hint}")
        elif card.columns.count(name) > 1:
            faults.append(f"{where}: column '{name}' stands twice")
    return faults


def columns(
    card: BoardCard, where: str, lanes: Mapping[str, Sequence[str]], precisions: Sequence[str] = ()
) -> list[Column]:
    """The card's columns in order; `lanes` names the lanes of each attack. Raises InputError for unknown columns.

    A table with a row whose adversarial images were searched in another one of `precisions` than fp32 shows them in a
    column, named on the card or not.
    """
    if faults := column_faults(card, where):
        raise InputError("\n".join(faults))
    names = list(card.columns)
    if "precision" not in names and any(precision != PRECISIONS[0] for precision in precisions):
        names.insert(1, "precision")
    return [column for name in names for column in _columns(name, card, lanes)]


def _columns(name: str, card: BoardCard, lanes: Mapping[str, Sequence[str]]) -> list[Column]:
    if name in _FIXED:
        return [_FIXED[name]]
    if name == "seconds":
        return [Column(name, name, Kind.SECONDS, lambda entry, record: _seconds(record, card.attacks))]
    attack, _, part = name.partition(":")
    if part == "seconds":
        return [Column(name, f"{attack} s", Kind.SECONDS, lambda entry, record: _seconds(record, [attack]))]
    several = len(card.eps) > 1
    return [
        column
        for eps in card.eps
        for column in _at(attack, part, eps, card, lanes[attack], f"@{show_number(eps)}" if several else "")
    ]


def _at(attack: str, part: str, eps: float, card: BoardCard, lanes: Sequence[str], suffix: str) -> list[Column]:
    """The columns of one attack at one eps; `suffix` tells budgets apart where a board has several."""
    key = f"{attack}{suffix}:{part}" if part else f"{attack}{suffix}"
    if part == "survivors":
        return [
            Column(
                f"{key}:{lane}",
                f"after {lane}{suffix}",
                Kind.COUNT,
                lambda entry, record, lane=lane: record.survivors(attack, eps).get(lane),  # a stand-in has others
            )
            for lane in lanes
        ]
    if part == "interval":

        def estimate(entry: Entry, record: Record) -> Value:
            chosen = record.at(attack, eps)
            return Estimate(chosen.robust_accuracy, *chosen.interval(card.confidence))

        return [Column(key, f"{attack}{suffix} % [{100 * card.confidence:g} %]", Kind.INTERVAL, estimate)]
    if part == "majority":

        def majority(entry: Entry, record: Record) -> Value:
            judged = "majority" in record.criteria
            return record.at(attack, eps, "majority").robust_accuracy if judged else None

        return [Column(key, f"{attack}{suffix} by majority %", Kind.SHARE, majority)]
    if part in ("forwards", "backwards"):
        return [Column(key, f"{part}{suffix}", Kind.MEAN, lambda entry, record: _mean(record.at(attack, eps), part))]
    return [Column(key, f"{key} %", Kind.SHARE, lambda entry, record: record.at(attack, eps).robust_accuracy)]


def _mean(record: Record, part: str) -> float:
    return sum(getattr(outcome, part) for outcome in record.outcomes) / len(record.outcomes)  # equal by any criterion


def _seconds(record: Record, attacks: Sequence[str]) -> Value:
    """Wall time of the attacks; None where the record doesn't say."""
    spent = record.provenance.get("seconds") or {}
    return float(sum(spent[a] for a in attacks)) if all(a in spent for a in attacks) else None
