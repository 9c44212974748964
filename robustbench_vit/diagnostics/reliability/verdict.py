"""All checks of one evaluation, within their allowance of model passes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.diagnostics.reliability.checks import (
    CHECKS,
    EOT,
    MOST_PROBES,
    TRANSFER,
    USABLE,
    Bought,
    Check,
    Suspect,
    affordable,
    run_checks,
)
from robustbench_vit.diagnostics.reliability.gradients import NO_GRADIENT, declared_unusable
from robustbench_vit.diagnostics.reliability.grading import not_run
from robustbench_vit.diagnostics.reliability.lanes import LaneAccess, scores_beat_gradients
from robustbench_vit.diagnostics.reliability.probes import Probes, choose
from robustbench_vit.diagnostics.reliability.transfer import Tried
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.records.outcome import Outcome
from robustbench_vit.records.reliability import Evidence, Reason, Reliability, combined


@dataclass(frozen=True)
class _Case:
    """The arguments of `assess` that the checks need."""

    model: Any
    x: Tensor
    y: Tensor
    norm: str
    eps: float
    seed: int
    outcomes: Sequence[Outcome]
    random: bool
    surrogate: Any | None
    images: Tensor | None

    def suspect(self, most: int, blind: bool) -> Suspect:
        """The model and the surrogate with at most so many probe samples."""
        at = choose(self.outcomes, most)
        index = torch.tensor(at, device=self.x.device)
        spent = [outcome.backwards for outcome in self.outcomes if outcome.robust]
        tried = Tried(
            torch.tensor([self.outcomes[i].robust for i in at], device=self.x.device),
            None if self.surrogate is None else self._probes(self.surrogate, at, index, random=False),
            None if self.images is None else self.images.to(self.x)[index],
            sum(spent) / max(len(spent), 1),
        )
        return Suspect(self._probes(self.model, at, index, self.random), tried, blind)

    def _probes(self, model: Any, at: Sequence[int], index: Tensor, random: bool) -> Probes:
        ids = [self.outcomes[i].sample for i in at]
        return Probes(model, self.x[index], self.y[index], ids, self.norm, self.eps, self.seed, random)


def assess(
    model: Any,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: float,
    seed: int,
    outcomes: Sequence[Outcome],
    lanes: Sequence[LaneAccess],
    *,
    randomness: str | None = None,
    policy: Literal["A", "B", "C"] = "A",
    surrogate: Any | None = None,
    images: Tensor | None = None,
    allowance_forwards: int | None = None,
) -> Reliability:
    """The verdict on one attack at one eps: how much speaks for masked gradients, and why.

    Args:
        model: from images (n, c, h, w) in [0, 1] to logits, in eval mode and on the device of `x`.
        x, y: the samples (n, c, h, w) and their labels (n,).
        norm, eps: the budget.
        seed: of the keyed noise; equal seeds give equal verdicts.
        outcomes: one per sample, in the order of `x`.
        lanes: the lanes of the attack in the order they ran.
        randomness: what makes the model random, None for a deterministic one.
        policy: the attack policy; C says that the model has no usable gradient.
        surrogate: another model with gradients, whose adversarial images are tried on the survivors.
        images: adversarial images (n, c, h, w) of another model, tried likewise.
        allowance_forwards: model passes that the checks may take, a backward counting two; None: all they want.

    Raises InputError for outcomes or images that don't fit the samples, UnknownNameError for an unknown norm.
    """
    began = time.perf_counter()
    _check_input(x, y, norm, eps, outcomes, images)
    case = _Case(model, x, y, norm, eps, seed, outcomes, randomness is not None, surrogate, images)
    absent = _absent(case, policy)
    available = len(choose(outcomes, MOST_PROBES))
    bought = affordable([check for check in CHECKS if check not in absent], allowance_forwards, available)
    found, passes = _looked(case, bought, blind=policy == "C")
    from_outcomes = [scores_beat_gradients(outcomes, lanes)] + [declared_unusable()] * (policy == "C")
    reasons = (*from_outcomes, *found, *_idle(absent, bought, available))
    return Reliability(combined(reasons), reasons, passes, time.perf_counter() - began)


def failed(why: str) -> Reliability:
    """The verdict when the checks themselves went wrong."""
    return Reliability(Evidence.NONE, (not_run("assessment", why),), {"forwards": 0, "backwards": 0}, 0.0)


def _absent(case: _Case, policy: str) -> dict[Check, str]:
    """The checks that don't apply, and why."""
    absent = {}
    if not case.random:
        absent[EOT] = "the model is deterministic"
    if case.surrogate is None and case.images is None:
        absent[TRANSFER] = "no surrogate was given"
    if policy == "C":
        absent |= {check: NO_GRADIENT for check in CHECKS if check.needs_gradient}
    return absent


def _looked(case: _Case, bought: Bought, blind: bool) -> tuple[list[Reason], dict[str, int]]:
    """The reasons of the checks that were paid for, and the passes they took."""
    if not bought.checks:
        return [], {"forwards": 0, "backwards": 0}
    with frozen(case.model), frozen(case.surrogate):
        suspect = case.suspect(bought.probes, blind)
        return list(run_checks(suspect, bought.checks)), suspect.passes()


def _idle(absent: Mapping[Check, str], bought: Bought, available: int) -> list[Reason]:
    """A reason for every check that did not run, but for the one that policy C answers."""
    poor = "the allowance of model passes does not reach so far" if available else "no sample is classified correctly"
    answered = {*bought.checks, *([USABLE] if absent.get(USABLE) else [])}
    return [not_run(check.name, absent.get(check, poor)) for check in CHECKS if check not in answered]


def _check_input(
    x: Tensor, y: Tensor, norm: str, eps: float, outcomes: Sequence[Outcome], images: Tensor | None
) -> None:
    if norm not in NORMS:
        raise UnknownNameError("norm", norm, NORMS)
    if not (eps > 0 and math.isfinite(eps)):
        raise InputError(f"eps must be positive and finite, got {eps}")
    if not len(x) == len(y) == len(outcomes):
        raise InputError(
            f"{len(x)} images, {len(y)} labels and {len(outcomes)} outcomes; expected one of each per sample"
        )
    if images is not None and images.shape != x.shape:
        raise InputError(f"the images of the other model have shape {tuple(images.shape)}; expected {tuple(x.shape)}")
