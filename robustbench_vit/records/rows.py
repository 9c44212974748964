"""Retired rows, and the outcomes they amount to.

The journal keeps rows; outcomes are a view of them. A row depends on the model, the sample, the lane's card and the
seed, never on the cascade it ran in, so attacks that share a lane share its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustbench_vit.records.outcome import Outcome, Status


@dataclass(frozen=True)
class CleanResult:
    """The answer to a clean image."""

    sample: str
    correct: bool
    logits: bytes  # float32 (classes,)


@dataclass(frozen=True)
class RowKey:
    """What identifies a row among all rows of a model under one seed."""

    lane: str  # hash of the lane's card, see plan.LanePlan.key
    eps: float
    sample: str
    turn: int  # place among the sample's rows of this lane: target rank first, then restart


@dataclass(frozen=True)
class RowResult:
    """A retired row."""

    key: RowKey
    restart: int
    target: int | None  # the class aimed at
    found: bool  # with a verified adversarial example
    distance: float | None
    forwards: int
    backwards: int
    image: bytes | None = None  # float32 (c, h, w), only when found


@dataclass(frozen=True)
class LaneSpec:
    """What outcomes need to know of a lane."""

    name: str
    key: str
    turns: int


def credited(
    lane: LaneSpec, eps: float, sample: str, rows: Mapping[RowKey, RowResult]
) -> tuple[list[RowResult], bool | None]:
    """The rows of a sample in one lane that count, and whether they decide it.

    Rows count in the order of their turns up to the first success, exactly as if they had run one after another,
    whatever order they ran in. The second value is True when broken, False when every turn failed, None when open.
    """
    counted: list[RowResult] = []
    for turn in range(lane.turns):
        row = rows.get(RowKey(lane.key, eps, sample, turn))
        if row is None:
            return counted, None
        counted.append(row)
        if row.found:
            return counted, True
    return counted, False


def outcome(
    attack: str,
    norm: str,
    lanes: Sequence[LaneSpec],
    eps: float,
    clean: CleanResult,
    rows: Mapping[RowKey, RowResult],
) -> Outcome:
    """What `rows` say about one sample under a cascade of `lanes`."""
    base = {"sample": clean.sample, "attack": attack, "norm": norm, "eps": eps, "criterion": "untargeted"}
    if not clean.correct:
        return Outcome(**base, status=Status.MISCLASSIFIED, forwards=1)
    forwards, backwards = 1, 0
    for lane in lanes:
        counted, broken = credited(lane, eps, clean.sample, rows)
        forwards += sum(row.forwards for row in counted)
        backwards += sum(row.backwards for row in counted)
        if broken is None:
            return Outcome(**base, status=Status.NOT_RUN, forwards=forwards, backwards=backwards)
        if broken:
            hit = counted[-1]
            return Outcome(
                **base,
                status=Status.BROKEN,
                by=lane.name,
                restart=hit.restart,
                target=hit.target,
                distance=hit.distance,
                forwards=forwards,
                backwards=backwards,
            )
    return Outcome(**base, status=Status.SURVIVED, forwards=forwards, backwards=backwards)


def breaking_row(
    lanes: Sequence[LaneSpec], eps: float, sample: str, rows: Mapping[RowKey, RowResult]
) -> RowResult | None:
    """The row that broke the sample, or None."""
    for lane in lanes:
        counted, broken = credited(lane, eps, sample, rows)
        if broken:
            return counted[-1]
        if broken is None:
            return None
    return None
