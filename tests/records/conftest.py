"""Made-up rows, outcomes and records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robustbench_vit.records import Finding, Outcome, Record, Status
from robustbench_vit.records.rows import LaneSpec, RowKey, RowResult

LANES = [LaneSpec("first", "key-1", 1), LaneSpec("second", "key-2", 3)]


@pytest.fixture(scope="session")
def lanes() -> list[LaneSpec]:
    """Two lanes, of one and of three turns."""
    return LANES


@pytest.fixture(scope="session")
def row() -> Callable[..., RowResult]:
    """A retired row; one that found something has a distance and an image."""

    def make(lane: str, sample: str, turn: int, found: bool, forwards: int = 10, backwards: int = 3) -> RowResult:
        image = np.full((1, 2, 2), 0.5, np.float32).tobytes() if found else None
        return RowResult(
            RowKey(lane, 0.1, sample, turn), turn % 2, turn, found, 0.05 if found else None, forwards, backwards, image
        )

    return make


@pytest.fixture
def record() -> Record:
    """Six samples: one wrong, two broken by each of two lanes, one that stays; two radii."""
    protocol: dict[str, Any] = {
        "schema": 1,
        "eps": [0.1, 0.2],
        "attacks": {"cascade": {"version": 1, "lanes": [{"name": "first"}, {"name": "second"}]}},
    }
    base: dict[str, Any] = {"attack": "cascade", "norm": "linf", "criterion": "untargeted"}
    broken = {"status": Status.BROKEN, "restart": 0, "target": 3, "distance": 0.0625, "backwards": 4}
    outcomes = tuple(
        Outcome(sample=f"s{i}", eps=eps, **{**base, **what})
        for eps, last in ((0.1, {"status": Status.SURVIVED, "forwards": 99}), (0.2, {**broken, "by": "second"}))
        for i, what in enumerate(
            [
                {"status": Status.MISCLASSIFIED, "forwards": 1},
                {**broken, "by": "first", "forwards": 11},
                {**broken, "by": "first", "forwards": 12},
                {**broken, "by": "second", "k_of_m": (2, 5)},
                {**broken, "by": "second", "radius": 0.5},
                last,
            ]
        )
    )
    images = np.linspace(0, 1, 6 * 12, dtype=np.float32).reshape(6, 3, 2, 2)
    findings = (Finding("logits", "pass", "logits for 10 classes"), Finding("é", "warn", "…"))
    return Record(
        {"name": "made", "parameters": 12}, protocol, outcomes, findings, {"seconds": {"cascade": 1.5}}, images
    )
