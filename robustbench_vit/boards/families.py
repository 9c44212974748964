"""How much trainings of one recipe differ: entries of a family were trained with different seeds.

The interval of a row is over the draw of the test samples. It says nothing about another training of the same recipe,
which is what the spread over a family shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from robustbench_vit.cards import Entry
from robustbench_vit.records import Record


@dataclass(frozen=True)
class Family:
    """What the trainings of one recipe gave; shares in [0, 1]."""

    name: str
    entries: tuple[str, ...]  # with complete records, by training seed
    training_seeds: tuple[int | None, ...]  # of these entries
    missing: int  # entries without a complete record
    clean: float  # mean over the trainings
    robust: float  # mean
    deviation: float  # standard deviation of the robust accuracy between trainings, with n - 1
    low: float  # the least robust training
    high: float
    best_known: float | None = None  # mean of the worst case with adaptive attacks; None where it isn't asked for


def families(
    entries: Iterable[Entry], records: Mapping[str, Record], best_known: Mapping[str, float] | None = None
) -> tuple[Family, ...]:
    """The families with at least two of `records` (by entry, narrowed to the ranking attack and eps), best first.

    `best_known` are the entries' shares of samples that adaptive attacks leave robust too, where they are to be shown.
    """
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.family is not None:
            members.setdefault(entry.family, []).append(entry)
    found = [_family(name, group, records, best_known) for name, group in members.items()]
    return tuple(sorted((f for f in found if f is not None), key=lambda f: (-f.robust, f.name)))


def _family(
    name: str, group: list[Entry], records: Mapping[str, Record], best_known: Mapping[str, float] | None
) -> Family | None:
    trained = sorted((e for e in group if e.name in records), key=lambda e: (e.training_seed or 0, e.name))
    if len(trained) < 2:
        return None
    robust = np.array([records[entry.name].robust_accuracy for entry in trained])
    return Family(
        name=name,
        entries=tuple(entry.name for entry in trained),
        training_seeds=tuple(entry.training_seed for entry in trained),
        missing=len(group) - len(trained),
        clean=float(np.mean([records[entry.name].clean_accuracy for entry in trained])),
        robust=float(robust.mean()),
        deviation=float(robust.std(ddof=1)),
        low=float(robust.min()),
        high=float(robust.max()),
        best_known=None if best_known is None else float(np.mean([best_known[entry.name] for entry in trained])),
    )
