"""From a defense card to what training needs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from robustbench_vit.attacks.registry import attack_faults
from robustbench_vit.cards import Component, DefenseCard, Loaded, Workspace
from robustbench_vit.defenses.registry import (
    Architecture,
    Augment,
    Kind,
    LossSettings,
    OptimiserSettings,
    Regulariser,
    Relying,
    Schedule,
    TrainingLoss,
    build_part,
)
from robustbench_vit.errors import CardError, RobustbenchError

if TYPE_CHECKING:
    from robustbench_vit.defenses.validation import RobustCheck

PROSE = {"about", "reference"}
YOUNGER = {"precision": "fp32", "validation": None}
"""Fields that came later, with what training was like before: such cards keep the digest that their weights name."""


@dataclass(frozen=True)
class Recipe:
    """A defense card with its parts built."""

    name: str
    card: DefenseCard
    attack: dict[str, Any] | None  # the inner attack's card, in case it changes
    relies_on: dict[str, Any]  # what else beside the card decides the weights: a teacher, another attack's card
    architecture: Architecture | None
    loss: TrainingLoss
    regularisers: tuple[Regulariser, ...]
    optimiser: OptimiserSettings
    schedule: Schedule
    augment: Augment | None
    validation: RobustCheck | None
    whole_batch: bool  # whether the loss has to see whole batches, so that processes can't share them

    @property
    def digest(self) -> str:
        """sha256 of every setting that decides the trained weights; the prose of cards is left out."""
        card = self.card.model_dump(exclude=PROSE)
        card = {name: value for name, value in card.items() if name not in YOUNGER or value != YOUNGER[name]}
        fields = {"card": card, "attack": self.attack}
        if self.relies_on:  # recipes that rely on nothing else keep the digest that their weights name
            fields["relies_on"] = self.relies_on
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def build_recipe(loaded: Loaded[DefenseCard], workspace: Workspace) -> Recipe:
    """The recipe a card describes; raises CardError with every fault of its parts and their settings."""
    if faults := defense_faults(loaded, workspace):
        raise CardError(faults)
    card, where = loaded.card, loaded.shown
    parts = {place: build_part(kind, part, where, place) for kind, part, place in _components(card)}
    loss = parts[("loss",)]
    attack = loss.attack_card(workspace, where)
    return Recipe(
        name=loaded.name,
        card=card,
        attack=None if attack is None else attack.card.model_dump(exclude=PROSE),
        relies_on={**_relies_on(loss, workspace, where), **_validation_attack(card, workspace, where)},
        architecture=parts.get(("architecture",)),
        loss=loss.bind(workspace, where),
        regularisers=tuple(parts["regularisers", str(i)] for i in range(len(card.regularisers))),
        optimiser=parts[("optimiser",)],
        schedule=parts[("schedule",)],
        augment=parts.get(("augment",)),
        validation=_validation(card, workspace, where),
        whole_batch=getattr(loss, "whole_batch", False),
    )


def apply_architecture(recipe: Recipe | DefenseCard, model: nn.Module) -> nn.Module:
    """The model as the recipe (or card) trains it: trained weights fit this one. May change `model` in place."""
    change = recipe.architecture
    if isinstance(change, Component):
        change = build_part("architecture", change, "the defense card", ("architecture",))
    return model if change is None else change.apply(model)


def defense_faults(loaded: Loaded[DefenseCard], workspace: Workspace) -> list[str]:
    """Everything wrong with a defense card's parts and their settings, for `rbvit check`."""
    card, where = loaded.card, loaded.shown
    faults: list[str] = []
    for kind, part, place in _components(card):
        try:
            built = build_part(kind, part, where, place)
            if kind == "loss":
                faults += _loss_faults(built, workspace, where)
        except CardError as error:
            faults += error.faults
        except RobustbenchError as error:
            faults.append(str(error))
    try:
        _validation(card, workspace, where)
    except CardError as error:
        faults += error.faults
    except RobustbenchError as error:
        faults.append(str(error))
    for name, low, high in (("gradient_clip", 0.0, float("inf")), ("weight_average", 0.0, 1.0)):
        value = getattr(card, name)
        if value is not None and not low < value < high:
            faults.append(f"{where}: field '{name}': should lie between {low:g} and {high:g}, got {value:g}")
    return faults


def _loss_faults(loss: LossSettings, workspace: Workspace, where: str) -> list[str]:
    """Everything wrong with what a loss names beside its own settings."""
    attack = loss.attack_card(workspace, where)
    faults = [] if attack is None else attack_faults(attack)
    _relies_on(loss, workspace, where)
    return faults


def _relies_on(loss: LossSettings, workspace: Workspace, where: str) -> dict[str, Any]:
    return loss.relies_on(workspace, where) if isinstance(loss, Relying) else {}


def _validation(card: DefenseCard, workspace: Workspace, where: str) -> RobustCheck | None:
    from robustbench_vit.defenses.validation import card_check  # it runs the losses' steps, and they import this module

    return None if card.validation is None else card_check(card.validation, workspace, where)


def _validation_attack(card: DefenseCard, workspace: Workspace, where: str) -> dict[str, Any]:
    from robustbench_vit.defenses.validation import validation_card

    if card.validation is None:
        return {}
    loaded = validation_card(card.validation, workspace, where)
    return {"validation_attack": loaded.card.model_dump(exclude=PROSE)}


def _components(card: DefenseCard) -> list[tuple[Kind, Component, tuple[str, ...]]]:
    """The components a card states, each with its kind and its place on the card."""
    single: list[tuple[Kind, Component | None]] = [
        ("architecture", card.architecture),
        ("loss", card.loss),
        ("optimiser", card.optimiser),
        ("schedule", card.schedule),
        ("augment", card.augment),
    ]
    found: list[tuple[Kind, Component, tuple[str, ...]]] = [(k, part, (k,)) for k, part in single if part is not None]
    for i, part in enumerate(card.regularisers):
        found.append(("regulariser", part, ("regularisers", str(i))))
    return found
