"""Whether a fresh record says the same as the committed one."""

from __future__ import annotations

from collections.abc import Mapping

from robustbench_vit.cards import BoardCard, Loaded
from robustbench_vit.errors import InputError
from robustbench_vit.records import Record
from robustbench_vit.records.record import same_verdicts


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
    if fresh.outcomes == committed.outcomes:
        return "equals the committed record"
    differing = same_verdicts(fresh.outcomes, committed.outcomes)
    if not differing:
        return "equals the committed record in every verdict (passes or distances differ)"
    parts = [f"{attack}: {len(samples)} of {fresh.n}" for attack, samples in differing.items()]
    return f"differs from the committed record in the verdicts of {', '.join(parts)} samples"
