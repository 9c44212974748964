"""One model from the command line: built by name, weights from a file, evaluated in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from robustbench_vit.cards import Workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.recipe import apply_architecture
from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.normalise import normalised
from robustbench_vit.models.weights import load_weights
from robustbench_vit.plan import SMOKE_SAMPLES


@dataclass(frozen=True)
class ModelChoice:
    """A model as the command line names it."""

    name: str
    weights: Path | None
    defense: str | None  # whose architecture change the weights were trained with
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    args: Mapping[str, Any] = field(default_factory=dict)  # of its builder
    num_classes: int | None = None  # default: the dataset's; the model's own for a user's arrays, which may lack some


def chosen_data(name: str, split: str, n: int | None, smoke: bool) -> Dataset:
    """The first n samples of a dataset; a smoke profile takes few."""
    data = load_dataset(name, split)
    return data.first(min(n or SMOKE_SAMPLES, SMOKE_SAMPLES, len(data)) if smoke else n)


def choose_model(choice: ModelChoice, data: Dataset, workspace: Workspace) -> tuple[Any, dict[str, Any]]:
    """The model in eval mode, and what a record says of it; raises InputError when its weights are nowhere."""
    if choice.weights is None:
        raise InputError(
            f"say where the weights of '{choice.name}' come from: --weights FILE; random ones mean nothing"
        )
    if (choice.mean is None) != (choice.std is None):
        raise InputError("--mean and --std belong together: give both or neither")
    shape = _shape(choice, data)
    model = build_model(choice.name, **shape)
    if choice.defense is not None:
        model = apply_architecture(workspace.defense(choice.defense).card, model)
    sha256 = load_weights(model, choice.weights)
    if choice.mean is not None and choice.std is not None:
        model = normalised(model, choice.mean, choice.std)
    about = {
        "name": choice.name,
        "model": choice.name,
        "model_args": shape,
        "defense": choice.defense,
        "weights": choice.weights.name,
        "weights_sha256": sha256,
        "normalise": {"mean": list(choice.mean), "std": list(choice.std)} if choice.mean and choice.std else None,
    }
    return model.eval(), about


def _shape(choice: ModelChoice, data: Dataset) -> dict[str, Any]:
    """The builder's arguments: those that follow from the data, and those that were given."""
    classes = choice.num_classes or (None if data.name == "npz" else data.num_classes)
    return {"in_chans": data.x.shape[1], **({"num_classes": classes} if classes else {}), **choice.args}


def builder_args(texts: Sequence[str]) -> dict[str, Any]:
    """'keep_rate=0.7' and the like as arguments of a model's builder, values read as YAML; raises InputError."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            once = f"'{name}' is given twice" if name in found else f"expected NAME=VALUE, got '{text}'"
            raise InputError(f"--model-arg: {once}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--model-arg {name}: not a value: {value}") from error
    return found


def numbers(text: str, option: str) -> tuple[float, ...]:
    """'0.49,0.48,0.45' as numbers; raises InputError naming the option."""
    from robustbench_vit.cards import parse_number

    try:
        return tuple(parse_number(part) for part in _parts(text))
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def _parts(text: str) -> Sequence[str]:
    return text.replace(" ", ",").strip(",").split(",")
