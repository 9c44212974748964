"""What a reader must know of one compared number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustbench_vit.comparing.pairing import Paired
from robustbench_vit.comparing.sources import Pair
from robustbench_vit.differences import ABSENT, differences
from robustbench_vit.records import Evidence, Record

SETTINGS = ("model", "model_args", "defense", "defense_version", "normalise")
"""Of an entry: what besides its weights decides its answers."""
CIRCUMSTANCES = ("platform", "python", "packages", "git_commit", "git_dirty", "device", "seed", "compiled")
"""Of a record's provenance: what may change verdicts."""


def item_notes(pair: Pair, attack: str, eps: float, found: Paired) -> Iterator[str]:
    """Which samples were compared, why the same weights may have other verdicts, and what masks gradients.

    Of two equal protocols, so that what the baseline's says holds for both.
    """
    n, (before, after) = len(found.samples), found.of
    if n < max(before, after):
        yield f"compared on {n:,} shared samples, of {before:,} in the baseline and {after:,} in the candidate"
    if pair.baseline.protocol.get("profile") == "until":
        yield "both runs stopped as soon as their accuracy was known well enough; p and interval hold approximately"
    changed = sum(one != other for one, other in zip(*found.verdicts, strict=True))
    if changed and pair.equal_weights:
        yield (
            f"the weights are the same, yet {changed} {'verdict differs' if changed == 1 else 'verdicts differ'}:"
            f" the code, the settings or the hardware changed ({_circumstances(pair)})"
        )
    yield from _masking(pair, attack, eps)


def _circumstances(pair: Pair) -> str:
    """What besides the weights differs between two records, as far as they tell."""
    found = [*differences(*(_part(record.entry, SETTINGS) for record in (pair.baseline, pair.candidate)))]
    found += differences(*(_part(record.provenance, CIRCUMSTANCES) for record in (pair.baseline, pair.candidate)))
    return "; ".join(str(difference) for difference in found) or "the records name no difference"


def _part(values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name, ABSENT) is not ABSENT}


def _masking(pair: Pair, attack: str, eps: float) -> Iterator[str]:
    before, after = (_evidence(record, attack, eps) for record in (pair.baseline, pair.candidate))
    if after is not None and _level(after) > _level(before):
        was = f"{before} in the baseline" if before is not None else "the baseline was not looked into"
        yield (
            f"{after} evidence of masked gradients in the candidate ({was}): its robust accuracy may be too high,"
            " and the drop larger than it seems"
        )


def _evidence(record: Record, attack: str, eps: float) -> Evidence | None:
    judged = [j.reliability.evidence for j in record.judgements if (j.attack, j.eps) == (attack, eps)]
    return judged[0] if judged else None


def _level(evidence: Evidence | None) -> int:
    """0 for none, 1 for weak, 2 for strong; what wasn't looked into counts as none."""
    return 0 if evidence is None else list(Evidence).index(evidence)
