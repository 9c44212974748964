"""The parts of a recipe by name, and from a card's component to a part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, cast, dataclass_transform, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustbench_vit.attacks.noise import Noise
from robustbench_vit.attacks.registry import settings as checked
from robustbench_vit.cards import Component, Workspace
from robustbench_vit.cards.faults import describe
from robustbench_vit.errors import CardError
from robustbench_vit.registry import Registry

__all__ = [
    "PARTS",
    "Batch",
    "Kind",
    "LossValue",
    "RunningLoss",
    "TrainingLoss",
    "build_part",
    "part_settings",
    "register",
    "settings",
    "started",
]

Kind = Literal["architecture", "loss", "regulariser", "optimiser", "schedule", "augment"]


P = TypeVar("P")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(part: type[P]) -> type[P]:
    """The class as a frozen dataclass whose fields are checked; none of them has a default."""
    return cast(type[P], checked(part))


@dataclass(frozen=True)
class Batch:
    """What a training loss sees of one step."""

    x: Tensor  # (row, c, h, w) in [0, 1]
    y: Tensor  # (row,)
    keys: Callable[[], Tensor]  # int64 (row, 2), by seed, sample and epoch
    epochs_done: float  # how much training lies behind, in epochs

    @cached_property
    def noise(self) -> Noise:
        """The rows' draws. Their keys are hashed for losses that ask only: a bare loop has nothing like it."""
        return Noise(self.keys())


@dataclass(frozen=True)
class LossValue:
    """A loss with what it saw on the way."""

    loss: Tensor  # scalar, with a graph
    clean_correct: Tensor  # int64 scalar on the model's device: nobody waits for it before the epoch's end
    robust_correct: Tensor | None  # likewise, under the inner attack; None without one


class TrainingLoss(Protocol):
    """From a model in train mode and a batch to the loss to minimise."""

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue: ...


@runtime_checkable
class Starting(Protocol):
    """A training loss that wants to see the model first, or that remembers something from step to step."""

    def start(self, model: nn.Module, image: Tensor) -> RunningLoss:
        """The loss for one training run; `image` (1, c, h, w) is an input. Raises InputError when the two don't fit."""
        ...


class RunningLoss(TrainingLoss, Protocol):
    """A training loss at work on one model; resumed runs need its state."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Preparing(TrainingLoss, Protocol):
    """A training loss in two parts, so that it can be asked about the same images at several weights."""

    def prepare(self, model: nn.Module, batch: Batch) -> Callable[[nn.Module], LossValue]:
        """Does what a step does once (the attack, a teacher's answers); returns the rest, a function of the model."""
        ...


@dataclass(frozen=True)
class Unchanging:
    """A training loss that remembers nothing, as a running one."""

    loss: TrainingLoss

    def __call__(self, model: nn.Module, batch: Batch) -> LossValue:
        return self.loss(model, batch)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def started(loss: TrainingLoss, model: nn.Module, image: Tensor) -> RunningLoss:
    """The loss for one training run of `model`; `image` (1, c, h, w) is an input on the model's device."""
    return loss.start(model, image) if isinstance(loss, Starting) else Unchanging(loss)


class Architecture(Protocol):
    """A change of the model, made before training and again whenever trained weights are loaded."""

    def apply(self, model: nn.Module) -> nn.Module: ...


class LossSettings(Protocol):
    """Settings of a loss; attack cards it names are looked up in the workspace (`where` names the card, for errors)."""

    def bind(self, workspace: Workspace, where: str) -> TrainingLoss: ...

    def attack_card(self, workspace: Workspace, where: str) -> Any: ...


@runtime_checkable
class Relying(Protocol):
    """Settings of a loss for which more than the card and the inner attack decides the trained weights."""

    def relies_on(self, workspace: Workspace, where: str) -> dict[str, Any]:
        """What that is, as JSON values by name; raises CardError or InputError for what cannot be relied on."""
        ...


class RunningRegulariser(Protocol):
    """A regulariser at work on one model."""

    def before_step(self) -> None:
        """Adds its part to the gradients, after the loss's backward pass and before the optimiser's step."""
        ...

    def after_step(self) -> None:
        """Puts weights back where they are allowed to be, after the optimiser's step."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


class Regulariser(Protocol):
    """Settings of a regulariser; `image` (1, c, h, w) is an input of the right shape."""

    def attach(self, model: nn.Module, image: Tensor) -> RunningRegulariser: ...


class OptimiserSettings(Protocol):
    """Settings of an optimiser."""

    def build(self, model: nn.Module) -> torch.optim.Optimizer: ...


class Schedule(Protocol):
    """The learning rate over time."""

    def at(self, epochs_done: float, epochs: int) -> float:
        """What the optimiser's learning rate is multiplied by."""
        ...


class Augment(Protocol):
    """A random change of training images; all randomness comes from `generator` (on the CPU)."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


_PACKAGE = "robustbench_vit.defenses"
PARTS: dict[Kind, Registry[type[Any]]] = {
    "architecture": Registry("architecture", f"{_PACKAGE}.architectures", (f"{_PACKAGE}.architectures",)),
    "loss": Registry("loss", f"{_PACKAGE}.losses", (f"{_PACKAGE}.losses",)),
    "regulariser": Registry(
        "regulariser", f"{_PACKAGE}.regularisers", (f"{_PACKAGE}.norm_decay", f"{_PACKAGE}.projections")
    ),
    "optimiser": Registry("optimiser", f"{_PACKAGE}.optimisers", (f"{_PACKAGE}.optimisers",)),
    "schedule": Registry("schedule", f"{_PACKAGE}.schedules", (f"{_PACKAGE}.schedules",)),
    "augment": Registry("augment", f"{_PACKAGE}.augments", (f"{_PACKAGE}.augment",)),
}
"""What a recipe is made of. Installed packages add parts by entry points, one group per kind."""


def register(kind: Kind, name: str) -> Any:
    """A decorator that registers a settings class as the `kind` called `name`."""
    return PARTS[kind].register(name)


def part_settings(part: type[Any]) -> list[str]:
    """The fields a card states for this part, beside its name."""
    return [field.name for field in dataclasses.fields(part)]


def build_part(kind: Kind, component: Component, where: str, place: tuple[str, ...]) -> Any:
    """The part a card's component describes; `place` is where it stands on the card `where`.

    Raises UnknownNameError for a name nobody registered, CardError with every fault of its settings.
    """
    part = PARTS[kind].get(component.name, f"{where}: field '{'.'.join((*place, 'name'))}'")
    try:
        return part(**component.settings)
    except ValidationError as error:
        parent = ".".join(word for word in place if not word.isdigit())
        raise CardError(describe(error, where, {parent: part_settings(part)}, place)) from error
