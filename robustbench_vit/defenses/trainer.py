"""A training run at work: one epoch after the other, with a state that goes to disk between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.data import Dataset
from robustbench_vit.defenses.checkpoint import STATE, WEIGHTS, EpochLog, logged, save_log, save_state
from robustbench_vit.defenses.divergence import require_finite_loss, require_finite_weights
from robustbench_vit.defenses.randomness import derived, seeded
from robustbench_vit.defenses.recipe import Recipe
from robustbench_vit.defenses.registry import Batch, LossValue, started
from robustbench_vit.defenses.selection import best_epoch
from robustbench_vit.defenses.shares import ALONE, Shares, averaged, require_shares
from robustbench_vit.defenses.validation import Right, accuracy, hold_out
from robustbench_vit.defenses.weight_average import WeightAverage
from robustbench_vit.errors import InputError
from robustbench_vit.models.weights import save_weights


class Trainer:
    """A training run between two epochs."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Dataset,
        seed: int,
        device: torch.device,
        shares: Shares = ALONE,
    ) -> None:
        """Samples that the card holds out of `data` are not trained on."""
        self.epoch = 0
        self.log: list[EpochLog] = []
        self._recipe, self._model, self._seed, self._device, self._shares = recipe, model, seed, device, shares
        self._data, self._held_out = _divided(data, recipe)
        self._optimiser = recipe.optimiser.build(model)
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        image = torch.from_numpy(data.x[:1]).to(device)
        self._loss = started(recipe.loss, model, image)
        self._regularisers = [settings.attach(model, image) for settings in recipe.regularisers]
        decay = recipe.card.weight_average
        self._average = None if decay is None else WeightAverage(model, decay)
        # With fewer samples than a batch the whole set is the batch; else an incomplete last batch is left out.
        self._batch = min(recipe.card.batch_size, len(self._data))
        self._steps = len(self._data) // self._batch
        self._precision = _precision(recipe, device)
        require_shares(shares, self._batch, recipe.card.loss.name if recipe.whole_batch else None)

    @property
    def kept(self) -> nn.Module:
        """The model whose weights are kept."""
        return self._model if self._average is None else self._average.model

    @property
    def writes(self) -> bool:
        """Whether this process saves and reports."""
        return self._shares.first

    def run_epoch(self, data_valid: Dataset | None) -> EpochLog:
        """Trains for one epoch and returns what it looked like."""
        generator = torch.Generator().manual_seed(derived(self._seed, self.epoch, "order"))
        order = torch.randperm(len(self._data), generator=generator)
        seen = []
        self._model.train()
        with seeded(derived(self._seed, self.epoch, "layers", *self._process()), self._device):
            for step in range(self._steps):
                index = order[step * self._batch : (step + 1) * self._batch]
                seen.append(self._step(step, self._batch_at(index, step, generator)))
                self._check(seen[max(step - 1, 0)].loss)  # one late: reading it now would wait for the device
        self._check(seen[-1].loss)
        require_finite_weights(self._model, self._recipe.card, self.epoch + 1)
        self.epoch += 1
        self.log.append(self._validated(self._summary(seen), data_valid))
        return self.log[-1]

    def _process(self) -> tuple[int, ...]:
        """What tells this process's dropout masks from those of the others."""
        return () if self._shares.first else (self._shares.index,)

    def _step(self, step: int, batch: Batch) -> LossValue:
        """One update of the weights."""
        number = self.epoch * self._steps + step + 1
        factor = self._recipe.schedule.at(number / self._steps, self._recipe.card.epochs)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimiser.zero_grad()
        with self._precision:
            value = self._loss(self._model, batch)
        value.loss.backward()
        value = dataclasses.replace(value, loss=value.loss.detach())
        self._shares.average([value.loss, *averaged(self._model)] if self._shares.number > 1 else [])
        if self._recipe.card.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.card.gradient_clip)
        for regulariser in self._regularisers:  # after clipping, so that their pull is the one the card states
            regulariser.before_step()
        self._optimiser.step()
        for regulariser in self._regularisers:
            regulariser.after_step()
        if self._average is not None:
            self._average.update(self._model, number)
        return value

    def _check(self, loss: Tensor) -> None:
        require_finite_loss(loss.item(), self._recipe.card, self.epoch + 1)

    def _batch_at(self, index: Tensor, step: int, generator: torch.Generator) -> Batch:
        """This process's share of a batch. The whole is augmented, so that draws don't depend on who takes what."""
        x = torch.from_numpy(self._data.x[index.numpy()])
        if self._recipe.augment is not None:
            x = self._recipe.augment(x, generator)
        x, positions, epoch = self._shares.of(x), self._shares.of(index).numpy(), self.epoch
        y = torch.from_numpy(self._data.y[positions])

        def keys() -> Tensor:
            ids = (self._data.sample_ids[i] for i in positions)
            return torch.tensor([row_key(self._seed, sample, "train", epoch, 0) for sample in ids]).to(self._device)

        return Batch(x.to(self._device), y.to(self._device), keys, epoch + step / self._steps)

    def _summary(self, seen: list[LossValue]) -> EpochLog:
        samples = self._steps * self._batch
        robust = [value.robust_correct for value in seen if value.robust_correct is not None]
        return EpochLog(
            epoch=self.epoch,
            epochs=self._recipe.card.epochs,
            lr=self._optimiser.param_groups[0]["lr"],
            loss=float(torch.stack([value.loss for value in seen]).mean()),
            clean_accuracy=self._total(value.clean_correct for value in seen) / samples,
            robust_accuracy=self._total(robust) / samples if robust else None,
            valid_accuracy=None,
        )

    def _total(self, counts: Iterable[Tensor]) -> int:
        return int(self._shares.total(torch.stack(list(counts)).sum()))

    def _validated(self, entry: EpochLog, data_valid: Dataset | None) -> EpochLog:
        """The epoch with what the kept weights reach on validation data, and which epoch is the best so far."""
        if self._held_out is None:
            valid = None if data_valid is None else accuracy(self.kept, data_valid, self._device)
            return dataclasses.replace(entry, valid_accuracy=valid)
        right = self._right(self._held_out)
        entry = dataclasses.replace(
            entry, valid_accuracy=right.clean_accuracy, valid_robust_accuracy=right.robust_accuracy
        )
        return dataclasses.replace(entry, best_epoch=best_epoch([*self.log, entry]))

    def _right(self, data: Dataset) -> Right:
        """What the kept weights classify right, every process asking about its share."""
        assert self._recipe.validation is not None
        mine, shares = self._shares.positions(len(data)), self._shares
        right = self._recipe.validation(self.kept, data.take(mine)) if mine else Right(0, 0, 0)
        if shares.number == 1:
            return right
        totals = shares.total(torch.tensor([right.samples, right.clean, right.robust], device=self._device))
        return Right(*(int(count) for count in totals))

    def save(self, out: Path, metadata: dict[str, str]) -> None:
        """Writes weights (of the best epoch), log and, last, the state that a resumed run starts from."""
        if best_epoch(self.log) in (None, self.epoch):
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
        self.log = logged(state)
        self.epoch = state["epoch"]


def _precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """In which losses and attacks are computed; weights, gradients and the optimiser's state stay in float32."""
    if recipe.card.precision == "fp32":
        return nullcontext()
    # Weights rounded once and kept would have no graph when a call without one came first, and get no gradient then.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _divided(data: Dataset, recipe: Recipe) -> tuple[Dataset, Dataset | None]:
    """The samples to train on, and those the card holds out."""
    part = recipe.card.validation
    return (data, None) if part is None else hold_out(data, part.share, part.seed)
