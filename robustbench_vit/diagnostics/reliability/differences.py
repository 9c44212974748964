"""Does the model change as its gradient promises?

A layer without a useful derivative (rounding, a detached branch, a straight-through estimator) shows when the slope
between two nearby images is compared with the gradient between them (Athalye et al. 2018, arXiv:1802.00420: shattered
gradients). Points lie inside the box, so that a model that clips its input isn't accused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_vit.attacks.rows import spread
from robustbench_vit.diagnostics.reliability.grading import Limits, percent
from robustbench_vit.diagnostics.reliability.probes import Probes, finite, float_step, norms, spread_of
from robustbench_vit.records.reliability import Evidence, Reason

NAME = "gradient-mismatch"
DIRECTIONS = 3
"""Random directions, besides the gradient's own."""
SCALES = (1.0, 0.25)
"""Step lengths; the better one counts: too long a step bends, too short a one drowns in float32."""
COST = 3 + 2 * (1 + DIRECTIONS) * len(SCALES)
LIMITS = Limits(weak=0.15, strong=0.5)
AGREES = 0.3
"""Largest relative error of promised slopes."""
INSIDE = 0.02
"""How far from 0 and 1 the points lie."""
CHANGE = 0.01
"""Change of the margin that a step should make, relative to the range of the logits: 10⁵ steps of float32."""
ROUNDING = 16
"""Steps of float32 by which a computed change may be off."""
STREAM = 1


def gradient_mismatch(probes: Probes) -> Reason:
    """Counts the samples whose slopes along the gradient and along random directions are not as the gradient says."""
    x = probes.x.clamp(INSIDE, 1 - INSIDE)
    answer = probes.gradient(x, probes.towards_rival)
    grad = finite(answer.grad)
    errors = torch.stack([_error(probes, x, grad, answer.logits, scale) for scale in SCALES]).amin(0)
    n, seen = len(probes), int((~(errors <= AGREES)).sum())
    values = {"mismatch": seen, "probes": n, "median_error": float(errors.clamp_max(1e6).median())}
    evidence = LIMITS.grade(seen, n)
    message = (
        f"on {percent(seen, n)} of the samples the model changes otherwise than its gradient promises"
        f" (median error {values['median_error']:.2g} of the slope)"
    )
    if evidence is Evidence.NONE:
        return Reason(NAME, evidence, message, values=values)
    advice = (
        "look for rounding, detached branches, custom backward rules and thresholds; attack through a differentiable"
        " approximation of them (BPDA)"
    )
    return Reason(
        NAME, evidence, f"{message}: a layer is not differentiable, or its gradient is another", advice, values
    )


def _error(probes: Probes, x: Tensor, grad: Tensor, z: Tensor, scale: float) -> Tensor:
    """(row,) relative error of the promised changes over all directions; 0 where nothing changes as promised."""
    promised, found = [], []
    for direction in _directions(probes, grad):
        length = scale * _length(probes, direction, grad, z)
        step = spread(length, x) * direction
        promised.append(2 * (grad * step).double().flatten(1).sum(1))
        found.append(_objective(probes, x + step) - _objective(probes, x - step))
    p, f = torch.stack(promised), torch.stack(found)
    rounding = len(p) * (ROUNDING * float_step(z)).square() + torch.finfo(torch.float64).tiny
    return ((p - f).square().sum(0) / (f.square().sum(0) + rounding)).sqrt().nan_to_num(torch.inf)


def _directions(probes: Probes, grad: Tensor) -> list[Tensor]:
    """Directions of Euclidean length 1: the gradient's and random ones."""
    shape = tuple(grad.shape[1:])
    drawn = [probes.noise.normal(shape, STREAM, k).to(grad.dtype) for k in range(DIRECTIONS)]
    return [d / spread(norms(d).clamp_min(1e-30).to(d.dtype), d) for d in (grad, *drawn)]


def _length(probes: Probes, direction: Tensor, grad: Tensor, z: Tensor) -> Tensor:
    """(row,) step length that should change the margin by CHANGE of the logits' range, inside the box."""
    slope = (grad * direction).double().flatten(1).sum(1).abs()
    wanted = CHANGE * spread_of(z) / slope.clamp_min(1e-30)
    room = INSIDE / direction.flatten(1).abs().amax(1).double().clamp_min(1e-30)
    return torch.minimum(wanted, room).to(grad.dtype)


def _objective(probes: Probes, x: Tensor) -> Tensor:
    at = torch.arange(len(x), device=x.device)
    return probes.towards_rival(probes.logits(x), at).double()
