"""The folder of a training run: what it is, how far it got, and its log."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_vit.errors import InputError, WeightsError
from robustbench_vit.storage import write_atomic

STATE, LOG, RUN, WEIGHTS = "state.pt", "log.csv", "run.json", "weights.safetensors"


@dataclass(frozen=True)
class EpochLog:
    """What one epoch looked like; accuracies in [0, 1], on the training batches as they were seen."""

    epoch: int  # from 1
    epochs: int
    lr: float  # at the epoch's end
    loss: float
    clean_accuracy: float
    robust_accuracy: float | None  # under the inner attack; None without one
    valid_accuracy: float | None  # clean, of the weights at hand; None without validation data
    valid_robust_accuracy: float | None = None  # likewise under the card's validation attack; None without one
    best_epoch: int | None = None  # the one whose weights are kept so far, where validation under attack decides


def claim(out: Path, run: dict[str, Any]) -> None:
    """Marks `out` as the folder of `run`, which is what decides the result; raises InputError when it has another."""
    path = out / RUN
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if differing := sorted(key for key in {*run, *there} if run.get(key) != there.get(key)):
            what = ", ".join(differing)
            raise InputError(
                f"{out} holds a training run with another {what}; choose another folder, or remove that one"
            )
        return
    write_atomic(path, json.dumps(run, indent=2, sort_keys=True).encode() + b"\n")


def save_state(out: Path, state: dict[str, Any]) -> None:
    """Writes all that a resumed run needs, in one file and at once."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(out / STATE, buffer.getvalue())


def load_state(out: Path) -> dict[str, Any] | None:
    """What `save_state` wrote last, or None. Raises WeightsError when it is damaged."""
    path = out / STATE
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: damaged; remove it to train from the start") from error


def logged(state: dict[str, Any]) -> list[EpochLog]:
    """The log in a saved state."""
    return [EpochLog(**entry) for entry in state["log"]]


def read_log(out: Path) -> list[EpochLog]:
    """What `save_log` wrote, to the digits it wrote; raises InputError when it is absent or something else."""
    path = out / LOG
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return [_entry(line) for line in csv.DictReader(lines)]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no log of a training run: {error}") from error


def _entry(line: dict[str, str]) -> EpochLog:
    fields = {field.name: line.get(field.name) or None for field in dataclasses.fields(EpochLog)}
    whole = ("epoch", "epochs", "best_epoch")
    values = {k: v if v is None else (int(v) if k in whole else float(v)) for k, v in fields.items()}
    if any(values[name] is None for name in ("epoch", "epochs", "lr", "loss", "clean_accuracy")):
        raise ValueError(f"a line without epoch, learning rate, loss or accuracy: {line}")
    return EpochLog(**values)  # type: ignore[arg-type]


def save_log(out: Path, log: list[EpochLog]) -> None:
    """Writes log.csv, a line per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochLog)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in dataclasses.asdict(entry).items()} for entry in log)
    write_atomic(out / LOG, text.getvalue().encode())


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}"
