"""One evaluation by one side: ours, the authors' code, or torchattacks' attack of the same name."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import robustbench_vit as rbv
from benchmarks.parity.cases import Case
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.data import Dataset
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.running.memory import keep_freed_memory

REFERENCE_NORM: dict[str, Literal["Linf", "L2", "L1"]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def run_side(task: tuple[Case, str, int]) -> tuple[tuple[Case, str, int], list[bool]]:
    """Robust or not per sample; in a process of one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    case, side, seed = task
    model, data = case.load()
    return task, SIDES[side](model, data, case, seed)


def ours(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """Our `autoattack`."""
    record = rbv.evaluate(
        model, data, None, "autoattack", case.norm, case.eps, seed, adversarials=False, reliability=False
    )
    return [outcome.robust for outcome in record.outcomes]


def reference(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """pyautoattack, version 'standard', all samples in one batch; its images are rechecked by us."""
    from pyautoattack import AutoAttack

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    with frozen(model):  # it would compute gradients of the weights too, which change nothing but the time
        attack = AutoAttack(model, norm=REFERENCE_NORM[case.norm], eps=case.eps, seed=seed, device="cpu")
        adversarial, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return still_right(model, adversarial, x, y, case.norm, case.eps)


def torchattacks(model: Any, data: Dataset, case: Case, seed: int) -> list[bool]:
    """torchattacks.AutoAttack as it is shipped; it is another attack (10 iterations, its own schedules)."""
    import torchattacks as peers  # pyright: ignore[reportMissingImports] (lives in .venv-peers)

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    with frozen(model):
        attack = peers.AutoAttack(model, norm=REFERENCE_NORM[case.norm], eps=case.eps, seed=seed, n_classes=10)
        adversarial = attack(x, y)
    return still_right(model, adversarial, x, y, case.norm, case.eps)


def still_right(model: Any, adversarial: Tensor, x: Tensor, y: Tensor, norm: str, eps: float) -> list[bool]:
    """Robust per sample; a candidate outside the budget counts as the clean image."""
    inside = NORMS[norm].size(adversarial - x) <= eps + 1e-5 * max(eps, 1)
    with torch.no_grad(), frozen(model):
        right_clean, right = model(x).argmax(1) == y, model(adversarial).argmax(1) == y
    return torch.where(inside, right & right_clean, right_clean).tolist()


SIDES = {"ours": ours, "reference": reference, "torchattacks": torchattacks}
