"""The log of a training run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from robustbench_vit.defenses.checkpoint import EpochLog
from robustbench_vit.diagnostics.norms_plot import require_matplotlib

PICTURE = "log.png"
ACCURACIES = {
    "clean_accuracy": ("clean, training batches", "C0", "-"),
    "robust_accuracy": ("attacked, training batches", "C1", "-"),
    "valid_accuracy": ("clean, validation", "C0", "--"),
    "valid_robust_accuracy": ("attacked, validation", "C1", "--"),
}
"""Field of the log -> its name in the picture, colour and line."""


def learning_curves(log: Sequence[EpochLog], title: str) -> bytes:
    """PNG: loss and learning rate beside accuracies, by epoch; a dotted line marks the best epoch, if one was chosen.

    Raises InputError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    _losses(left, log)
    _accuracies(right, log)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if log[-1].best_epoch is not None:
            axes.axvline(log[-1].best_epoch, color="0.4", linestyle=":", linewidth=1.2, label="best epoch")
    right.legend(fontsize=8, loc="best")
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130, metadata={"Software": None})
    return held.getvalue()


def _losses(axes: Any, log: Sequence[EpochLog]) -> None:
    """The loss on a scale from 0 at the left, the learning rate at the right."""
    epochs = [entry.epoch for entry in log]
    axes.plot(epochs, [entry.loss for entry in log], color="C0", **_mark(log))
    axes.set_ylabel("loss (mean over training batches)", color="C0")
    axes.set_ylim(bottom=min(0.0, *(entry.loss for entry in log)))
    rates = axes.twinx()
    rates.plot(epochs, [entry.lr for entry in log], color="0.55", **_mark(log))
    rates.set_ylabel("learning rate at the epoch's end", color="0.45")
    rates.set_ylim(bottom=0.0)


def _accuracies(axes: Any, log: Sequence[EpochLog]) -> None:
    """Every accuracy that was logged, in per cent."""
    for field, (name, colour, line) in ACCURACIES.items():
        shown = [(entry.epoch, 100 * getattr(entry, field)) for entry in log if getattr(entry, field) is not None]
        if shown:
            epochs, values = zip(*shown, strict=True)
            axes.plot(epochs, values, color=colour, linestyle=line, label=name, **_mark(log))
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 102)


def _mark(log: Sequence[EpochLog]) -> dict[str, Any]:
    """A single epoch would be an invisible line."""
    return {"linewidth": 1.4, "marker": "o" if len(log) == 1 else None}
