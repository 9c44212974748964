"""What the names starting with `autoattack` mean is frozen, equals the published protocols, and cannot be borrowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_vit.cards import CascadeCard, Loaded, Workspace
from robustbench_vit.cards.frozen import frozen_protocols
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.plan import resolve_attack

NORMS = ("linf", "l2", "l1")
PUBLISHED = {
    "autoattack": {
        "linf": [("ce", 1, 0), ("dlr-targeted", 1, 9), ("fab", None, 9), ("square", 1, None)],
        "l2": [("ce", 1, 0), ("dlr-targeted", 1, 9), ("fab", None, 9), ("square", 1, None)],
        "l1": [("ce", 5, 0), ("dlr-targeted", 1, 5), ("fab", None, 9), ("square", 1, None)],
    },
    "autoattack-plus": {
        norm: [
            ("ce", 5, 0),
            ("dlr", 5, 0),
            ("fab", 5, 0),
            ("square", 1, None),
            ("dlr-targeted", 1, 9),
            ("fab", None, 9),
        ]
        for norm in NORMS
    },
    "autoattack-rand": {norm: [("ce", 1, 0), ("dlr", 1, 0)] for norm in NORMS},
}
"""Loss (or algorithm), restarts and targets of every lane; None where it doesn't matter."""


@pytest.fixture
def workspace() -> Workspace:
    return Workspace((builtin_layer(),))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_frozen_protocol_is_the_published_one(name: str, norm: str) -> None:
    lanes = frozen_protocols()[name][norm]
    assert len(lanes) == len(PUBLISHED[name][norm])
    for lane, (what, restarts, targets) in zip(lanes, PUBLISHED[name][norm], strict=True):
        assert lane.get("loss", lane["algorithm"]) == what
        assert restarts is None or lane["restarts"] == restarts
        assert targets is None or lane["targets"] == targets
        assert lane.get("steps", 100) == 100
        assert lane.get("queries", 5000) == 5000
        assert lane.get("draws", 1) == (20 if name == "autoattack-rand" else 1)


def test_in_l1_the_standard_version_starts_in_larger_balls_and_the_others_do_not() -> None:
    for name, radii in (("autoattack", [3, 2, 1]), ("autoattack-plus", [1]), ("autoattack-rand", [1])):
        lanes = [lane for lane in frozen_protocols()[name]["l1"] if "radii" in lane]
        assert lanes
        assert all(lane["radii"] == radii for lane in lanes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_built_in_cards_are_the_frozen_ones(workspace: Workspace, name: str, norm: str) -> None:
    assert "custom" not in resolve_attack(workspace, name, norm)


def cascade(*lanes: str) -> CascadeCard:
    return CascadeCard.model_validate({"version": 1, "about": "x", "reference": "x", "lanes": list(lanes)})


def resolved(workspace: Workspace, name: str, card: CascadeCard, norm: str = "linf") -> dict:
    return resolve_attack(workspace.with_attack(Loaded(name, Path("x"), "x", card)), name, norm)


def test_a_shorter_cascade_may_not_call_itself_autoattack(workspace: Workspace) -> None:
    found = resolved(workspace, "autoattack-fast", cascade("apgd-ce", "apgd-t"))
    assert found["custom"] == ["autoattack has 4 lanes, this has 2"]


def test_other_settings_are_named(workspace: Workspace) -> None:
    found = resolved(workspace, "autoattack", cascade("apgd-dlr", "apgd-t", "fab-t", "square"))
    assert found["custom"] == ['lanes.0.loss: "ce" in autoattack, "dlr" here']


def test_a_smoke_profile_is_not_the_protocol(workspace: Workspace) -> None:
    found = resolve_attack(workspace, "autoattack", "linf", smoke=True)["custom"]
    assert "lanes.3.queries: 5000 in autoattack, 40 here" in found


def test_the_same_lanes_under_a_longer_name_are_the_protocol(workspace: Workspace) -> None:
    same = cascade("apgd-ce", "apgd-t", "fab-t", "square")
    assert "custom" not in resolved(workspace, "autoattack-again", same)
    assert resolved(workspace, "autoattack-again", same, norm="l1")["custom"]


def test_other_names_claim_nothing(workspace: Workspace) -> None:
    assert "custom" not in resolved(workspace, "mine", cascade("apgd-ce"))
