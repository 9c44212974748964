"""The recheck of every counted adversarial example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.attacks.norms import Norm
from robustbench_vit.engine.float32 import ieee_float32
from robustbench_vit.engine.oracle import unwrap
from robustbench_vit.plan import VERIFICATION

BATCH = int(VERIFICATION["physical_batch"])
TOLERANCE = float(VERIFICATION["budget_tolerance"])


@dataclass(frozen=True)
class Checked:
    """What the recheck found, row by row; a candidate counts only when every part holds."""

    finite: Tensor  # bool (row,)
    in_box: Tensor  # bool (row,)
    in_budget: Tensor  # bool (row,)
    misclassified: Tensor  # bool (row,); of a random model by most of the draws
    wrong_draws: Tensor  # int64 (row,): in how many of the verifier's draws the answer was wrong
    distance: Tensor  # (row,) norm of x - x0

    @property
    def inside(self) -> Tensor:
        """bool (row,): finite, in the box and in the budget."""
        return self.finite & self.in_box & self.in_budget

    @property
    def holds(self) -> Tensor:
        """bool (row,)"""
        return self.inside & self.misclassified


class Verifier:
    """Checks candidates with the model in IEEE float32 and one fixed physical batch."""

    def __init__(self, model: Any, norm: Norm, draws: int = 1) -> None:
        """`draws` > 1 asks a model that answers at random so often about each image."""
        self._model = model
        self._norm = norm
        self.draws = draws

    def answers(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, classes), the mean over the draws, and in how many draws (n,) the largest isn't y's."""
        total, wrong = self.logits(x), torch.zeros_like(y)
        wrong += total.argmax(1) != y
        for _ in range(self.draws - 1):
            logits = self.logits(x)
            wrong += logits.argmax(1) != y
            total = total + logits
        return total / self.draws if self.draws > 1 else total, wrong

    def logits(self, x: Tensor) -> Tensor:
        """(n, classes): the model's answers, in chunks of the fixed physical batch (the last one padded)."""
        chunks = []
        with torch.no_grad(), ieee_float32():
            for chunk in x.split(BATCH):
                missing = BATCH - len(chunk)
                full = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])]) if missing else chunk
                chunks.append(unwrap(self._model(full))[: len(chunk)])
        return torch.cat(chunks)

    def check(self, x: Tensor, x0: Tensor, y: Tensor, eps: Tensor) -> Checked:
        """x and x0 (row, c, h, w), y and eps (row,)."""
        finite = x.isfinite().flatten(1).all(1)
        safe = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), x, x0)
        logits, wrong = self.answers(safe, y)
        wrong = torch.where(logits.isfinite().all(1), wrong, 0)
        distance = self._norm.size(safe - x0)
        return Checked(
            finite=finite,
            in_box=((safe >= 0) & (safe <= 1)).flatten(1).all(1),
            in_budget=distance <= eps + TOLERANCE * eps.clamp_min(1),
            misclassified=2 * wrong > self.draws,
            wrong_draws=wrong,
            distance=distance,
        )
