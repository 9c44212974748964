"""Is the gradient of a random model more than one draw's noise?

Athalye et al. 2018 (arXiv:1802.00420, section 4.2) attack random models with gradients averaged over draws (EOT,
arXiv:1707.07397). Where averaging changes where the gradient points, an attack with few draws proves little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_vit.diagnostics.reliability.grading import not_run
from robustbench_vit.diagnostics.reliability.probes import Probes, finite, loss_of
from robustbench_vit.records.reliability import Evidence, Reason

NAME = "eot-changes"
DRAWS = 8
FRESH = 4
"""Further draws, under which steps are judged."""
COST = 3 * DRAWS + 3 * FRESH
STEP = 0.25
"""Length of the steps, times eps."""
PROTOCOL_DRAWS = 20
"""Draws per gradient in the rand version of AutoAttack (arXiv:2003.01690)."""
WEAK_COSINE, STRONG_COSINE = 0.8, 0.1
"""Median cosine between the gradients of two draws; at .1 even two means of 20 draws agree only to .69."""


def eot_changes(probes: Probes) -> Reason:
    """Compares the gradients of single draws with each other, and a step along one with a step along their mean."""
    if probes.one_draw is None:
        return not_run(NAME, "the model is deterministic")
    grads = torch.stack([_gradient(probes, draw) for draw in range(DRAWS)])
    cosine = _pairwise_cosine(grads)
    before, single, mean = (_loss(probes, x) for x in (probes.x, _step(probes, grads[0]), _step(probes, grads.mean(0))))
    values = {
        "cosine": cosine,
        "cosine_of_means": agreement_of_means(cosine, PROTOCOL_DRAWS),
        "rise_single": single - before,
        "rise_mean": mean - before,
        "probes": len(probes),
    }
    return _graded(values)


def _graded(values: dict[str, float]) -> Reason:
    message = (
        f"the gradients of two draws have a median cosine of {values['cosine']:.2f}, means of {PROTOCOL_DRAWS} draws"
        f" about {values['cosine_of_means']:.2f}; a step along one draw's gradient raises the mean loss by"
        f" {values['rise_single']:.3g}, along the mean of {DRAWS} by {values['rise_mean']:.3g}"
    )
    if values["cosine"] >= WEAK_COSINE:
        return Reason(NAME, Evidence.NONE, message, values=values)
    evidence = Evidence.STRONG if values["cosine"] < STRONG_COSINE else Evidence.WEAK
    advice = (
        "average gradients over more draws (EOT) until the robust accuracy stops falling, and judge by the majority of"
        " fresh draws"
    )
    return Reason(NAME, evidence, f"{message}: randomness hides where the loss rises", advice, values)


def agreement_of_means(cosine: float, draws: int) -> float:
    """The cosine of two means of `draws` gradients each, when two gradients have `cosine` and differ by noise."""
    cosine = max(cosine, 0.0)
    return draws * cosine / (1 + (draws - 1) * cosine)


def _pairwise_cosine(grads: Tensor) -> float:
    """Median over samples of the mean cosine of all pairs of draws; grads (draw, row, …).

    No pair is formed: for N unit vectors |Σ u|² = N + N (N - 1) cos.
    """
    flat = finite(grads).double().flatten(2)
    units = flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-300)
    draws = len(units)
    cosines = (units.sum(0).square().sum(1) - draws) / (draws * (draws - 1))
    return float(cosines.median().clamp(-1, 1))


def _gradient(probes: Probes, draw: int) -> Tensor:
    with probes.draw(draw):
        return probes.gradient(probes.x, probes.loss).grad


def _step(probes: Probes, grad: Tensor) -> Tensor:
    return probes.moved(probes.x, grad, STEP * probes.eps, STEP * probes.eps)


def _loss(probes: Probes, x: Tensor) -> float:
    """Mean loss at x over samples and fresh draws."""
    total = 0.0
    for draw in range(FRESH):
        with probes.draw(DRAWS + draw):
            total += float(loss_of(probes.logits(x), probes.y).mean())
    return total / FRESH
