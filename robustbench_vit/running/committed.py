"""Whether a fresh record says the same as the committed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from robustbench_vit.cards import BoardCard, Loaded
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record
from robustbench_vit.records.outcomes import same_verdicts


def compare_with_committed(board: Loaded[BoardCard], records: Mapping[str, Record]) -> dict[str, str]:
    """For every record one line: equal to the committed one, or how it differs."""
    folder = board.path.parent / board.name / "records"
    lines = {}
    for name, fresh in records.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            lines[name] = "no committed record"
            continue
        try:
            lines[name] = _difference(fresh, Record.load(path))
        except InputError as error:
            lines[name] = f"the committed record cannot be read: {error}"
    return lines


def _difference(fresh: Record, committed: Record) -> str:
    if fresh.entry.get("weights_sha256") != committed.entry.get("weights_sha256"):
        return "other weights than the committed record's"
    if fresh.protocol_id != committed.protocol_id:
        return f"other protocol than the committed record's ({fresh.protocol_id}, committed {committed.protocol_id})"
    other = [name for name in {**fresh.evidence, **committed.evidence} if not _same(name, fresh, committed)]
    apart = f"; other adaptive attacks: {', '.join(other)}" if other else ""
    return _compared(_without(other, fresh), _without(other, committed)) + apart


def _same(adaptive: str, fresh: Record, committed: Record) -> bool:
    """Whether both records hold this adaptive attack with the same settings."""
    return fresh.evidence.get(adaptive) == committed.evidence.get(adaptive)


def _without(adaptive: Sequence[str], record: Record) -> Record:
    """The record without these adaptive attacks."""
    kept = tuple(outcome for outcome in record.outcomes if outcome.attack not in adaptive)
    return replace(record, outcomes=kept) if adaptive else record


def _compared(fresh: Record, committed: Record) -> str:
    if fresh.outcomes == committed.outcomes:
        return "equals the committed record"
    differing = same_verdicts(fresh.outcomes, committed.outcomes)
    if not differing:
        return "equals the committed record in every verdict (passes or distances differ)"
    parts = [f"{attack}: {len(samples)} of {fresh.n}" for attack, samples in differing.items()]
    return f"differs from the committed record in the verdicts of {', '.join(parts)} samples"
