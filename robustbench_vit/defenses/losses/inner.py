"""The inner attack of adversarial training: a card's own steps, in a stated mode, with a radius that grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from robustbench_vit.attacks.losses import LOSSES, kl_divergence
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.pgd import PGD
from robustbench_vit.attacks.registry import NormName, build_attack
from robustbench_vit.attacks.rows import Start, spread
from robustbench_vit.cards import AlgorithmCard, Loaded, Number, Workspace
from robustbench_vit.defenses.losses.step import card_error, logits_of, within_pixel_range
from robustbench_vit.defenses.registry import Batch, settings
from robustbench_vit.engine.oracle import frozen

Raised = Callable[[Tensor], Tensor]
"""What an attack makes large: from logits (row, classes) to values (row,)."""
Aim = Callable[[nn.Module, Batch], Raised]
"""What an attack makes large, as far as it depends on the model before the attack."""


@settings
class Attacked:
    """What every loss with an inner attack states.

    The attack's radius grows linearly from 0 to `eps` over `eps_warmup_epochs`: small models learn better that way
    (docs/vit-recipe.md). `mode` is the mode the model is in while it is attacked; eval keeps dropout and batch
    statistics out.
    """

    attack: str
    norm: NormName
    eps: Annotated[Number, Field(gt=0)]
    eps_warmup_epochs: Annotated[Number, Field(ge=0)]
    mode: Literal["eval", "train"]

    @field_validator("eps")
    @classmethod
    def _unit(cls, eps: float, info: ValidationInfo) -> float:
        return within_pixel_range(eps) if info.data.get("norm") == "linf" else eps

    def attack_card(self, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
        return inner_card(self.attack, workspace, where)

    def inner(self, workspace: Workspace, where: str) -> InnerAttack:
        """The inner attack, ready to run."""
        return InnerAttack(self, build_attack(self.attack_card(workspace, where), self.norm))

    def radius(self, epochs_done: float) -> float:
        """The attack's eps after this much training."""
        return self.eps * min(epochs_done / self.eps_warmup_epochs, 1.0) if self.eps_warmup_epochs else self.eps


def inner_card(name: str, workspace: Workspace, where: str, field: str = "attack") -> Loaded[AlgorithmCard]:
    """The attack card `name` that the loss's setting `field` names; raises CardError unless it is a PGD."""
    loaded = workspace.attack(name, f"{where}: field 'loss.{field}'")
    if not isinstance(loaded.card, AlgorithmCard) or loaded.card.algorithm != "pgd":
        raise card_error(where, field, f"the inner attack is a card of algorithm 'pgd', not '{name}'")
    return loaded


def moving_card(name: str, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
    """The inner attack's card of a loss that aims at the KL divergence from the clean answer.

    Raises CardError when it starts at the clean image, where that divergence is flat and no step leads away.
    """
    loaded = inner_card(name, workspace, where)
    if loaded.card.settings.get("random_start") is False:
        raise card_error(
            where,
            "attack",
            f"'{name}' starts at the clean image, where the KL divergence has no gradient;"
            " name a card with 'random_start: true'",
        )
    return loaded


@dataclass(frozen=True)
class InnerAttack:
    """An attack as training runs it."""

    settings: Attacked
    attack: PGD

    def __call__(self, model: nn.Module, batch: Batch, aim: Aim | None = None) -> Tensor:
        """The attacked images (row, c, h, w), without a graph; the model's mode comes back.

        `aim` takes the place of the attack card's own loss.
        """
        with in_mode(model, self.settings.mode):
            raised = None if aim is None else aim(model, batch)
            return perturb(self.attack, model, batch, self.settings.radius(batch.epochs_done), raised)


@contextmanager
def in_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """While open, the model is in that mode; then it is in the one it was in."""
    training = model.training
    model.train(mode == "train")
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def away_from_clean(model: nn.Module, batch: Batch) -> Raised:
    """KL(p(x) ‖ p(x')) with the model's answer to the clean images as it is now, a constant."""
    return partial(kl_divergence, clean=logits_of(model, batch.x))


def perturb(attack: PGD, model: nn.Module, batch: Batch, eps: float, raised: Raised | None = None) -> Tensor:
    """The last points (row, c, h, w) of `attack` with radius `eps` against the model in its present mode.

    They are what the attack's own steps reach, to the bit on batches that the engine wouldn't pad. Here the batch is a
    whole: no row is done before the others, none is looked at on the way, and nobody asks about the last point, because
    the training step does. `raised` takes the place of the attack's loss.
    """
    x0, y, loss, ball = batch.x, batch.y, LOSSES[attack.loss], NORMS[attack.norm]
    value = raised or (lambda z: loss(z, y, y))
    radius = x0.new_full((len(x0),), eps)
    x = attack.init(Start(x0, y, torch.full_like(y, -1), radius, torch.zeros_like(y)), batch.noise).x
    step_size = spread(attack.step_size * radius, x0)
    with frozen(model):
        for _ in range(attack.steps):
            at = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(value(logits_of(model, at)).sum(), at)
            x = ball.project(x + step_size * ball.steepest_from(x, grad), x0, radius)
    return x
