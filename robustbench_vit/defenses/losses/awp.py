"""AWP, adversarial weight perturbation, around any other loss (arXiv:2004.05884)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from robustbench_vit.attacks.norms import TINY
from robustbench_vit.cards import Component, Number, Workspace
from robustbench_vit.defenses.losses.step import Rest, card_error
from robustbench_vit.defenses.registry import (
    Batch,
    LossValue,
    Preparing,
    Relying,
    RunningLoss,
    build_part,
    register,
    settings,
    started,
)
from robustbench_vit.errors import CardError, RobustbenchError


@register("loss", "awp")
@settings
class WeightPerturbation:
    """The loss `of`, at weights moved to where it is larger (arXiv:2004.05884, eq. 10).

    Each weight w of two or more dimensions moves by γ·‖w‖ along the loss's gradient of norm 1, on images that were
    attacked at the weights as they are; the gradient there is what the optimiser gets, and the weights themselves don't
    move. Biases, normalisation and position tables stay. Before `from_epoch` it is the loss alone.
    """

    whole_batch: ClassVar[bool] = True  # where the weights move to hangs on the loss of them all

    gamma: Annotated[Number, Field(gt=0)]
    from_epoch: Annotated[Number, Field(ge=0)]
    of: Component

    def attack_card(self, workspace: Workspace, where: str) -> Any:
        """The inner attack's card of the loss `of`."""
        part = self._part(where)
        with _inside():
            return part.attack_card(workspace, where)

    def relies_on(self, workspace: Workspace, where: str) -> dict[str, Any]:
        part = self._part(where)
        with _inside():
            return part.relies_on(workspace, where) if isinstance(part, Relying) else {}

    def bind(self, workspace: Workspace, where: str) -> WeightPerturbedLoss:
        part = self._part(where)
        with _inside():
            loss = part.bind(workspace, where)
        if not isinstance(loss, Preparing):
            raise card_error(
                where, "of", f"'{self.of.name}' has no 'prepare', so it can't be asked twice about one attack's images"
            )
        return WeightPerturbedLoss(self, loss)

    def _part(self, where: str) -> Any:
        """The settings of the loss `of`; raises CardError with every fault of them."""
        if self.of.name == "awp":
            raise card_error(where, "of.name", "awp goes around another loss, not around itself")
        return build_part("loss", self.of, where, ("loss", "of"))


@contextmanager
def _inside() -> Iterator[None]:
    """Faults that the loss `of` finds are of fields one level further down than it knows."""
    try:
        yield
    except RobustbenchError as error:
        faults = str(error).splitlines()
        raise CardError([fault.replace("field 'loss.", "field 'loss.of.") for fault in faults]) from error


@dataclass(frozen=True)
class WeightPerturbedLoss:
    """`WeightPerturbation` with its loss."""

    settings: WeightPerturbation
    of: Preparing

    def start(self, model: nn.Module, image: Tensor) -> RunningWeightPerturbedLoss:
        memory = started(self.of, model, image)
        return RunningWeightPerturbedLoss(self.settings, memory if isinstance(memory, Preparing) else self.of, memory)

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        return self.start(model, batch.x[:1])(model, batch)


@dataclass(frozen=True)
class RunningWeightPerturbedLoss:
    """A loss at perturbed weights, in one training run."""

    settings: WeightPerturbation
    of: Preparing
    memory: RunningLoss  # what the loss `of` remembers; the same object for our own losses

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        rest = self.of.prepare(model, batch)
        if batch.epochs_done < self.settings.from_epoch:
            return rest(model)
        return rest(Moved(model, worse_weights(rest, model, self.settings.gamma)))

    def state(self) -> dict[str, Any]:
        return self.memory.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.memory.restore(state)


class Moved(nn.Module):
    """A model as it would be with `steps` added to its weights; gradients go to the weights, which stay.

    `buffers` take the place of the model's own, so that batch statistics can be kept from seeing a batch twice.
    """

    def __init__(self, model: nn.Module, steps: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.model, self._steps, self._buffers_instead = model, dict(steps), dict(buffers or {})

    def forward(self, x: Tensor) -> Any:
        weights = dict(self.model.named_parameters())
        moved = {name: weights[name] + step for name, step in self._steps.items()}
        return functional_call(self.model, {**moved, **self._buffers_instead}, (x,))


def worse_weights(rest: Rest, model: nn.Module, gamma: float) -> dict[str, Tensor]:
    """How far each perturbed weight moves, by name: γ·‖w‖·g/‖g‖ with g the gradient of the loss at the weights."""
    weights = {
        name: weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.dim() >= 2 and name.rpartition(".")[2] == "weight"
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = rest(Moved(model, {}, buffers)).loss
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    with torch.no_grad():
        return {
            name: gamma * weight.norm() / (grad.norm() + TINY) * grad
            for (name, weight), grad in zip(weights.items(), grads, strict=True)
            if grad is not None
        }
