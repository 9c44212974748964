"""The learning rate over time, as a factor of the optimiser's own. Every schedule starts with a linear warm-up."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from robustbench_vit.cards import Number
from robustbench_vit.defenses.registry import register, settings

NotNegative = Annotated[Number, Field(ge=0)]


@register("schedule", "cosine")
@settings
class Cosine:
    """Half a cosine from 1 to `final_factor`, after `warmup_epochs` of linear increase."""

    warmup_epochs: NotNegative
    final_factor: Annotated[Number, Field(ge=0, le=1)]

    def at(self, epochs_done: float, epochs: int) -> float:
        if epochs_done < self.warmup_epochs:
            return epochs_done / self.warmup_epochs
        done = (epochs_done - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-9)
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@register("schedule", "step")
@settings
class Step:
    """Multiplied by `factor` at each of `milestones` (in epochs), after `warmup_epochs` of linear increase."""

    warmup_epochs: NotNegative
    milestones: list[Number]
    factor: Annotated[Number, Field(gt=0, le=1)]

    def at(self, epochs_done: float, epochs: int) -> float:
        passed = sum(epochs_done >= milestone for milestone in self.milestones)
        warm = min(epochs_done / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return warm * self.factor**passed
