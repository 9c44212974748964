"""Model passes, counted per row; all oracles that one lane asks count into the same ledger."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Passes:
    """Model passes per row since counting began, and those spent on padding."""

    forwards: Tensor  # int64 (row,)
    backwards: Tensor  # int64 (row,)
    padding: int = 0


class Ledger:
    """What was asked of the models so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.work = 0  # forward equivalents asked for so far, a backward counting two; for progress bars
        self.count(0)

    def count(self, rows: int) -> None:
        """Starts counting for a batch of `rows`."""
        zeros = torch.zeros(rows, dtype=torch.int64, device=self._device)
        self.passes = Passes(zeros, zeros.clone())

    def forward(self, rows: Tensor | None, n: int) -> None:
        """Counts a forward pass for each of `rows` (int64 (n,); None: the first n)."""
        _add(self.passes.forwards, rows, n)
        self.work += n

    def backward(self, rows: Tensor | None, n: int) -> None:
        """Counts a backward pass likewise."""
        _add(self.passes.backwards, rows, n)
        self.work += 2 * n

    def discard(self, rows: Tensor) -> None:
        """Counts an answer to each of these rows (int64) as padding: it stood where padding would have been."""
        self.passes.forwards.index_add_(0, rows, -torch.ones_like(rows))
        self.passes.padding += len(rows)


def _add(passes: Tensor, rows: Tensor | None, n: int) -> None:
    if rows is None:
        passes[:n] += 1
    else:
        passes.index_add_(0, rows, torch.ones_like(rows))  # a row may ask several times at once
