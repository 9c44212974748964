"""Which epoch's weights are kept, and when training is over."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_vit.cards import DefenseCard
from robustbench_vit.defenses.checkpoint import EpochLog


def best_epoch(log: Sequence[EpochLog]) -> int | None:
    """The epoch of the largest robust validation accuracy, then of the largest clean one, then the earliest.

    None when nothing was validated under attack.
    """
    scores = {
        entry.epoch: (entry.valid_robust_accuracy, entry.valid_accuracy or 0.0)
        for entry in log
        if entry.valid_robust_accuracy is not None
    }
    return max(scores, key=lambda epoch: scores[epoch], default=None)  # the first of equals


def finished(log: Sequence[EpochLog], card: DefenseCard) -> bool:
    """Whether all epochs are done, or `patience` of them in a row were no better than the best."""
    if len(log) >= card.epochs:
        return True
    best = best_epoch(log)
    if card.validation is None or card.validation.patience is None or best is None:
        return False
    return len(log) - best >= card.validation.patience


def said(log: Sequence[EpochLog]) -> str | None:
    """Which epoch is kept, in words; None when it is simply the last."""
    best = best_epoch(log)
    if best is None:
        return None
    entry, last = log[best - 1], log[-1]
    early = f", stopped early after {last.epoch}" if last.epoch < last.epochs else ""
    robust = 100 * (entry.valid_robust_accuracy or 0.0)
    return f"epoch {best} of {last.epochs}, robust validation accuracy {robust:.1f} %{early}"
