"""The one training loop.

All randomness is derived from (seed, epoch): the order of samples and their augmentation from an explicit generator,
the inner attack's noise from keys, and dropout layers, which know the global generator only, from that one inside a
scope that puts it back. A run that was killed goes on after its last whole epoch and ends with the same bits, on the
same kind of machine with the same number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.cards import Workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.checkpoint import (
    STATE,
    WEIGHTS,
    EpochLog,
    claim,
    load_state,
    save_log,
    save_state,
)
from robustbench_vit.defenses.recipe import Recipe, apply_architecture, build_recipe
from robustbench_vit.defenses.registry import Batch, LossValue, started
from robustbench_vit.defenses.weight_average import WeightAverage
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights, save_weights

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

    The last epoch's weights are kept (their average, when the recipe has one); validation data is only reported on.
    `out` gets run.json, log.csv and, after every epoch, weights.safetensors and state.pt. Called again it goes on after
    the last whole epoch, and does nothing when all are done. Raises InputError when `out` belongs to another run or
    the loss stops being finite.
    """
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
    claim(out, run)
    state = load_state(out)
    if state is not None and state["epoch"] == recipe.card.epochs and (out / WEIGHTS).is_file():
        load_weights(model, out / WEIGHTS)
        return out / WEIGHTS
    trainer = Trainer(recipe, model.to(device), data_train, seed, torch.device(device))
    if state is not None:
        trainer.restore(state, out)
    while trainer.epoch < recipe.card.epochs:
        entry = trainer.run_epoch(data_valid)
        trainer.save(out, {key: str(value) for key, value in run.items()})
        if progress is not None:
            progress(entry)
    model.load_state_dict(trainer.kept.state_dict())
    model.eval()
    return out / WEIGHTS


class Trainer:
    """A training run between two epochs."""

    def __init__(self, recipe: Recipe, model: nn.Module, data: Dataset, seed: int, device: torch.device) -> None:
        self.epoch = 0
        self.log: list[EpochLog] = []
        self._recipe, self._model, self._data, self._seed, self._device = recipe, model, data, seed, device
        self._optimiser = recipe.optimiser.build(model)
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        image = torch.from_numpy(data.x[:1]).to(device)
        self._loss = started(recipe.loss, model, image)
        self._regularisers = [settings.attach(model, image) for settings in recipe.regularisers]
        decay = recipe.card.weight_average
        self._average = None if decay is None else WeightAverage(model, decay)
        # With fewer samples than a batch the whole set is the batch; else an incomplete last batch is left out.
        self._batch = min(recipe.card.batch_size, len(data))
        self._steps = len(data) // self._batch

    @property
    def kept(self) -> nn.Module:
        """The model whose weights are kept."""
        return self._model if self._average is None else self._average.model

    def run_epoch(self, data_valid: Dataset | None) -> EpochLog:
        """Trains for one epoch and returns what it looked like."""
        generator = torch.Generator().manual_seed(derived(self._seed, self.epoch, "order"))
        order = torch.randperm(len(self._data), generator=generator)
        seen = []
        self._model.train()
        with seeded(derived(self._seed, self.epoch, "layers"), self._device):
            for step in range(self._steps):
                index = order[step * self._batch : (step + 1) * self._batch]
                seen.append(self._step(step, self._batch_at(index, step, generator)))
                self._check(seen[max(step - 1, 0)].loss)  # one late: reading it now would wait for the device
        self._check(seen[-1].loss)
        self.epoch += 1
        valid = None if data_valid is None else accuracy(self.kept, data_valid, self._device)
        self.log.append(self._summary(seen, valid))
        return self.log[-1]

    def _step(self, step: int, batch: Batch) -> LossValue:
        """One update of the weights."""
        number = self.epoch * self._steps + step + 1
        factor = self._recipe.schedule.at(number / self._steps, self._recipe.card.epochs)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimiser.zero_grad()
        value = self._loss(self._model, batch)
        value.loss.backward()
        if self._recipe.card.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.card.gradient_clip)
        for regulariser in self._regularisers:  # after clipping, so that their pull is the one the card states
            regulariser.before_step()
        self._optimiser.step()
        for regulariser in self._regularisers:
            regulariser.after_step()
        if self._average is not None:
            self._average.update(self._model, number)
        return dataclasses.replace(value, loss=value.loss.detach())

    def _check(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise InputError(f"the loss became {loss.item()} in epoch {self.epoch + 1}; lower the learning rate")

    def _batch_at(self, index: Tensor, step: int, generator: torch.Generator) -> Batch:
        positions, epoch = index.numpy(), self.epoch
        x = torch.from_numpy(self._data.x[positions])
        if self._recipe.augment is not None:
            x = self._recipe.augment(x, generator)
        y = torch.from_numpy(self._data.y[positions])

        def keys() -> Tensor:
            ids = (self._data.sample_ids[i] for i in positions)
            return torch.tensor([row_key(self._seed, sample, "train", epoch, 0) for sample in ids]).to(self._device)

        return Batch(x.to(self._device), y.to(self._device), keys, epoch + step / self._steps)

    def _summary(self, seen: list[LossValue], valid: float | None) -> EpochLog:
        samples = self._steps * self._batch
        robust = [value.robust_correct for value in seen if value.robust_correct is not None]
        return EpochLog(
            epoch=self.epoch,
            epochs=self._recipe.card.epochs,
            lr=self._optimiser.param_groups[0]["lr"],
            loss=float(torch.stack([value.loss for value in seen]).mean()),
            clean_accuracy=_total([value.clean_correct for value in seen]) / samples,
            robust_accuracy=_total(robust) / samples if robust else None,
            valid_accuracy=valid,
        )

    def save(self, out: Path, metadata: dict[str, str]) -> None:
        """Writes weights, log and, last, the state that a resumed run starts from."""
        save_weights(self.kept, out / WEIGHTS, {**metadata, "epoch": str(self.epoch)})
        save_log(out, self.log)
        state = {
            "epoch": self.epoch,
            "model": self._model.state_dict(),
            "average": None if self._average is None else self._average.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "loss": self._loss.state(),
            "regularisers": [regulariser.state() for regulariser in self._regularisers],
            "log": [dataclasses.asdict(entry) for entry in self.log],
        }
        save_state(out, state)

    def restore(self, state: dict[str, Any], out: Path) -> None:
        """Goes back to where `save` was called; raises InputError when the state is not of this model."""
        try:
            self._model.load_state_dict(state["model"])
            if self._average is not None:
                self._average.model.load_state_dict(state["average"])
            self._optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out / STATE} is of another model; choose another folder, or remove that one") from error
        self._loss.restore(state["loss"])
        for regulariser, kept in zip(self._regularisers, state["regularisers"], strict=True):
            regulariser.restore(kept)
        self.log = [EpochLog(**entry) for entry in state["log"]]
        self.epoch = state["epoch"]


def _total(counts: list[Tensor]) -> int:
    return int(torch.stack(counts).sum())


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, device: torch.device, batch: int = 256) -> float:
    """The model's clean accuracy on `data`, in [0, 1]; its mode comes back."""
    training = model.training
    model.eval()
    correct = 0
    for begin in range(0, len(data), batch):
        logits = unwrap(model(torch.from_numpy(data.x[begin : begin + batch]).to(device)))
        correct += int((logits.argmax(1).cpu() == torch.from_numpy(data.y[begin : begin + batch])).sum())
    model.train(training)
    return correct / len(data)


def derived(*words: int | str) -> int:
    """A 63-bit seed from what it is for."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """While open, the global generators are seeded; then they are as before. For initialisers and dropout layers."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
