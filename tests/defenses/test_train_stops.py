"""What stops a training in its middle: a loss that diverges, a disk that is full; and mixed precision."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_vit.defenses.checkpoint import EpochLog, read_log
from robustbench_vit.defenses.train import train
from robustbench_vit.errors import InputError, StorageError
from tests.defenses.conftest import PGD_AT, Killed, bits, killed_after, small

CHANGES = {"loss": PGD_AT, "weight_average": 0.9, "augment": {"name": "shift", "pixels": 1}}


class TurnsNaN:
    """A loss that is fine for so many steps."""

    def __init__(self, loss: Any, steps: int, weights: bool) -> None:
        self._loss, self._left, self._weights = loss, steps, weights

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        self._left -= 1
        value = self._loss(model, batch)
        if self._left >= 0:
            return value
        weight = next(model.parameters()).sum()
        added = (0 * weight).abs().sqrt() if self._weights else float("nan") * weight  # the former is 0, its slope NaN
        return dataclasses.replace(value, loss=value.loss + added)


@pytest.mark.parametrize(("weights", "said"), [(False, "the loss became nan"), (True, "the weights became infinite")])
def test_what_was_saved_before_a_divergence_is_kept(recipe, data, tmp_path: Path, weights: bool, said: str):
    sound = recipe(loss=PGD_AT, gradient_clip=None, precision="fp32")
    with pytest.raises(Killed):
        train(sound, small(), data, None, tmp_path / "sound", 0, progress=killed_after(1))
    steps = 3 if weights else 2  # of two an epoch, so the last of epoch 2 is the one whose loss is still finite
    broken = dataclasses.replace(sound, loss=TurnsNaN(sound.loss, steps, weights))
    with pytest.raises(InputError) as caught:
        train(broken, small(), data, None, tmp_path / "run", 0)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith(
        " in epoch 2; lower the learning rate (optimiser.lr, now 0.01), or lengthen its warm-up"
        " (schedule.warmup_epochs, now 1), or lengthen that of eps (loss.eps_warmup_epochs, now 1), or clip gradients"
        " (gradient_clip, now null). With such a card choose another folder; what was saved after epoch 1 is kept"
    )
    assert [entry.epoch for entry in read_log(tmp_path / "run")] == [1]
    for name in ("weights.safetensors", "log.csv"):
        assert bits(tmp_path / "run" / name) == bits(tmp_path / "sound" / name)


def test_a_full_disk_stops_with_what_was_saved_and_goes_on_after_it_is_freed(recipe, data, tmp_path: Path, monkeypatch):
    full = recipe(**CHANGES)
    train(full, small(), data, None, tmp_path / "whole", 0)
    seen: list[EpochLog] = []
    real = os.fsync

    def no_space_later(handle: int) -> None:
        if seen:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", no_space_later)
    with pytest.raises(StorageError) as caught:
        train(full, small(), data, None, tmp_path / "parts", 0, progress=seen.append)
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'parts' / 'weights.safetensors'}: No space left on device;"
        " what was saved after epoch 1 is whole. Free some space and run the same command again to go on"
    )
    held = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert held == ["log.csv", "run.json", "state.pt", "weights.safetensors"]  # no scraps
    assert [entry.epoch for entry in read_log(tmp_path / "parts")] == [1]
    monkeypatch.undo()
    train(full, small(), data, None, tmp_path / "parts", 0)
    for name in ("weights.safetensors", "log.csv"):
        assert bits(tmp_path / "parts" / name) == bits(tmp_path / "whole" / name), name


def test_mixed_precision_learns_otherwise_and_resumes_to_the_same_bits(recipe, data, tmp_path: Path):
    mixed = recipe(**CHANGES, precision="bf16")
    model = small()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    whole = train(mixed, model, data, None, tmp_path / "whole", 0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(not torch.equal(p, weights[name]) for name, p in model.named_parameters())  # each had its gradient
    plain = recipe(**CHANGES)
    assert bits(train(plain, small(), data, None, tmp_path / "plain", 0)) != bits(whole)
    logs = [read_log(tmp_path / name)[-1].loss for name in ("whole", "plain")]
    assert logs[0] == pytest.approx(logs[1], rel=0.05)
    with pytest.raises(Killed):
        train(mixed, small(), data, None, tmp_path / "parts", 0, progress=killed_after(2))
    assert bits(train(mixed, small(), data, None, tmp_path / "parts", 0)) == bits(whole)
