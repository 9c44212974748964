"""One evaluation by one side: ours, the authors' code, or torchattacks' attack of the same name."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import side_by_side
from benchmarks.parity.cases import Case
from benchmarks.side_by_side import REFERENCE_NORM, still_right
from robustbench_vit.data import Dataset
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.running.memory import keep_freed_memory


def run_side(task: tuple[Case, str, int]) -> tuple[tuple[Case, str, int], list[bool]]:
    """Robust or not per sample; in a process of one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    case, side, seed = task
    model, data = case.load()
    return task, SIDES[side](model, data, case, seed)


def ours(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """Our `autoattack`."""
    return side_by_side.ours(model, data, case.norm, case.eps, seed).robust


def reference(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """The authors' AutoAttack."""
    with frozen(model):  # it would compute gradients of the weights too, which change nothing but the time
        return side_by_side.reference(model, data, case.norm, case.eps, seed).robust


def torchattacks(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """torchattacks.AutoAttack as it is shipped; it is another attack (10 iterations, its own schedules)."""
    import torchattacks as peers  # pyright: ignore[reportMissingImports] (lives in .venv-peers)

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    with frozen(model):
        attack = peers.AutoAttack(model, norm=REFERENCE_NORM[case.norm], eps=case.eps, seed=seed, n_classes=10)
        adversarial = attack(x, y)
    return still_right(model, adversarial, x, y, case.norm, case.eps)


SIDES = {"ours": ours, "reference": reference, "torchattacks": torchattacks}
