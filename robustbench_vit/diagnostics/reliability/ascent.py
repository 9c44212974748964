"""What steps along the gradient reach: does the loss rise, faster than by noise, and far enough in a large ball?

Carlini et al. 2019 (arXiv:1902.06705), Athalye et al. 2018 (arXiv:1802.00420, section 3.1), Pintor et al.
2022 (arXiv:2106.09947, indicators of failure), Croce and Hein 2020 (arXiv:2003.01690).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_vit.attacks.rows import pick
from robustbench_vit.diagnostics.reliability.grading import Limits, not_run, percent
from robustbench_vit.diagnostics.reliability.probes import Probes, finite, float_step, margin_of
from robustbench_vit.records.reliability import Evidence, Reason

RISES, NOISE, LARGE = "loss-rises", "noise-as-strong", "large-eps"

STEPS = 10
STEP_SIZE = 0.25
"""Times eps: 2.5 eps over all steps, as usual (arXiv:1706.06083)."""
RISES_COST = 3 * STEPS + 1
RISES_LIMITS = Limits(weak=0.1, strong=0.5)
RISE = 16
"""The margin has risen when it did so by more than this many float32 steps of a sample's largest logit."""

SHARE = 0.25
"""Noise and gradient are compared at this share of eps, where honest models are still nearly linear."""
DRAWS = 4
NOISE_COST = 1 + DRAWS
NOISE_LIMITS = Limits(weak=0.2, strong=0.5)

LARGE_STEPS = 20
LARGE_STEP = 0.1
"""Of the range of a pixel."""
LARGE_COST = 3 * LARGE_STEPS + 1
LARGE_LIMITS = Limits(weak=0.1, strong=0.3)
NOISE_STREAM = 0


def loss_rises(probes: Probes) -> Reason:
    """Follows the margin along a short PGD on the cross-entropy and counts the samples on which it never rose.

    The margin stands for every loss here, because all of them rise with it and float32 doesn't round it to 0.
    """
    x, path = probes.x, []
    for _ in range(STEPS):
        answer = probes.gradient(x, probes.loss)
        path.append(margin_of(answer.logits, probes.y))
        x = probes.moved(x, answer.grad, STEP_SIZE * probes.eps, probes.eps)
    path.append(margin_of(probes.logits(x), probes.y))
    climb = torch.stack(path)  # (step, row)
    flat = ~(climb[1:].amax(0) > climb[0] + RISE * float_step(probes.cross_entropy.logits))
    n, seen = len(probes), int(flat.sum())
    values = {"flat": seen, "probes": n, "rising_steps": float((climb[1:] > climb[:-1]).double().mean())}
    evidence = RISES_LIMITS.grade(seen, n)
    message = (
        f"over {STEPS} steps of PGD the loss never rose on {percent(seen, n)} of the samples;"
        f" {100 * values['rising_steps']:.0f} % of all steps raised it"
    )
    if evidence is Evidence.NONE:
        return Reason(RISES, evidence, message, values=values)
    advice = "the gradient is no way up: attack through a differentiable approximation (BPDA), or with scores only"
    return Reason(RISES, evidence, f"{message}: the gradient does not lead where the loss is higher", advice, values)


def noise_as_strong(probes: Probes) -> Reason:
    """Counts the samples on which the best of a few random steps raises the margin more than a gradient step as long.

    The step goes along the margin's gradient; what float32 loses of the cross-entropy's is another check's matter.
    """
    step = SHARE * probes.eps
    ahead = probes.moved(probes.x, probes.margin.grad, step, step)
    reached = margin_of(probes.logits(ahead), probes.y)
    by_chance = torch.stack([margin_of(probes.logits(x), probes.y) for x in _random_steps(probes, step)]).amax(0)
    n, seen = len(probes), int((~(reached > by_chance)).sum())
    values = {"noise_wins": seen, "probes": n}
    evidence = NOISE_LIMITS.grade(seen, n)
    message = (
        f"on {percent(seen, n)} of the samples the best of {DRAWS} random steps of eps/{1 / SHARE:g} raised the loss at"
        " least as much as a gradient step"
    )
    if evidence is Evidence.NONE:
        return Reason(NOISE, evidence, message, values=values)
    advice = "attack with scores only (square), or average gradients over random neighbours of the image"
    return Reason(NOISE, evidence, f"{message}: the gradient knows no more than chance", advice, values)


def _random_steps(probes: Probes, step: Tensor) -> list[Tensor]:
    shape = tuple(probes.x.shape[1:])
    draws = (probes.noise.normal(shape, NOISE_STREAM, k).to(probes.x.dtype) for k in range(DRAWS))
    return [probes.moved(probes.x, draw, step, step) for draw in draws]


def large_eps(probes: Probes) -> Reason:
    """Attacks each sample where any image can become any other, which is the whole box in every norm.

    An image of another class among the probes is then a witness that an adversarial example exists, so a sample that
    survives is the attack's failure. Without a witness (the model gives one class to all) nothing can be said.
    """
    if len(probes.y.unique()) < 2:
        return not_run(LARGE, "all probe samples have one class, so nothing shows that another can be reached")
    n, seen = len(probes), int(_standing_in_the_box(probes).sum())
    values = {"standing": seen, "probes": n}
    evidence = LARGE_LIMITS.grade(seen, n)
    message = (
        f"{percent(seen, n)} of the samples survive {LARGE_STEPS} steps of PGD that may change every pixel at will"
    )
    if evidence is Evidence.NONE:
        return Reason(LARGE, evidence, message, values=values)
    advice = (
        "find an attack that reaches 0 % at a large eps (other losses, restarts, scores only) before trusting it at a"
        " small one"
    )
    return Reason(LARGE, evidence, f"{message}: the attack fails, it is not the model that resists", advice, values)


def _standing_in_the_box(probes: Probes) -> Tensor:
    """bool (row,): still classified correctly after sign steps on the cross-entropy inside [0, 1]."""
    x, standing = probes.x, torch.ones(len(probes), dtype=torch.bool, device=probes.x.device)
    for _ in range(LARGE_STEPS):
        answer = probes.gradient(x, probes.loss)
        standing &= margin_of(answer.logits, probes.y) <= 0
        if not bool(standing.any()):
            return standing
        x = pick(standing, (x + LARGE_STEP * finite(answer.grad).sign()).clamp(0, 1), x)
    return standing & (margin_of(probes.logits(x), probes.y) <= 0)
