"""What the lanes of the attack say: did one without gradients break what those with gradients had left?

An attack that knows less should not find more (Athalye et al. 2018, arXiv:1802.00420, section 3.1; Carlini et al. 2019,
arXiv:1902.06705). No model is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from robustbench_vit.attacks.rows import Access
from robustbench_vit.diagnostics.reliability.grading import (
    ENOUGH_BACKWARDS,
    HONEST_RATE,
    STRONGER,
    grade_breaks,
    not_run,
    percent,
)
from robustbench_vit.records.outcome import Outcome, Status
from robustbench_vit.records.reliability import Evidence, Reason

NAME = "scores-beat-gradients"


@dataclass(frozen=True)
class LaneAccess:
    """A lane of the attack, and what it saw of the model."""

    name: str
    access: Access


def scores_beat_gradients(outcomes: Sequence[Outcome], lanes: Sequence[LaneAccess]) -> Reason:
    """Tests the samples broken without gradients against what is usual for honest models.

    A lane counts when a gradient lane ran before it. Raises nothing for outcomes of lanes it doesn't know.
    """
    late = _without_gradients_after(lanes)
    if not late:
        return not_run(NAME, "the attack has no lane without gradients after one with gradients to compare")
    broken = [o for o in outcomes if o.status is Status.BROKEN and o.by in late]
    left = len(broken) + sum(o.status is Status.SURVIVED for o in outcomes)
    if left == 0:
        return Reason(NAME, Evidence.NONE, "the gradient lanes left no sample", values={"left": 0, "broken": 0})
    return _tested(broken, left, late)


def _tested(broken: Sequence[Outcome], left: int, late: Sequence[str]) -> Reason:
    evidence, p = grade_breaks(len(broken), left)
    spent = fmean(o.backwards for o in broken) if broken else 0.0
    values = {"broken": len(broken), "left": left, "p": p, "backwards": spent}
    seen = f"{', '.join(late)} broke {percent(len(broken), left)} of the samples that gradients had left"
    usual = f"(honest models: at most {100 * HONEST_RATE:g} %; p = {p:.1g})"
    if evidence is Evidence.NONE:
        return Reason(NAME, evidence, f"{seen} {usual}", values=values)
    if spent < ENOUGH_BACKWARDS:
        message = f"{seen}, but these took only {spent:.0f} backward passes a sample: a weak attack, nothing to compare"
        return Reason(NAME, Evidence.NONE, message, STRONGER, values)
    advice = (
        "the gradients mislead the attack: give the lanes without gradients more queries and restarts, attack through a"
        " differentiable approximation (BPDA), or transfer from a similar model without the defense"
    )
    return Reason(NAME, evidence, f"{seen} {usual}: the gradients hide weaknesses", advice, values)


def _without_gradients_after(lanes: Sequence[LaneAccess]) -> list[str]:
    """Names of the lanes that saw at most scores and ran after one that saw gradients."""
    with_gradients = [i for i, lane in enumerate(lanes) if lane.access >= Access.GRADIENT]
    if not with_gradients:
        return []
    return [lane.name for lane in lanes[with_gradients[0] :] if lane.access < Access.GRADIENT]
