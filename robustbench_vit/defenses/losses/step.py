"""What the losses of this package have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from robustbench_vit.defenses.registry import Batch, LossValue
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import CardError

Rest = Callable[[nn.Module], LossValue]
"""What is left of a step once its images are fixed: from the model, or one with other weights, to the loss."""


class StepLoss:
    """A loss whose steps come in two parts; it remembers nothing unless a subclass says otherwise."""

    def prepare(self, model: nn.Module, batch: Batch) -> Rest:
        """Does what a step does once, such as the attack, and returns the rest."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        return self.prepare(model, batch)(model)

    def start(self, model: nn.Module, image: Tensor) -> Self:
        """The loss for one training run."""
        return self

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """(row, classes) the model's logits in float32 at least: on mixed precision's logits losses would lose digits."""
    logits = unwrap(model(x))
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """How many rows are classified right (int64 scalar)."""
    return (logits.argmax(1) == y).sum()


def within_pixel_range(value: float) -> float:
    """`value`, a size in the unit of pixels; raises ValueError when it exceeds their whole range."""
    if value > 1:
        raise ValueError(f"{value:g} is larger than the whole range of a pixel in [0, 1]; did you mean {value:g}/255?")
    return value


def card_error(where: str, name: str, fault: str) -> CardError:
    """A fault of the setting `name` of the card's loss."""
    return CardError(f"{where}: field 'loss.{name}': {fault}")
