"""Robust validation accuracy in somebody else's training loop."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from robustbench_vit.attacks.registry import build_attack
from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.data import Dataset
from robustbench_vit.data.dataset import content_ids
from robustbench_vit.defenses.losses.step import within_pixel_range
from robustbench_vit.defenses.validation import Right, RobustCheck, pgd_card
from robustbench_vit.errors import InputError
from robustbench_vit.storage import write_atomic

COLUMNS = ("epoch", "clean_accuracy", "robust_accuracy", "best_epoch")


@dataclass(frozen=True)
class Validated:
    """What one epoch's model reached; accuracies in [0, 1]."""

    epoch: int
    clean_accuracy: float
    robust_accuracy: float


class RobustValidation:
    """Called with a model and an epoch's number, gives the accuracy under an attack and remembers it.

    `data` are validation samples, a data set or images in [0, 1] (n, c, h, w) with labels (n,): a part of the training
    set, never the test set, which must not choose a model. `attack` names a card of algorithm `pgd`. The draws are the
    same at every call, so epochs can be compared. Nothing of the model changes: neither the mode of any submodule, nor
    what wants a gradient, its gradients, its device or the global generators. Raises InputError for what cannot be
    evaluated, CardError or UnknownNameError for an attack that cannot run.
    """

    def __init__(
        self,
        data: Dataset | tuple[Tensor, Tensor],
        attack: str,
        norm: str,
        eps: float,
        csv: Path | str | None = None,
        seed: int = 0,
        batch_size: int = 256,
        workspace: Workspace | None = None,
    ) -> None:
        """With `csv` that file has a line per call: epoch, both accuracies, and the best epoch so far."""
        self._data = _checked(data)
        loaded = pgd_card(attack, workspace or open_workspace(), "RobustValidation")
        self._check = RobustCheck(build_attack(loaded, norm), _radius(eps, norm), seed)
        if batch_size < 1:
            raise InputError(f"batch_size is at least 1, got {batch_size}")
        self._csv, self._batch = None if csv is None else Path(csv), batch_size
        self.history: list[Validated] = []

    def __call__(self, model: nn.Module, epoch: int) -> float:
        """The model's robust accuracy in [0, 1]; raises InputError when its answers are not logits of these labels."""
        right = self._right(model)
        self.history.append(Validated(epoch, right.clean_accuracy, right.robust_accuracy))
        if self._csv is not None:
            write_atomic(self._csv, self._table().encode())
        return right.robust_accuracy

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the largest robust accuracy, then of the largest clean one, then the earliest; None before any.

        Save the model when this is the epoch just validated.
        """
        return _best(self.history)

    def lightning(self, base: type[Any], name: str = "robust_accuracy") -> Any:
        """A callback for `Trainer(callbacks=[…])`; `base` is Lightning's `Callback`, which this package doesn't import.

        After every training epoch the first process validates and logs the accuracy under `name`.
        """
        hook = _after_epoch(self, name)
        return type("RobustValidationCallback", (base,), {"on_train_epoch_end": hook})()

    def _right(self, model: nn.Module) -> Right:
        try:
            return self._check(model, self._data, self._batch)
        except (RuntimeError, IndexError) as error:
            shape = "×".join(map(str, self._data.x.shape[1:]))
            raise InputError(
                f"{type(model).__name__} cannot be attacked on images of shape {shape} with labels up to"
                f" {int(self._data.y.max())}: {error}"
            ) from error

    def _table(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for at, one in enumerate(self.history, start=1):
            shares = (f"{one.clean_accuracy:.6g}", f"{one.robust_accuracy:.6g}")
            writer.writerow([one.epoch, *shares, _best(self.history[:at])])
        return text.getvalue()


def _best(history: list[Validated]) -> int | None:
    scores = {one.epoch: (one.robust_accuracy, one.clean_accuracy) for one in history}
    return max(scores, key=lambda epoch: scores[epoch], default=None)  # the first of equals


def _after_epoch(check: RobustValidation, name: str) -> Callable[..., None]:
    def on_train_epoch_end(self: Any, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            found = check(pl_module, trainer.current_epoch + 1)
            pl_module.log(name, found, rank_zero_only=True)

    return on_train_epoch_end


def _radius(eps: float, norm: str) -> float:
    if not eps > 0:
        raise InputError(f"eps is larger than 0, got {eps:g}")
    try:
        return within_pixel_range(eps) if norm == "linf" else eps
    except ValueError as error:
        raise InputError(f"eps: {error}") from error


def _checked(data: Dataset | tuple[Tensor, Tensor]) -> Dataset:
    """The samples as a data set; raises InputError for those that can't validate."""
    if not isinstance(data, Dataset):
        data = _dataset(*data)
    elif data.split == "test":
        raise InputError(
            f"{data.name}/test must not choose a model; validate on a part of the training set, as"
            " robustbench_vit.defenses.validation.hold_out gives it"
        )
    if len(data) == 0:
        raise InputError("there is no sample to validate on")
    if not (data.x.min() >= 0 and data.x.max() <= 1):  # NaN fails, too
        raise InputError(
            f"images lie in [0, 1], these reach from {data.x.min():g} to {data.x.max():g}; leave them as they are and"
            " put the normalisation inside the model with robustbench_vit.normalised"
        )
    return data


def _dataset(x: Tensor, y: Tensor) -> Dataset:
    if x.dim() != 4 or y.dim() != 1 or len(x) != len(y) or y.is_floating_point():
        raise InputError(
            f"expected images (n, c, h, w) and integer labels (n,), got {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        )
    images = x.detach().cpu().float().numpy()
    labels = y.detach().cpu().numpy().astype(np.int64)
    classes = int(labels.max()) + 1 if len(labels) else 0
    return Dataset("given", "validation", images, labels, content_ids(images, labels), "", "none", classes)
