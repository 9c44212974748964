"""The one training loop.

All randomness is derived from (seed, epoch): the order of samples and their augmentation from an explicit generator,
the inner attack's noise from keys, and dropout layers, which know the global generator only, from that one inside a
scope that puts it back. A run that was killed goes on after its last whole epoch and ends with the same bits, on the
same kind of machine with the same number of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustbench_vit.cards import Workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.checkpoint import WEIGHTS, EpochLog, claim, load_state, logged
from robustbench_vit.defenses.randomness import derived, seeded
from robustbench_vit.defenses.recipe import Recipe, apply_architecture, build_recipe
from robustbench_vit.defenses.selection import finished
from robustbench_vit.defenses.shares import find_shares
from robustbench_vit.defenses.trainer import Trainer
from robustbench_vit.defenses.validation import accuracy
from robustbench_vit.errors import InputError, StorageError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights

__all__ = ["Trainer", "accuracy", "derived", "seeded", "train", "train_defense"]

Progress = Callable[[EpochLog], None]


def train_defense(
    defense_name: str,
    model_name: str,
    data_name: str,
    out: Path,
    seed: int,
    device: str,
    workspace: Workspace,
    progress: Progress | None = None,
    epochs: int | None = None,
    model_args: dict[str, Any] | None = None,
) -> Path:
    """Trains a model by a defense card on the train split of a dataset; returns the weights file.

    `epochs` replaces the card's. The model is built for the data's classes and channels; `model_args` add to that.
    """
    recipe = build_recipe(workspace.defense(defense_name), workspace)
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"epochs is at least 1, got {epochs}")
        recipe = dataclasses.replace(recipe, card=recipe.card.model_copy(update={"epochs": epochs}))
    data = load_dataset(data_name, "train")
    args = {"num_classes": data.num_classes, "in_chans": data.x.shape[1], **(model_args or {})}
    with seeded(derived(seed, "init"), torch.device("cpu")):
        model = apply_architecture(recipe, build_model(model_name, **args))
    return train(recipe, model, data, None, out, seed, device, progress, model_name, model_args)


def train(
    recipe: Recipe,
    model: nn.Module,
    data_train: Dataset,
    data_valid: Dataset | None,
    out: Path,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
    model_name: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Path:
    """Trains `model` (with the recipe's architecture, see `apply_architecture`) in place; returns the weights file.

    Kept are the weights (their average, when the recipe has one) of the last epoch; with `validation` on the card those
    of the best one, on samples held out of `data_train`. `data_valid` is only reported on.
    `out` gets run.json, log.csv and, after every epoch, weights.safetensors and state.pt. Called again it goes on after
    the last whole epoch, and does nothing when all are done. Raises InputError when `out` belongs to another run or
    training diverges, StorageError when `out` cannot be written; what was saved stays good.
    """
    if data_valid is not None and recipe.card.validation is not None:
        raise InputError("the card holds validation samples out of the training set; leave out data_valid")
    run = {
        "defense": recipe.name,
        "recipe": recipe.digest,
        "model": model_name or type(model).__name__,
        **({"model_args": dict(model_args)} if model_args else {}),
        "data": f"{data_train.name}/{data_train.split}",
        "data_sha256": data_train.source_sha256,
        "samples": len(data_train),
        "seed": seed,
    }
    out = Path(out)
    shares, place = find_shares(device)
    claim(out, run)
    state = load_state(out)
    if state is None or not finished(logged(state), recipe.card):
        trainer = Trainer(recipe, model.to(place), data_train, seed, place, shares)
        if state is not None:
            trainer.restore(state, out)
        shares.wait()  # nobody reads while the first one writes
        _run(trainer, recipe, data_valid, out, run, progress)
        shares.wait()
    load_weights(model, out / WEIGHTS)
    model.eval()
    return out / WEIGHTS


def _run(
    trainer: Trainer,
    recipe: Recipe,
    data_valid: Dataset | None,
    out: Path,
    run: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    """Trains to the end, saving after every epoch."""
    metadata = {key: str(value) for key, value in run.items()}
    while not finished(trainer.log, recipe.card):
        entry = trainer.run_epoch(data_valid)
        if not trainer.writes:
            continue
        try:
            trainer.save(out, metadata)
        except StorageError as error:
            raise StorageError(f"{error}; {_kept(entry)}") from error
        if progress is not None:
            progress(entry)


def _kept(entry: EpochLog) -> str:
    """What is safe when saving an epoch failed."""
    last = entry.epoch - 1
    safe = f"what was saved after epoch {last} is whole" if last else "nothing was saved before"
    return f"{safe}. Free some space and run the same command again to go on"
