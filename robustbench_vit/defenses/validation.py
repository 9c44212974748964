"""Validation while training: samples held out of the training set, and the accuracy on them under an attack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.attacks.pgd import PGD
from robustbench_vit.attacks.registry import attack_faults, build_attack
from robustbench_vit.cards import AlgorithmCard, Loaded, Validation, Workspace
from robustbench_vit.data import Dataset
from robustbench_vit.defenses.losses.inner import perturb
from robustbench_vit.defenses.randomness import derived
from robustbench_vit.defenses.registry import Batch
from robustbench_vit.engine.oracle import frozen, unwrap
from robustbench_vit.errors import CardError, InputError


def hold_out(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The samples that stay for training and those held out: of every class the same share, at least one sample.

    Which ones follows from the seed and their ids, not from their order. Raises InputError when a class is too small
    to lie on both sides.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of samples to hold out lies between 0 and 1, got {share:g}")
    held = np.zeros(len(data), dtype=bool)
    for label in np.unique(data.y):
        members = sorted(np.flatnonzero(data.y == label), key=lambda i: derived(seed, "hold out", data.sample_ids[i]))
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise InputError(
                f"holding out {share:g} of {data.name}/{data.split} leaves nothing of class {label} to train on: it has"
                f" {len(members)} samples; hold out less, or take more samples"
            )
        held[members[:count]] = True
    return data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held))


@dataclass(frozen=True)
class Right:
    """How many of some samples a model classifies right."""

    samples: int
    clean: int
    robust: int  # clean ones that are right at every restart's last point, too

    @property
    def clean_accuracy(self) -> float:
        """In [0, 1]."""
        return self.clean / self.samples

    @property
    def robust_accuracy(self) -> float:
        """In [0, 1]."""
        return self.robust / self.samples


@dataclass(frozen=True)
class RobustCheck:
    """An attack card's steps as a quick check of a model in training, with the same draws every time.

    Every row runs to its last point and nothing is looked at on the way, so a board's engine, which stops at the first
    success, finds at least as much. Search precision is float32, whatever the training's.
    """

    attack: PGD
    eps: float
    seed: int

    def __call__(self, model: nn.Module, data: Dataset, batch: int = 256) -> Right:
        """What the model classifies right of `data` in eval mode, on the device it is on; it is left as it was."""
        device = device_of(model)
        with left_alone(model), torch.inference_mode(False), torch.enable_grad(), _full_precision(device):
            model.eval()
            found = torch.zeros(2, dtype=torch.int64)
            for begin in range(0, len(data), batch):
                found += self._right(model, data, slice(begin, begin + batch), device)
        clean, robust = found.tolist()
        return Right(len(data), clean, robust)

    def _right(self, model: nn.Module, data: Dataset, at: slice, device: torch.device) -> Tensor:
        """How many of these samples are right, clean and robust (int64 (2,) on the CPU)."""
        x, y = torch.from_numpy(data.x[at]).to(device), torch.from_numpy(data.y[at]).to(device)
        clean = _correct(model, x, y)
        robust = clean
        for restart in range(self.attack.restarts()):
            keys = [row_key(self.seed, sample, "validation", restart, 0) for sample in data.sample_ids[at]]
            noise = torch.tensor(keys, device=device)
            attacked = perturb(self.attack, model, Batch(x, y, lambda noise=noise: noise, 0.0), self.eps)
            robust = robust & _correct(model, attacked, y)
        return torch.stack([clean.sum(), robust.sum()]).cpu()


def card_check(part: Validation, workspace: Workspace, where: str) -> RobustCheck:
    """The check that a defense card's `validation` describes; raises CardError or UnknownNameError."""
    loaded = validation_card(part, workspace, where)
    if faults := attack_faults(loaded):
        raise CardError(faults)
    return RobustCheck(build_attack(loaded, part.norm), part.eps, part.seed)


def validation_card(part: Validation, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
    """The attack card that a defense card's `validation` names; raises CardError unless it is a PGD."""
    return pgd_card(part.attack, workspace, f"{where}: field 'validation.attack'")


def pgd_card(name: str, workspace: Workspace, where: str) -> Loaded[AlgorithmCard]:
    """The attack card of that name; raises CardError unless its algorithm is 'pgd'."""
    loaded = workspace.attack(name, where)
    if not isinstance(loaded.card, AlgorithmCard) or loaded.card.algorithm != "pgd":
        raise CardError(f"{where}: validation runs a card of algorithm 'pgd', not '{name}'")
    return loaded


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """While open, no parameter wants a gradient and modes may change; then all is as it was, submodule by submodule."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with frozen(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, device: torch.device, batch: int = 256) -> float:
    """The model's clean accuracy on `data`, in [0, 1]; its mode comes back."""
    right = 0
    with left_alone(model):
        model.eval()
        for begin in range(0, len(data), batch):
            x, y = (torch.from_numpy(part[begin : begin + batch]).to(device) for part in (data.x, data.y))
            right += int(_correct(model, x, y).sum())
    return right / len(data)


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """bool (row,)."""
    return unwrap(model(x)).argmax(1) == y


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
