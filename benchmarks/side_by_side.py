"""What the benchmarks share: entries of a board, the reference's AutoAttack, and both counted from outside."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

import robustbench_vit as rbv
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.cards import BoardCard, Loaded, open_workspace
from robustbench_vit.data import Dataset
from robustbench_vit.engine.lanes import CountedModel
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.running.entries import board_plan, chosen, entry_subject

BOARD = "digits-linf"
REFERENCE_NORM: dict[str, Literal["Linf", "L2", "L1"]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Measured:
    """One evaluation from outside."""

    robust: list[bool]  # per sample
    seconds: float  # of processor time, which hardly depends on what else the machine does
    forwards: float  # per sample
    backwards: float


def board() -> Loaded[BoardCard]:
    """The embedded board."""
    return open_workspace().board(BOARD)


def entry_names() -> list[str]:
    """Its entries."""
    return [entry.name for entry in board().card.entries]


def load_entry(name: str, n: int | None = None) -> tuple[Any, Dataset]:
    """An entry's model in eval mode and the board's (first n) samples."""
    loaded, workspace = board(), open_workspace()
    (entry,) = chosen(loaded, [name])
    _, data = board_plan(loaded, workspace, n, smoke=False)
    return entry_subject(loaded, entry, workspace).model, data


def ours(model: Any, data: Dataset, norm: str, eps: float, seed: int) -> Measured:
    """Our `autoattack`, without the verdict on masked gradients, which the reference has not."""
    counted = CountedModel(model)
    began = time.process_time()
    with frozen(model):  # as evaluate does by itself when it is given the model and not a counter around it
        record = rbv.evaluate(counted, data, None, "autoattack", norm, eps, seed, adversarials=False, reliability=False)
    seconds = time.process_time() - began
    robust = [outcome.robust for outcome in record.outcomes]
    return Measured(robust, seconds, counted.forwards / len(data), counted.backwards / len(data))


def reference(model: Any, data: Dataset, norm: str, eps: float, seed: int) -> Measured:
    """The authors' AutoAttack (pyautoattack, version 'standard'), all samples in one batch; rechecked by us."""
    from pyautoattack import AutoAttack

    counted = CountedModel(model)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    attack = AutoAttack(counted, norm=REFERENCE_NORM[norm], eps=eps, seed=seed, device="cpu")
    began = time.process_time()
    adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    seconds = time.process_time() - began
    passes = (counted.forwards / len(x), counted.backwards / len(x))
    return Measured(still_right(model, adversarial, x, y, norm, eps), seconds, *passes)


def still_right(model: Any, adversarial: Tensor, x: Tensor, y: Tensor, norm: str, eps: float) -> list[bool]:
    """Robust per sample; a candidate outside the budget counts as the clean image.

    The tolerance is ten times ours: in l1 the reference's points exceed eps by a few 1e-7 of it in float32.
    """
    inside = NORMS[norm].size(adversarial - x) <= eps + 1e-5 * max(eps, 1)
    with torch.no_grad(), frozen(model):
        right_clean, right = model(x).argmax(1) == y, model(adversarial).argmax(1) == y
    return torch.where(inside, right & right_clean, right_clean).tolist()


def machine() -> str:
    """The machine and the packages, for the foot of a report."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "pyautoattack"))
    return f"{platform.machine()} CPU, one thread per process, Python {platform.python_version()}, {packages}"
