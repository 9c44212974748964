"""What one gradient at each clean sample tells: does it vanish, and can float32 resolve the logits behind it?

Carlini and Wagner 2016 (arXiv:1607.04311) found defensive distillation to be saturated logits; Athalye et al. 2018
(arXiv:1802.00420, section 3) name vanishing gradients; both are indicators of Pintor et al. 2022 (arXiv:2106.09947).
"""

from __future__ import annotations

from torch import Tensor

from robustbench_vit.attacks.norms import TINY
from robustbench_vit.diagnostics.reliability.grading import Limits, percent
from robustbench_vit.diagnostics.reliability.probes import Probes, float_step, norms
from robustbench_vit.records.reliability import Evidence, Reason

USABLE, VANISHING, SATURATED = "usable-gradient", "vanishing-gradients", "saturated-logits"
COST = 3
"""Forward equivalents per probe: one gradient, of the cross-entropy here and of the margin there."""
VANISHING_LIMITS = Limits(weak=0.1, strong=0.5)
SATURATED_SHARE = Limits(weak=0.5, strong=0.5)
FAINT, GONE = 33.0, 87.0
"""Margins: exp(-33) is under 2⁻⁴⁸, exp(-87) under the smallest normal float32."""
RESOLUTION = 1000
"""A margin of fewer float32 steps of its logits hides what a small change of the image does."""


BLIND = (
    "use lanes without gradients (square) as the floor, and attack a differentiable approximation (BPDA) or a surrogate"
)
NO_GRADIENT = "the model has no usable gradient"
NO_GRAPH = ("does not require grad", "not have been used in the graph")
"""What torch says when no gradient leads from the logits to the image."""


def usable_gradient(probes: Probes) -> Reason:
    """Asks for one gradient; strong evidence when there is none to be had. Other errors of the model pass through."""
    try:
        _ = probes.cross_entropy
    except RuntimeError as error:  # NotImplementedError, of a backward rule that isn't there, is one of these
        if not isinstance(error, NotImplementedError) and not any(said in str(error) for said in NO_GRAPH):
            raise
        message = f"no gradient leads from the logits to the image ({str(error).splitlines()[0]})"
        return Reason(USABLE, Evidence.STRONG, f"{message}: gradient attacks cannot move", BLIND)
    return Reason(USABLE, Evidence.NONE, "the logits have a gradient with respect to the image")


def declared_unusable() -> Reason:
    """The reason for a model that is evaluated without gradients (policy C)."""
    message = f"{NO_GRADIENT}: the number rests on attacks that see scores or decisions only"
    return Reason(USABLE, Evidence.STRONG, message, BLIND)


def vanishing_gradients(probes: Probes) -> Reason:
    """Counts samples whose gradient is zero, not finite, or lost in the constant that attacks divide by.

    In l2 and l1 that is below 1e-12 (`TINY`): g / (|g| + 1e-12) is then no direction any more. The sign of linf needs
    any number but 0.
    """
    smallest = 0.0 if probes.ball.name == "linf" else TINY
    ce, margin = norms(probes.cross_entropy.grad), norms(probes.margin.grad)
    lost, dead = ~(ce > smallest) | ~ce.isfinite(), ~(margin > smallest) | ~margin.isfinite()
    seen, n = int((lost | dead).sum()), len(probes)
    values = {
        "vanishing": int(lost.sum()),
        "vanishing_margin": int(dead.sum()),
        "probes": n,
        "median_norm": _median(ce),
        "median_norm_margin": _median(margin),
    }
    evidence = VANISHING_LIMITS.grade(seen, n)
    zero = f"below {smallest:g}" if smallest else "zero"
    message = (
        f"the input gradient of the cross-entropy is {zero} or not finite on {percent(values['vanishing'], n)} of the"
        f" samples, that of the margin on {percent(values['vanishing_margin'], n)}"
    )
    if evidence is Evidence.NONE:
        return Reason(VANISHING, evidence, message, values=values)
    return Reason(VANISHING, evidence, f"{message}: gradient attacks stand still there", _advice(values), values)


def _advice(values: dict[str, float]) -> str:
    if 2 * values["vanishing_margin"] >= values["vanishing"]:
        return (
            "attack through a differentiable approximation of the layer that stops gradients (BPDA), or with scores and"
            " decisions only"
        )
    return "attack the margin or the difference-of-logits ratio (apgd-dlr, apgd-t), or divide the logits by a constant"


def saturated_logits(probes: Probes) -> Reason:
    """Counts samples whose margin is so large that float32 loses the other classes, or so fine that it rounds it away.

    Beyond a margin of FAINT their softmax is under the square of what float32 can tell from 1; beyond GONE it is 0.
    """
    z, margin = probes.cross_entropy.logits, -probes.margin.value.double()
    coarse = margin.abs() < RESOLUTION * float_step(z)  # one draw of a random model may misclassify
    faint, gone, n = coarse | (margin > FAINT), coarse | (margin > GONE), len(probes)
    values = {
        "zero_loss": int((probes.cross_entropy.value == 0).sum()),
        "faint": int(faint.sum()),
        "gone": int(gone.sum()),
        "coarse": int(coarse.sum()),
        "probes": n,
        "median_margin": _median(margin),
    }
    evidence = _saturation(int(faint.sum()), int(gone.sum()), n)
    message = (
        f"the cross-entropy is exactly 0 in float32 on {percent(values['zero_loss'], n)} of the samples, the median"
        f" margin of the logits is {values['median_margin']:.3g}"
    )
    if values["coarse"]:
        message += f", and float32 resolves {percent(values['coarse'], n)} of the margins in under {RESOLUTION} steps"
    if evidence is Evidence.NONE:
        return Reason(SATURATED, evidence, message, values=values)
    advice = (
        "divide the logits by a constant (no decision changes), or attack the margin or the difference-of-logits ratio"
    )
    return Reason(SATURATED, evidence, f"{message}: the loss hides what a step changes", advice, values)


def _saturation(faint: int, gone: int, n: int) -> Evidence:
    if SATURATED_SHARE.grade(gone, n) is Evidence.STRONG:
        return Evidence.STRONG
    return Evidence.WEAK if SATURATED_SHARE.grade(faint, n) is Evidence.STRONG else Evidence.NONE


def _median(values: Tensor) -> float:
    """The median of the finite values, 0 when there is none."""
    finite = values[values.isfinite()]
    return float(finite.median()) if len(finite) else 0.0
