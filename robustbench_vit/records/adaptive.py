"""What is best known of a model: the worst case of the protocol's attacks and of the adaptive ones, sample by sample.

Adaptive attacks are aimed at one model and run on it alone. They are no part of the protocol, so rows are never ranked
by them; but a sample that one of them broke is not robust.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from robustbench_vit.records.record import Record


def best_known(record: Record, attack: str | None, eps: float | None) -> np.ndarray:
    """bool (n,), see `Record.best_known`."""
    floor = _at(record, attack, eps)
    return floor.robust & _standing(record, record.evidence, floor)


def only_adaptive(record: Record, eps: float | None) -> dict[str, tuple[str, ...]]:
    """See `Record.only_adaptive`."""
    floor = _at(record, None, eps)
    standing = _standing(record, record.protocol["attacks"], floor)
    fell = {name: standing & ~_standing(record, [name], floor) for name in record.evidence}
    by = {sample: tuple(name for name in fell if fell[name][i]) for i, sample in enumerate(floor.samples)}
    return {sample: names for sample, names in by.items() if names}


def _at(record: Record, attack: str | None, eps: float | None) -> Record:
    """The record narrowed to one attack, by default the protocol's last, and one eps, by default the first."""
    protocol = record.protocol
    attack = list(protocol["attacks"])[-1] if attack is None else attack
    return record.at(attack, protocol["eps"][0] if eps is None else eps, protocol.get("criterion"))


def _standing(record: Record, attacks: Iterable[str], floor: Record) -> np.ndarray:
    """bool (n,): whether a sample of `floor` is robust under each of these attacks, at its eps and by its criterion."""
    samples, ((_, eps),) = floor.samples, floor.budgets
    standing = np.ones(len(samples), bool)
    for name in attacks:
        found = record.at(name, eps, record.protocol.get("criterion"))
        robust = dict(zip(found.samples, found.robust.tolist(), strict=True))
        standing &= [robust[sample] for sample in samples]
    return standing
