"""Retired rows, and the outcomes they amount to.

The journal keeps rows; outcomes are a view of them. A row depends on the model, the sample, the lane's card and the
seed, never on the cascade it ran in, so attacks that share a lane share its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vit.records.outcome import Outcome, Status

UNTARGETED = "untargeted"
"""Broken when the answer to a verified image is another class; of a random model, when one draw is."""
MAJORITY = "majority"
"""Of a random model: broken when more than half of the draws are another class."""


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
    image: bytes | None = None  # float32 (c, h, w), only when found (or, of a random model, wrong in some draws)
    wrong_draws: int | None = None  # of a random model: of the draws the image was asked about, how many were wrong

    def broke(self, criterion: str) -> bool:
        """Whether the row counts as a success: verified, or by one wrong draw of a random model."""
        return self.found or (criterion == UNTARGETED and bool(self.wrong_draws))


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
    criterion: str = UNTARGETED,
    draws: int = 1,
) -> Outcome:
    """What `rows` say about one sample under a cascade of `lanes`; `draws` > 1 says that the model answers at random.

    Passes are those of the whole run, whichever criterion is asked about.
    """
    base = {"sample": clean.sample, "attack": attack, "norm": norm, "eps": eps, "criterion": criterion}
    if not clean.correct:
        return Outcome(**base, status=Status.MISCLASSIFIED, forwards=draws)
    ran, done = _ran(lanes, eps, clean.sample, rows)
    spent: dict[str, Any] = {
        "forwards": draws + sum(row.forwards for _, row in ran),
        "backwards": sum(row.backwards for _, row in ran),
    }
    if not done:
        return Outcome(**base, status=Status.NOT_RUN, **spent)
    lane, hit = next(((lane, row) for lane, row in ran if row.broke(criterion)), (None, None))
    if lane is None or hit is None:
        return Outcome(**base, status=Status.SURVIVED, **spent)
    return Outcome(
        **base,
        status=Status.BROKEN,
        by=lane.name,
        restart=hit.restart,
        target=hit.target,
        distance=hit.distance,
        k_of_m=None if hit.wrong_draws is None else (hit.wrong_draws, draws),
        **spent,
    )


def _ran(
    lanes: Sequence[LaneSpec], eps: float, sample: str, rows: Mapping[RowKey, RowResult]
) -> tuple[list[tuple[LaneSpec, RowResult]], bool]:
    """The rows of a sample that count, lane after lane, and whether nothing is left to run."""
    ran: list[tuple[LaneSpec, RowResult]] = []
    for lane in lanes:
        counted, broken = credited(lane, eps, sample, rows)
        ran += [(lane, row) for row in counted]
        if broken is not False:
            return ran, broken is True
    return ran, True


def breaking_row(
    lanes: Sequence[LaneSpec], eps: float, sample: str, rows: Mapping[RowKey, RowResult]
) -> RowResult | None:
    """The first row that broke the sample, or None."""
    ran, done = _ran(lanes, eps, sample, rows)
    return next((row for _, row in ran if row.broke(UNTARGETED)), None) if done else None
