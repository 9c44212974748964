"""Made-up records, one letter per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.comparing.sources import Source
from robustbench_vit.records import Outcome, Record, Status

COMMITTED = builtin_layer() / "leaderboards" / "digits-linf" / "records"
STATUS = {"r": Status.SURVIVED, "b": Status.BROKEN, "m": Status.MISCLASSIFIED, "x": Status.NOT_RUN}


def make_record(
    letters: str,
    name: str = "net",
    weights: str | None = "aa",
    attacks: Sequence[str] = ("cascade",),
    eps: Sequence[float] = (0.1,),
    first: int = 0,
    protocol: Mapping[str, Any] | None = None,
    by: str = "lane",
    **over: Any,
) -> Record:
    """A record with a sample per letter: r robust, b broken, m misclassified, x not run; the same for every attack."""
    ids = [f"made:{first + i}" for i in range(len(letters))]
    outcomes = tuple(
        Outcome(sample, attack, "linf", radius, "untargeted", STATUS[letter], by=by if letter == "b" else None)
        for radius in eps
        for attack in attacks
        for sample, letter in zip(ids, letters, strict=True)
    )
    asked = {
        "schema": 1,
        "profile": "full",
        "criterion": "untargeted",
        "norm": "linf",
        "eps": list(eps),
        "precision": "fp32",
        "attacks": {attack: {"version": 1, "lanes": [{"name": "lane", "steps": 10}]} for attack in attacks},
        "data": {"name": "made", "n": len(ids), "sample_ids_sha256": f"{first}+{len(ids)}", "source_sha256": "s"},
        **(protocol or {}),
    }
    entry = {"name": name, "model": "net", **({} if weights is None else {"weights_sha256": weights})}
    return Record(entry, asked, outcomes, over.pop("findings", ()), over.pop("provenance", {}), **over)


def letters(lost: int, gained: int, n: int) -> tuple[str, str]:
    """Verdicts of a baseline and a candidate that flip so often; half of the rest are robust."""
    same = ("rb" * n)[: n - lost - gained]
    return "r" * lost + "b" * gained + same, "b" * lost + "r" * gained + same


def source(*records: Record, name: str = "somewhere") -> Source:
    """A folder with these records."""
    return Source(name, Path("no/such/file"), {str(record.entry["name"]): record for record in records})


def write(folder: Path, *records: Record) -> Path:
    """Saves each record as ENTRY.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        record.save(folder / f"{record.entry['name']}.json")
    return folder
