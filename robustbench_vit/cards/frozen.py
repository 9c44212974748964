"""The published protocols that names starting with `autoattack` stand for, frozen, and how a card deviates from one.

frozen.json holds, per protocol and norm, the algorithm and the settings of every lane (arXiv:2003.01690; in l1
arXiv:2103.01208). Cards may be edited; what the names mean may not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustbench_vit.differences import differences


@lru_cache(maxsize=1)
def frozen_protocols() -> Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]:
    """Lanes of every published protocol: {name: {norm: [settings]}}."""
    return json.loads(Path(__file__).with_name("frozen.json").read_text(encoding="utf-8"))


STAND_INS = {"B": "autoattack-rand", "C": "black-box"}
"""What runs in the place of a published protocol under another policy."""


def deviations(
    name: str, norm: str, lanes: Sequence[Mapping[str, Any]], stand_ins: Mapping[str, str] | None = None
) -> list[str]:
    """The fields in which an attack that bears the name of a published protocol differs from it.

    Empty when it is that protocol, or when its name claims nothing. `lanes` are resolved (see `resolved`).
    """
    claimed = max((known for known in frozen_protocols() if name.lower().startswith(known)), key=len, default=None)
    if claimed is None:
        return []
    published = frozen_protocols()[claimed].get(norm)
    if published is None:
        return [f"{claimed} is not defined in {norm}"]
    own = [_settings(lane) for lane in lanes]
    if len(own) != len(published):
        return [f"{claimed} has {len(published)} lanes, this has {len(own)}"]
    differing = [
        f"lanes.{d.place}: {_shown(d.left)} in {claimed}, {_shown(d.right)} here" for d in _each(published, own)
    ]
    others = {policy: card for policy, card in (stand_ins or {}).items() if card != STAND_INS[policy]}
    return differing + [f"stand_ins.{p}: {STAND_INS[p]} in {claimed}, {card} here" for p, card in others.items()]


def _each(published: Sequence[Any], own: Sequence[Any]) -> list[Any]:
    left, right = ({str(i): lane for i, lane in enumerate(lanes)} for lanes in (published, own))
    return differences(left, right)


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (str, int, float, bool, list, dict)) else "absent"


def _settings(lane: Mapping[str, Any]) -> dict[str, Any]:
    """Of a resolved lane what the published protocol fixes: not the card's name and version."""
    return {key: value for key, value in lane.items() if key not in ("name", "version")}
