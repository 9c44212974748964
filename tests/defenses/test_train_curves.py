"""The log of a training run, read back and drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_vit.cli.single import _say_trained
from robustbench_vit.defenses.checkpoint import EpochLog, read_log, save_log
from robustbench_vit.defenses.curves import learning_curves
from robustbench_vit.errors import InputError

LOG = [
    EpochLog(n, 8, 0.01 * (9 - n), 2.0 / n, 0.1 * n, 0.05 * n, 0.09 * n, 0.08 * min(n, 10 - n), min(n, 5))
    for n in range(1, 9)
]


def test_a_log_is_read_as_it_was_written(tmp_path: Path):
    plain = [EpochLog(1, 2, 0.125, 0.5, 0.75, None, None)]
    for log in (plain, LOG):
        save_log(tmp_path, log)
        again = read_log(tmp_path)
        assert [entry.best_epoch for entry in again] == [entry.best_epoch for entry in log]
        assert [entry.loss for entry in again] == pytest.approx([entry.loss for entry in log], rel=1e-5)
        assert [entry.robust_accuracy for entry in again] == pytest.approx([e.robust_accuracy for e in log])
    assert read_log(tmp_path)[0].epochs == 8


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "epoch,epochs,lr,loss,clean_accuracy\n1,2,x,1,1\n"])
def test_what_is_no_log_is_named(tmp_path: Path, content: str):
    (tmp_path / "log.csv").write_text(content)
    if content:
        with pytest.raises(InputError, match=r"log.csv is no log of a training run: "):
            read_log(tmp_path)
    else:
        assert read_log(tmp_path) == []
    with pytest.raises(InputError, match=r"log.csv is no log of a training run: "):
        read_log(tmp_path / "absent")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plots need matplotlib: pip install 'robustbench_vit\[plots\]'"):
        learning_curves(LOG, "a run")


@pytest.mark.parametrize("log", [LOG, LOG[:1], [EpochLog(1, 2, 0.1, 0.5, 0.75, None, None)]])
def test_the_picture_shows_something(log: list[EpochLog]):
    pytest.importorskip("matplotlib")
    drawn = learning_curves(log, "digits_cnn + pgd-at, seed 0")
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0] > 400
    blue = (pixels[..., 2] > 150) & (pixels[..., 0] < 80)  # the loss, left, and the clean accuracy, right
    middle = pixels.shape[1] // 2
    assert blue[:, :middle].any()
    assert blue[:, middle:].any()
    assert learning_curves(log, "digits_cnn + pgd-at, seed 0") == drawn


def test_the_command_says_which_epoch_is_kept_and_where_the_picture_is(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    save_log(tmp_path, LOG)
    _say_trained(tmp_path / "weights.safetensors", "digits_cnn + pgd-at, seed 0")
    assert capsys.readouterr().out.splitlines() == [
        "kept: epoch 5 of 8, robust validation accuracy 40.0 %",
        f"curves: {tmp_path / 'log.png'}",
        f"weights: {tmp_path / 'weights.safetensors'}",
    ]
    assert (tmp_path / "log.png").read_bytes() == learning_curves(read_log(tmp_path), "digits_cnn + pgd-at, seed 0")
