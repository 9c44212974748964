"""Which records may share a table: those whose protocols are equal, but for precisions that the board admits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_vit.cards import BoardCard, Loaded, Workspace
from robustbench_vit.cards.schema import DataChoice
from robustbench_vit.differences import ABSENT, differences
from robustbench_vit.errors import ProtocolMismatchError
from robustbench_vit.plan import resolve_attack
from robustbench_vit.records import Record


def require_one_protocol(records: Mapping[str, Record], precisions: Sequence[str]) -> None:
    """Raises ProtocolMismatchError, naming every differing field with both values, unless all protocols are equal.

    Records of different `precisions` count as equal where both are named here.
    """
    names = list(records)
    for name in names[1:]:
        _require_equal(
            f"the records of '{names[0]}' and '{name}' may not share a table; their protocols differ",
            _but_admitted(records[names[0]].protocol, precisions),
            _but_admitted(records[name].protocol, precisions),
        )


def _but_admitted(protocol: Mapping[str, Any], precisions: Sequence[str]) -> dict[str, Any]:
    """The protocol, with all admitted precisions as one where there are several."""
    several = len(precisions) > 1 and protocol.get("precision") in precisions
    return {**protocol, "precision": list(precisions)} if several else dict(protocol)


def require_board(board: Loaded[BoardCard], workspace: Workspace, records: Mapping[str, Record]) -> None:
    """Raises ProtocolMismatchError unless every record was made for this board as its card stands now.

    The number of samples is not compared (a trial run takes fewer; tables say how many), and neither are the attacks'
    settings in a smoke profile, which shortens them.
    """
    for_profile: dict[bool, dict[str, Any]] = {}
    for name, record in records.items():
        settings = record.protocol.get("profile") != "smoke"
        if settings not in for_profile:  # resolving attacks reads their cards
            for_profile[settings] = _expected(board.card, workspace, board.shown, settings)
        expected = for_profile[settings]
        _require_equal(
            f"{board.shown} and the record of '{name}' do not belong together; they differ",
            _but_admitted(expected, board.card.precision),
            _comparable(_but_admitted(record.protocol, board.card.precision), expected),
        )


def require_evidence(board: Loaded[BoardCard], workspace: Workspace, records: Mapping[str, Record]) -> None:
    """Raises ProtocolMismatchError unless the adaptive attacks of every entry ran with the settings of their cards now.

    Attacks that the entry's card doesn't name any more are not compared, and neither are smoke profiles.
    """
    card = board.card
    resolved = {name: resolve_attack(workspace, name, card.norm, board.shown) for name in card.adaptive}
    for entry in card.entries:
        record = records.get(entry.name)
        if record is None or record.protocol.get("profile") == "smoke":
            continue
        for name in (name for name in entry.adaptive if name in record.evidence):
            ran = {key: value for key, value in record.evidence[name].items() if key != "algorithm_versions"}
            _require_equal(
                f"attack '{name}' is not what it was for the record of '{entry.name}', so that its numbers would be"
                " called what they aren't; run the board again. They differ",
                resolved[name],
                ran,
            )


def _expected(card: BoardCard, workspace: Workspace, where: str, settings: bool) -> dict[str, Any]:
    """What of a protocol a board's card decides."""
    attacks = {name: resolve_attack(workspace, name, card.norm, where) if settings else {} for name in card.attacks}
    return {
        "norm": card.norm,
        "eps": list(card.eps),
        "precision": card.precision[0],
        "data": _expected_data(card.data),
        "attacks": attacks,
    }


def _expected_data(choice: DataChoice) -> dict[str, str]:
    """How protocols name the samples; a user's arrays have their file's name for a split."""
    if choice.name.endswith(".npz"):
        return {"name": "npz", "split": Path(choice.name).name}
    return {"name": choice.name, "split": choice.split}


def _comparable(protocol: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record's protocol that stands against `expected`."""
    part = {key: protocol.get(key, ABSENT) for key in expected}
    if card_like := protocol.get("data"):
        part["data"] = {key: card_like.get(key, ABSENT) for key in expected["data"]}
    attacks = protocol.get("attacks", {})
    part["attacks"] = {name: attacks[name] if expected["attacks"].get(name, True) else {} for name in attacks}
    return part


def _require_equal(message: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    if found := differences(left, right):
        lines = [f"{message}:", *(f"  {difference}" for difference in found)]
        if any(difference.place == "precision" for difference in found):
            lines.append("rows of several precisions share a table when the board's card lists them all")
        raise ProtocolMismatchError("\n".join(lines))
