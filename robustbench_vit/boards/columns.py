"""The columns a board's card may name, and what each shows of a record.

rank                      1 + the number of rows significantly above, under the last attack and the first eps
entry, model, defense     what stands on the card
family, training_seed     of entries that are one recipe trained several times
clean                     share classified correctly without an attack
clean:interval            the same with its interval
ATTACK                    share that survives every lane of the attack
ATTACK:interval           the same with its interval
ATTACK:majority           of random models: share that most draws classify correctly, whatever the attack found
ATTACK:majority:interval  the same with its interval
ATTACK:survivors          a column for each lane: samples still robust after it
ATTACK:forwards           model passes per sample, a mean over all samples
ATTACK:backwards
ATTACK:seconds            wall time of the attack
best_known                share that survives the last attack and every adaptive attack of the row
best_known:interval       the same with its interval
only_adaptive             samples that fell to an adaptive attack of the row and to none of the board's
seconds                   wall time of all the board's attacks
n                         samples evaluated
parameters                of the model
policy                    A deterministic, B answers at random, C no useful gradient
precision                 in which adversarial images were searched; shown by itself where one isn't fp32
reliability               evidence that gradients are masked, under the last attack; the strongest of all eps

ATTACK is one of the board's, or an adaptive attack of some entries; other rows have nothing in its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from robustbench_vit.cards import BoardCard, Entry
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cards.schema import PRECISIONS
from robustbench_vit.errors import InputError, nearest
from robustbench_vit.records import Evidence, Record
from robustbench_vit.records.rows import MAJORITY


class Kind(StrEnum):
    """What a column's values are, and so how they are written."""

    TEXT = "text"
    LABEL = "label"  # an integer that names something
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
class Measured:
    """What the cells of a row are made from."""

    entry: Entry
    record: Record  # complete
    rank: int | None = None  # among the rows; None where ranks mean nothing


@dataclass(frozen=True)
class Column:
    """A column of a table; `of_entry` columns need no record."""

    key: str
    title: str
    kind: Kind
    value: Callable[[Measured], Value]
    of_entry: Callable[[Entry], Value] | None = None


def _entry_column(key: str, of_entry: Callable[[Entry], Value], kind: Kind = Kind.TEXT) -> Column:
    title = key.replace("_", " ")
    return Column(key, title, kind, lambda measured: of_entry(measured.entry), of_entry)


def _reliability(measured: Measured) -> Value:
    found = [judgement.reliability for judgement in measured.record.judgements]
    if not found:
        return "not assessed"
    worst = max(found, key=lambda reliability: list(Evidence).index(reliability.evidence))
    return worst.flag or "none"


RANK = "rank"
_FIXED = {
    RANK: Column(RANK, RANK, Kind.LABEL, lambda measured: measured.rank),
    "entry": _entry_column("entry", lambda entry: entry.name),
    "model": _entry_column("model", lambda entry: entry.model),
    "defense": _entry_column("defense", lambda entry: entry.defense),
    "family": _entry_column("family", lambda entry: entry.family),
    "training_seed": _entry_column("training_seed", lambda entry: entry.training_seed, Kind.LABEL),
    "clean": Column("clean", "clean %", Kind.SHARE, lambda measured: measured.record.clean_accuracy),
    "n": Column("n", "n", Kind.COUNT, lambda measured: measured.record.n),
    "parameters": Column("parameters", "parameters", Kind.COUNT, lambda m: m.record.entry.get("parameters")),
    "policy": Column("policy", "policy", Kind.TEXT, lambda measured: measured.record.policy),
    "precision": Column("precision", "precision", Kind.TEXT, lambda m: m.record.protocol["precision"]),
    "reliability": Column("reliability", "masked gradients", Kind.TEXT, _reliability),
}
BEST_KNOWN, ONLY_ADAPTIVE = "best_known", "only_adaptive"
_OF_THE_BOARD = ("clean:interval", "seconds", BEST_KNOWN, f"{BEST_KNOWN}:interval", ONLY_ADAPTIVE)
_PER_ATTACK = ("interval", "majority", "majority:interval", "survivors", "forwards", "backwards", "seconds")


def column_names(attacks: Sequence[str]) -> list[str]:
    """Every column that a board with these attacks, its own and adaptive ones, may name."""
    return [*_FIXED, *_OF_THE_BOARD, *(n for a in attacks for n in (a, *(f"{a}:{part}" for part in _PER_ATTACK)))]


def column_faults(card: BoardCard, where: str) -> list[str]:
    """A line for every column of the card that doesn't exist or stands twice."""
    known = column_names([*card.attacks, *card.adaptive])
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
    card: BoardCard,
    where: str,
    lanes: Mapping[str, Sequence[str]],
    precisions: Sequence[str] = (),
    profile: str = "full",
) -> list[Column]:
    """The card's columns in order; `lanes` names the lanes of each attack. Raises InputError for unknown columns.

    A table with a row whose adversarial images were searched in another one of `precisions` than fp32 shows them in a
    column, named on the card or not. Rows that stopped early (profile 'until') show their n and have no ranks.
    """
    if faults := column_faults(card, where):
        raise InputError("\n".join(faults))
    names = [name for name in card.columns if (name, profile) != (RANK, "until")]
    beside_entry = names.index("entry") + 1 if "entry" in names else 0
    if profile == "until" and "n" not in names:
        names.insert(beside_entry, "n")
    if "precision" not in names and any(precision != PRECISIONS[0] for precision in precisions):
        names.insert(beside_entry, "precision")
    return [column for name in names for column in _columns(name, card, lanes)]


