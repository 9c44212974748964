"""Two records of an entry, side by side: whether they may be compared, and on which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustbench_vit.comparing.sources import Pair
from robustbench_vit.differences import Difference, differences
from robustbench_vit.errors import InputError, ProtocolMismatchError
from robustbench_vit.records import Record

OF_SAMPLES = ("n", "sample_ids_sha256")
"""What of a protocol's data may differ: which samples were taken of the same source."""


@dataclass(frozen=True)
class Paired:
    """One number of both sides on the samples they share, in the baseline's order."""

    samples: tuple[str, ...]
    robust: tuple[np.ndarray, np.ndarray]  # bool (n,), baseline and candidate
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    of: tuple[int, int]  # samples of each record


def deviations(baseline: Record, candidate: Record) -> list[Difference]:
    """In what the evaluation of two records differs, apart from which samples were taken.

    How intake had the models attacked counts too: under another policy other attacks ran.
    """
    return differences(_comparable(baseline), _comparable(candidate))


def _comparable(record: Record) -> dict[str, Any]:
    data = {key: value for key, value in record.protocol.get("data", {}).items() if key not in OF_SAMPLES}
    return {**record.protocol, "data": data, "policy": record.policy, "criteria": sorted(record.criteria)}


def require_one_protocol(pairs: Sequence[Pair], baseline: str, candidate: str) -> None:
    """Raises ProtocolMismatchError, naming the fields with both values, unless each pair was evaluated alike."""
    differing = [(pair, found) for pair in pairs if (found := deviations(pair.baseline, pair.candidate))]
    if not differing:
        return
    pair, found = differing[0]
    others = len(differing) - 1
    more = f", and so do those of {others} more {'entry' if others == 1 else 'entries'}" if others else ""
    lines = [f"the records of '{pair.entry}' in {baseline} and {candidate} cannot be compared; they differ{more}:"]
    lines += [f"  {difference}" for difference in found]
    if any(difference.place == "policy" for difference in found):
        lines.append("under another policy intake has other attacks run; see docs/intake.md")
    raise ProtocolMismatchError("\n".join(lines))


def paired(pair: Pair, attack: str, eps: float) -> Paired:
    """Both sides on the samples they share, by the protocol's criterion. Raises InputError when they share none."""
    criterion = pair.baseline.protocol.get("criterion")
    left, right = (record.at(attack, eps, criterion) for record in (pair.baseline, pair.candidate))
    ids, others = left.samples, right.samples
    place = {sample: i for i, sample in enumerate(others)}
    shared = [i for i, sample in enumerate(ids) if sample in place]
    if not shared:
        raise InputError(
            f"the records of '{pair.entry}' share no sample: {len(ids)} such as '{ids[0]}' in the baseline,"
            f" {len(others)} such as '{others[0]}' in the candidate"
        )
    there = [place[ids[i]] for i in shared]
    before, after = left.verdicts, right.verdicts
    return Paired(
        samples=tuple(ids[i] for i in shared),
        robust=(left.robust[shared], right.robust[there]),
        verdicts=(tuple(before[i] for i in shared), tuple(after[i] for i in there)),
        of=(len(ids), len(others)),
    )
