"""Training for randomised smoothing: Gaussian noise on the images, and consistency under it."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, StrictInt, field_validator
from torch import Tensor, nn

from robustbench_vit.cards import Number, Workspace
from robustbench_vit.defenses.losses.step import Rest, StepLoss, correct, logits_of, within_pixel_range
from robustbench_vit.defenses.registry import Batch, LossValue, register, settings

STREAM = 16
"""Of the rows' noise; attacks draw from lower ones."""


@settings
class Noisy(StepLoss):
    """What losses on noisy images state: sigma in the unit of pixels in [0, 1]. Noisy images may leave that range."""

    sigma: Annotated[Number, Field(gt=0)]

    @field_validator("sigma")
    @classmethod
    def _unit(cls, sigma: float) -> float:
        return within_pixel_range(sigma)

    def attack_card(self, workspace: Workspace, where: str) -> None:
        """None: no attack takes part."""

    def noisy(self, batch: Batch, copy: int) -> Tensor:
        """The images (row, c, h, w) with the noise of one of the copies."""
        return batch.x + self.sigma * batch.noise.normal(tuple(batch.x.shape[1:]), STREAM, copy).to(batch.x.dtype)


@register("loss", "gaussian-augment")
@settings
class GaussianAugmentation(Noisy):
    """Cross-entropy on images with Gaussian noise (arXiv:1902.02918, section 3.3); accuracies logged are under it."""

    def bind(self, workspace: Workspace, where: str) -> GaussianAugmentation:
        return self

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        x = self.noisy(batch, 0)
        return lambda model: self._value(model, batch, x)

    def _value(self, model: nn.Module, batch: Batch, x: Tensor) -> LossValue:
        logits = logits_of(model, x)
        return LossValue(F.cross_entropy(logits, batch.y), correct(logits, batch.y), None)


@register("loss", "consistency")
@settings
class Consistency(Noisy):
    """CE + λ·KL(p̄ ‖ p_i) + η·H(p̄) over noisy copies i with mean answer p̄ (arXiv:2006.04062, eq. 8).

    λ is `consistency_weight`, η `entropy_weight`; cross-entropy and KL are means over the copies. Accuracies logged are
    under the first copy's noise.
    """

    copies: Annotated[StrictInt, Field(ge=2)]
    consistency_weight: Annotated[Number, Field(ge=0)]
    entropy_weight: Annotated[Number, Field(ge=0)]

    def bind(self, workspace: Workspace, where: str) -> Consistency:
        return self

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        x = torch.cat([self.noisy(batch, copy) for copy in range(self.copies)])
        return lambda model: self._value(model, batch, x)

    def _value(self, model: nn.Module, batch: Batch, x: Tensor) -> LossValue:
        logits = logits_of(model, x).view(self.copies, len(batch.y), -1)
        entropies = F.cross_entropy(logits.flatten(0, 1), batch.y.repeat(self.copies))
        penalty = inconsistency(logits, self.consistency_weight, self.entropy_weight).mean()
        return LossValue(entropies + penalty, correct(logits[0], batch.y), None)


def inconsistency(logits: Tensor, consistency_weight: float, entropy_weight: float) -> Tensor:
    """(row,) λ·mean_i KL(p̄ ‖ p_i) + η·H(p̄) of the answers p_i = softmax(logits[i]), logits (copy, row, classes)."""
    log_p = logits.log_softmax(2)
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    mean = log_mean.exp()
    divergence = (mean * (log_mean - log_p)).sum(2).mean(0)
    entropy = -(mean * log_mean).sum(1)
    return consistency_weight * divergence + entropy_weight * entropy
