"""Attack algorithms by name, and from a card to an attack."""

from __future__ import annotations

import dataclasses
import pkgutil
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from robustbench_vit.cards import AlgorithmCard, Loaded
from robustbench_vit.cards.faults import describe
from robustbench_vit.errors import CardError
from robustbench_vit.registry import Registry

NormName = Literal["linf", "l2", "l1"]
NORM_NAMES: tuple[str, ...] = get_args(NormName)

settings = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
"""Makes an attack a frozen dataclass whose fields are checked; none of them has a default."""

algorithms: Registry[type[Any]] = Registry(
    "algorithm",
    "robustbench_vit.attacks",
    tuple(f"{__package__}.{module.name}" for module in pkgutil.iter_modules([str(Path(__file__).parent)])),
)


def setting_names(algorithm: type[Any]) -> list[str]:
    """The fields a card of this algorithm states."""
    return [field.name for field in dataclasses.fields(algorithm) if field.name != "norm"]


def build_attack(loaded: Loaded[AlgorithmCard], norm: str) -> Any:
    """The attack a card describes, for budgets in `norm`; raises CardError with every fault of its settings."""
    algorithm = algorithms.get(loaded.card.algorithm, loaded.shown)
    if norm not in algorithm.norms:
        raise CardError(
            f"{loaded.shown}: algorithm '{loaded.card.algorithm}' works in {', '.join(algorithm.norms)}, not in {norm}"
        )
    try:
        return algorithm(**loaded.card.settings, norm=norm)
    except ValidationError as error:
        known = {"": (*AlgorithmCard.model_fields, *setting_names(algorithm), "extends")}
        raise CardError(describe(error, loaded.shown, known)) from error


def attack_faults(loaded: Loaded[AlgorithmCard]) -> list[str]:
    """Everything wrong with a card's algorithm and settings, for `rbvit check`."""
    try:
        norms = algorithms.get(loaded.card.algorithm, loaded.shown).norms
        build_attack(loaded, norms[0])
    except CardError as error:
        return error.faults
    except Exception as error:  # an unknown name, or a plug-in that does not load: a fault of this card
        return [str(error)]
    return []
