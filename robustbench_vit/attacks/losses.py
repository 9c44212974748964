"""Objectives that attacks increase: one value per row from its logits.

With too few classes for a difference-of-logits ratio (three for `dlr`, four for `dlr-targeted`) the plain margin takes
its place; the reference crashes there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_vit.attacks.norms import TINY

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits (row, classes), true classes (row,) and target classes (row,) to values (row,)."""


def cross_entropy(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return F.cross_entropy(z, y, reduction="none")


def margin(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """max_{j≠y} z_j - z_y: positive when misclassified."""
    return largest_other(z, y) - logit(z, y)


def margin_targeted(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y."""
    return logit(z, target) - logit(z, y)


def dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{j≠y} z_j) / (z₍₁₎ - z₍₃₎ + 1e-12) (arXiv:2003.01690, eq. 3)."""
    if z.shape[1] < 3:
        return margin(z, y, target)
    top = z.topk(3, dim=1).values
    return margin(z, y, target) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z₍₁₎ - (z₍₃₎ + z₍₄₎)/2 + 1e-12) (arXiv:2003.01690, eq. 4)."""
    if z.shape[1] < 4:
        return margin_targeted(z, y, target)
    top = z.topk(4, dim=1).values
    return margin_targeted(z, y, target) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + TINY)


def kl_divergence(z: Tensor, clean: Tensor) -> Tensor:
    """(row,) KL(softmax(clean) ‖ softmax(z)): how far the answer has moved from another one, both as logits."""
    log_clean = clean.log_softmax(1)
    return (log_clean.exp() * (log_clean - z.log_softmax(1))).sum(1)


def logit(z: Tensor, index: Tensor) -> Tensor:
    """(row,) the logit at each row's class."""
    return z.gather(1, index.unsqueeze(1)).squeeze(1)


def largest_other(z: Tensor, y: Tensor) -> Tensor:
    """(row,) the largest logit of a class other than y."""
    return z.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "dlr-targeted": dlr_targeted}
TARGETED = frozenset({"dlr-targeted"})