def ranking_keys(card: BoardCard) -> tuple[str, str]:
    """The keys of the columns that show what rows are ranked by: the last attack at the first eps."""
    key = f"{card.attacks[-1]}{_suffix(card, card.eps[0])}"
    return key, f"{key}:interval"


def _suffix(card: BoardCard, eps: float) -> str:
    """Tells budgets apart where a board has several."""
    return f"@{show_number(eps)}" if len(card.eps) > 1 else ""


def _columns(name: str, card: BoardCard, lanes: Mapping[str, Sequence[str]]) -> list[Column]:
    if name in _FIXED:
        return [_FIXED[name]]
    if name == "seconds":
        return [Column(name, name, Kind.SECONDS, lambda measured: _seconds(measured.record, card.attacks))]
    if name == "clean:interval":
        return [Column(name, f"clean {_percent(card)}", Kind.INTERVAL, lambda measured: _clean(measured.record, card))]
    first, _, part = name.partition(":")
    if first == BEST_KNOWN:
        return [_best_known(part, eps, card) for eps in card.eps]
    if first == ONLY_ADAPTIVE:
        return [_only_adaptive(eps, card) for eps in card.eps]
    found = _of_attack(first, part, card, lanes)
    return [_where_it_ran(first, column) for column in found] if first in card.adaptive else found


def _of_attack(attack: str, part: str, card: BoardCard, lanes: Mapping[str, Sequence[str]]) -> list[Column]:
    if part == "seconds":
        key = f"{attack}:{part}"
        return [Column(key, f"{attack} s", Kind.SECONDS, lambda measured: _seconds(measured.record, [attack]))]
    if part == "survivors":
        return [column for eps in card.eps for column in _survivors(attack, eps, _suffix(card, eps), lanes[attack])]
    return [_at(attack, part, eps, card) for eps in card.eps]


def _where_it_ran(attack: str, column: Column) -> Column:
    """The column of an adaptive attack, empty for rows that it didn't run on."""
    return replace(column, value=lambda m: column.value(m) if attack in m.record.evidence else None)


def _best_known(part: str, eps: float, card: BoardCard) -> Column:
    suffix = _suffix(card, eps)
    key, title = f"{BEST_KNOWN}{suffix}", f"best known{suffix}"

    def estimate(measured: Measured) -> Estimate:
        record = measured.record
        robust = record.best_known(card.attacks[-1], eps)
        return Estimate(float(robust.mean()), *record.interval_of(robust, card.confidence, card.interval))

    if part:
        return Column(f"{key}:{part}", f"{title} {_percent(card)}", Kind.INTERVAL, estimate)
    return Column(key, f"{title} %", Kind.SHARE, lambda measured: estimate(measured).value)


def _only_adaptive(eps: float, card: BoardCard) -> Column:
    """Counts what the protocol alone would have called robust; nothing where no adaptive attack ran."""

    def count(measured: Measured) -> Value:
        return len(measured.record.only_adaptive(eps)) if measured.record.evidence else None

    suffix = _suffix(card, eps)
    return Column(f"{ONLY_ADAPTIVE}{suffix}", f"only adaptive{suffix}", Kind.COUNT, count)


def _percent(card: BoardCard) -> str:
    return f"% [{100 * card.confidence:g} %]"


def _clean(record: Record, card: BoardCard) -> Estimate:
    right = record.at(card.attacks[-1], card.eps[0]).correct
    return Estimate(record.clean_accuracy, *record.interval_of(right, card.confidence, card.interval))


def _survivors(attack: str, eps: float, suffix: str, lanes: Sequence[str]) -> list[Column]:
    """A column for each lane; a stand-in that ran in the attack's place has others, which are left empty."""

    def after(lane: str) -> Callable[[Measured], Value]:
        return lambda measured: measured.record.survivors(attack, eps).get(lane)

    return [
        Column(f"{attack}{suffix}:survivors:{lane}", f"after {lane}{suffix}", Kind.COUNT, after(lane)) for lane in lanes
    ]


def _at(attack: str, part: str, eps: float, card: BoardCard) -> Column:
    """The column of one attack at one eps."""
    suffix = _suffix(card, eps)
    name = f"{attack}{suffix}"
    key = f"{name}:{part}" if part else name
    if part in ("forwards", "backwards"):
        return Column(key, f"{part}{suffix}", Kind.MEAN, lambda measured: measured.record.at(attack, eps).mean(part))
    by_majority = part.startswith(MAJORITY)

    def chosen(record: Record) -> Record | None:
        if not by_majority:
            return record.at(attack, eps)
        return record.at(attack, eps, MAJORITY) if MAJORITY in record.criteria else None

    def share(measured: Measured) -> Value:
        found = chosen(measured.record)
        return None if found is None else found.robust_accuracy

    def estimate(measured: Measured) -> Value:
        found = chosen(measured.record)
        return found and Estimate(found.robust_accuracy, *found.interval(card.confidence, card.interval))

    title = f"{name} by majority" if by_majority else name
    if part.endswith("interval"):
        return Column(key, f"{title} {_percent(card)}", Kind.INTERVAL, estimate)
    return Column(key, f"{title} %", Kind.SHARE, share)


def _seconds(record: Record, attacks: Sequence[str]) -> Value:
    """Wall time of the attacks; None where the record doesn't say."""
    spent = record.provenance.get("seconds") or {}
    return float(sum(spent[a] for a in attacks)) if all(a in spent for a in attacks) else None
