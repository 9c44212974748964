"""Do images made on another model break what the attack had left?

A surrogate knows nothing of the target's weights; when its images do better than the target's own gradients, those
mislead (Athalye et al. 2018, arXiv:1802.00420, section 3.1; Carlini et al. 2019, arXiv:1902.06705).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vit.diagnostics.reliability.grading import (
    ENOUGH_BACKWARDS,
    HONEST_RATE,
    STRONGER,
    grade_breaks,
    not_run,
    percent,
)
from robustbench_vit.diagnostics.reliability.probes import Probes, margin_of
from robustbench_vit.records.reliability import Evidence, Reason

NAME = "transfer"
STEPS = 20
STEP_SIZE = 0.125
"""Times eps."""
COST = 2 * (3 * STEPS + 1)
"""The same steps on the surrogate and on the model itself."""


@dataclass(frozen=True)
class Tried:
    """What is tried on survivors, and how hard the attack that left them had tried."""

    survived: Tensor  # bool (row,)
    surrogate: Probes | None  # the same samples before another model
    images: Tensor | None  # (row, c, h, w); put into the budget first
    backwards: float  # mean backward passes that the attack spent on a survivor


def transfer(probes: Probes, tried: Tried, blind: bool) -> Reason:
    """Tests how many survivors fall to PGD on the surrogate or to the images, against the honest rate.

    Survivors that fall to the same steps on the model itself don't count: they show a weak attack, not a model that
    misleads. A `blind` model has no gradient to try that with.
    """
    if tried.surrogate is None and tried.images is None:
        return not_run(NAME, "no surrogate was given")
    n = int(tried.survived.sum())
    if n == 0:
        return not_run(NAME, "the attack left no sample")
    standing = tried.survived if blind else tried.survived & ~_fooled(probes, _climbed(probes))
    foreign = torch.zeros_like(standing)
    if tried.surrogate is not None:
        foreign |= _fooled(probes, _climbed(tried.surrogate))
    if tried.images is not None:
        foreign |= _fooled(probes, tried.images)
    return _tested(int((foreign & standing).sum()), n, blind or tried.backwards >= ENOUGH_BACKWARDS)


def _fooled(probes: Probes, x: Tensor) -> Tensor:
    """bool (row,): misclassified at x, which is put into the budget first."""
    return margin_of(probes.logits(probes.ball.project(x, probes.x, probes.eps)), probes.y) > 0


def _climbed(probes: Probes) -> Tensor:
    """The last iterates of PGD on the cross-entropy of the model that `probes` belong to."""
    x = probes.x
    for _ in range(STEPS):
        x = probes.moved(x, probes.gradient(x, probes.loss).grad, STEP_SIZE * probes.eps, probes.eps)
    return x


def _tested(broken: int, n: int, thorough: bool) -> Reason:
    evidence, p = grade_breaks(broken, n)
    values = {"broken": broken, "left": n, "p": p}
    message = (
        f"images made on another model break {percent(broken, n)} of the samples that the attack had left and as many"
        f" steps on this model leave (honest models: at most {100 * HONEST_RATE:g} %; p = {p:.1g})"
    )
    if evidence is Evidence.NONE:
        return Reason(NAME, evidence, message, values=values)
    if not thorough:
        return Reason(NAME, Evidence.NONE, f"{message}, but the attack was weak: nothing to compare", STRONGER, values)
    advice = "count these images too: attack the surrogate with more steps and restarts, and transfer"
    return Reason(NAME, evidence, f"{message}: the model's own gradients mislead", advice, values)
