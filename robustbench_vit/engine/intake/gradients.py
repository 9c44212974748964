"""Is there a gradient that an attack could follow?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.records import Finding

NEARLY_ALL = 0.9
"""From this share of images without a usable gradient, gradient attacks are taken for useless."""

_NOT_DIFFERENTIABLE = ("grad", "backward", "derivative", "differentia", "inference")
"""Words in torch's complaints about a model that works, but not under autograd."""


def gradients(model: Any, x: Tensor, y: Tensor, given: int) -> tuple[Finding, bool]:
    """What became of the margin's gradient with respect to a probe batch, and whether it may be followed.

    Only the first `given` images count; the others fill the batch. The margin and not the cross-entropy, whose gradient
    vanishes in float32 on confident models (arXiv:2003.01690, §4).
    """
    try:
        grad = _margin_gradient(model, x, y)
    except RuntimeError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not any(word in first.lower() for word in _NOT_DIFFERENTIABLE):
            raise
        return _useless(f"autograd fails on the model ({first})"), False
    if grad is None:
        return _useless("no gradient reaches the input: detached, under no_grad or through integers"), False
    return _judged(grad[:given].flatten(1))


def _margin_gradient(model: Any, x: Tensor, y: Tensor) -> Tensor | None:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = unwrap(model(x))
        if not logits.requires_grad:
            return None
        true = logits.gather(1, y[:, None])
        others = logits.scatter(1, y[:, None], -torch.inf)
        (grad,) = torch.autograd.grad((others.amax(1) - true[:, 0]).sum(), x, allow_unused=True)
    return grad


def _judged(grad: Tensor) -> tuple[Finding, bool]:
    broken, zero = ~grad.isfinite().all(1), (grad == 0).all(1)
    useless, n = int((broken | zero).sum()), len(grad)
    if useless == 0:
        return Finding("gradients", "pass", f"finite gradients other than 0 on {n} of {n} images"), True
    measured = f"the gradient is exactly 0 on {int(zero.sum())} and not finite on {int(broken.sum())} of {n} images"
    if useless >= NEARLY_ALL * n:
        return _useless(measured), False
    message = f"{measured}: gradient attacks are blind there; look for saturated or quantising layers"
    return Finding("gradients", "warn", message), True


def _useless(what: str) -> Finding:
    message = (
        f"{what}. Attacks by scores and decisions run instead (policy C); if a layer can be replaced by a"
        " differentiable stand-in on the way back, evaluate that model too"
    )
    return Finding("gradients", "warn", message)
