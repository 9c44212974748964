"""The outcomes of a record, held by column: what tables ask for is counted without an object per sample."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import attrgetter
from types import NoneType
from typing import Any, overload

import numpy as np

from robustbench_vit.records.columns import Coded, Index, Numbers, first_seen
from robustbench_vit.records.outcome import ROBUST, Outcome, Status, verdict

_FIELDS = {field.name: field for field in dataclasses.fields(Outcome)}
_NUMBERS = {"distance": np.float64, "radius": np.float64, "forwards": np.int64, "backwards": np.int64}
_TYPES: dict[str, tuple[type, ...]] = {
    "eps": (Real,),
    "by": (str, NoneType),
    "restart": (int, NoneType),
    "target": (int, NoneType),
    "k_of_m": (tuple, NoneType),
}
"""What the values of coded columns are; str where nothing is said."""


@dataclass(frozen=True, eq=False, repr=False)
class Outcomes(Sequence[Outcome]):
    """A sequence of outcomes with a column for each of their fields.

    An `Outcome` is made when it is asked for. Equal to a tuple, or other outcomes, of the same content.
    """

    sample: Coded
    attack: Coded
    norm: Coded
    eps: Coded
    criterion: Coded
    status: Coded
    by: Coded
    restart: Coded
    target: Coded
    distance: Numbers
    radius: Numbers
    k_of_m: Coded
    forwards: Numbers
    backwards: Numbers

    @staticmethod
    def of(outcomes: Iterable[Outcome]) -> Outcomes:
        """The outcomes by column. Raises TypeError for anything else, and for values of other types than theirs."""
        if isinstance(outcomes, Outcomes):
            return outcomes
        rows = tuple(outcomes)
        if odd := [row for row in rows if not isinstance(row, Outcome)]:
            raise TypeError(f"an Outcome is expected, not {odd[0]!r}")
        return Outcomes(**{name: _column(name, [*map(attrgetter(name), rows)]) for name in _FIELDS})

    @staticmethod
    def unfolded(raw: Mapping[str, Any]) -> Outcomes:
        """What `folded` gave, read from JSON; KeyError, TypeError, ValueError or IndexError say that it is damaged."""
        n, same, each = raw["n"], raw["same"], raw["each"]
        if unknown := sorted({*same, *each} - {*_FIELDS}):
            raise TypeError(f"outcomes have no field '{unknown[0]}'")
        columns = {}
        for name, field in _FIELDS.items():
            if name in each:
                columns[name] = _read(name, each[name], n)
            elif name in same or field.default is not dataclasses.MISSING:
                columns[name] = _read(name, [same.get(name, field.default)], 1).take(np.zeros(n, np.intp))
            else:
                raise TypeError(f"the outcomes have no '{name}'")
        return Outcomes(**columns)

    def folded(self) -> dict[str, Any]:
        """JSON values: {"n": …, "same": fields that are equal for all, "each": lists of the others}."""
        same = [name for name, column in self._columns() if len(self) and column.constant()]
        return {
            "n": len(self),
            "same": {name: column[0] for name, column in self._columns() if name in same},
            "each": {name: column.tolist() for name, column in self._columns() if name not in same},
        }

    def _columns(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in _FIELDS)

    def lists(self) -> dict[str, list[Any]]:
        """Every field's values."""
        return {name: column.tolist() for name, column in self._columns()}

    def __len__(self) -> int:
        return len(self.sample)

    def __iter__(self) -> Iterator[Outcome]:
        return map(Outcome, *self.lists().values())

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Outcomes: ...
    def __getitem__(self, index: int | slice) -> Outcome | Outcomes:
        if isinstance(index, slice):
            return self.take(index)
        return Outcome(*(column[index] for _, column in self._columns()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Outcomes):
            return all(column.equals(getattr(other, name)) for name, column in self._columns())
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __repr__(self) -> str:
        return f"<{len(self)} outcomes: {', '.join(f'{attack} at {eps:g}' for attack, eps in self.budgets())}>"

    def take(self, index: Index) -> Outcomes:
        """These outcomes: where the mask says so, at the positions, or a slice."""
        return Outcomes(**{name: column.take(index) for name, column in self._columns()})

    def where(self, **fields: Any) -> Outcomes:
        """The outcomes whose fields have these values."""
        kept = np.ones(len(self), bool)
        for name, value in fields.items():
            kept &= getattr(self, name).among(value)
        return self if kept.all() else self.take(kept)

    def budgets(self) -> list[tuple[str, float]]:
        """Every pair of an attack and an eps that outcomes have, in the order in which they first appear."""
        attacks, radii = self.attack.vocabulary, self.eps.vocabulary
        pairs = first_seen(self.attack.codes.astype(np.int64) * len(radii) + self.eps.codes)
        return [(attacks[pair // len(radii)], radii[pair % len(radii)]) for pair in pairs]

    @property
    def robust(self) -> np.ndarray:
        """bool (n,): whether the sample counts as robustly classified."""
        return self.status.among(*ROBUST)

    @property
    def verdicts(self) -> list[str]:
        """The verdict of every outcome, see `Outcome.verdict`."""
        by = self.by.vocabulary
        words = [verdict(status, lane) for status in self.status.vocabulary for lane in by]
        codes = self.status.codes.astype(np.int64) * len(by) + self.by.codes
        return [*map(words.__getitem__, codes.tolist())]


def _read(name: str, values: Any, n: int) -> Any:
    """A column from JSON values, of which there are n."""
    if not isinstance(values, list):
        raise TypeError(f"'{name}' is no list")
    if len(values) != n:
        raise IndexError(f"'{name}' has {len(values)} values for {n} outcomes")
    if name == "sample":
        values = [*map(sys.intern, values)]  # records of one board share their samples
    elif name == "k_of_m":
        values = [tuple(pair) if pair else None for pair in values]
    return _column(name, values)


def _column(name: str, values: list[Any]) -> Any:
    """The column of these values. Raises TypeError, naming the field, for one that isn't of the field's type."""
    try:
        if name in _NUMBERS:
            return Numbers.of(values, _NUMBERS[name])
        column = Coded.of(values)
    except TypeError as error:
        raise TypeError(f"'{name}': {error}") from error
    if name == "status":
        return column.mapped(Status)
    for found in set(map(type, column.vocabulary)):
        if not issubclass(found, _TYPES.get(name, (str,))) or found is bool:
            raise TypeError(f"'{name}' may be no {found.__name__}")
    return column


def same_verdicts(a: Iterable[Outcome], b: Iterable[Outcome]) -> dict[str, list[str]]:
    """Per attack, the samples whose verdict differs between two sets of outcomes (missing ones differ)."""

    def by_key(outcomes: Outcomes) -> dict[tuple[str, float, str, str], str]:
        held = (outcomes.attack, outcomes.eps, outcomes.criterion, outcomes.sample)
        return dict(zip(zip(*(column.tolist() for column in held), strict=True), outcomes.verdicts, strict=True))

    left, right = by_key(Outcomes.of(a)), by_key(Outcomes.of(b))
    differing: dict[str, list[str]] = {}
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            attack, _, _, sample = key
            differing.setdefault(attack, []).append(sample)
    return differing
