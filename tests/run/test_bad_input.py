"""Bad input: one message that says what was wrong and what would be right, exit code 2, and no work started.

Long because it is one table: every message a user can meet before work starts, side by side, in one voice.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.cards import open_workspace
from robustbench_vit.errors import InputError, ModelError, RobustbenchError, UnknownNameError

Rbvit = Callable[..., Any]
CNN = "leaderboards/small/weights/cnn-pgd-at.safetensors"


def attack(**changes: str | None) -> list[str]:
    """`rbvit attack` on a good model, with options replaced, or left out where None."""
    model = changes.pop("model", "digits_cnn")
    options = {"data": "samples.npz", "attack": "short", "eps": "0.1", "weights": CNN, **changes}
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return ["attack", str(model), *given]


def assert_refused(rbvit: Rbvit, folder: Path, arguments: list[str], message: str) -> None:
    """Exactly this message, exit code 2, nothing printed, and nothing written anywhere."""
    before = sorted(folder.rglob("*"))
    ran = rbvit(*arguments)
    assert (ran.err, ran.out, ran.code) == (f"error: {message}\n", "", 2)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (attack(model="digits_cn"), "unknown model 'digits_cn'; did you mean 'digits_cnn'?"),
        (attack(attack="shrt"), "unknown attack 'shrt'; did you mean 'short'?"),
        (attack(data="digit"), "unknown dataset 'digit'; did you mean 'digits'?"),
        (attack(norm="linff"), "unknown norm 'linff'; did you mean 'linf'?"),
        (attack(norm="l3"), "unknown norm 'l3'; did you mean 'l2'?"),
        (attack(defense="ic-layr"), "unknown defense 'ic-layr'; did you mean 'ic-layer'?"),
        (attack(data="digits", split="valid"), "digits has the splits 'train' and 'test', not 'valid'"),
        (attack(data="absent.npz"), "no data file at absent.npz"),
        (["run", "smal"], "unknown board 'smal'; did you mean 'small'?"),
        (
            ["run", "smal.yaml"],
            "no board file at smal.yaml; known boards: cifar10-linf, digits-l2, digits-linf, digits-seeds,"
            " digits-vit, imagenet-linf, small",
        ),
        (["run", "small", "--entry", "vitt"], "leaderboards/small.yaml: unknown entry 'vitt'; did you mean 'vit'?"),
        (["plan", "small", "--entry", "cn"], "leaderboards/small.yaml: unknown entry 'cn'; did you mean 'cnn'?"),
        (
            ["train", "standrd", "--model", "digits_cnn", "--data", "digits", "--out", "trained"],
            "unknown defense 'standrd'; did you mean 'standard'?",
        ),
        (
            ["train", "standard", "--model", "digits_cnn", "--data", "digit", "--out", "trained"],
            "unknown dataset 'digit'; did you mean 'digits'?",
        ),
        (
            ["train", "standard", "--model", "digit_cnn", "--data", "digits", "--out", "trained"],
            "unknown model 'digit_cnn'; did you mean 'digits_cnn'?",
        ),
        (
            ["train", "standard", "--model", "digits_cnn", "--data", "digits", "--out", "samples.npz"],
            "--out samples.npz is a file; give a folder",
        ),
    ],
)
def test_unknown_names(rbvit: Rbvit, folder: Path, arguments: list[str], message: str) -> None:
    assert_refused(rbvit, folder, arguments, message)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", "0", "eps must be positive, got 0"),
        ("linf", "-0.1", "eps must be positive, got -0.1"),
        ("l2", "0", "eps must be positive, got 0"),
        (
            "linf",
            "8",
            "eps 8 is larger than the whole range of a pixel in [0, 1]; did you mean 8/255?",
        ),
        (
            "linf",
            "0.1,1.5",
            "eps 1.5 is larger than the whole range of a pixel in [0, 1]; did you mean 1.5/255?",
        ),
        ("l2", "128", "eps 128 in l2 reaches every image in [0, 1] with 64 pixel values; did you mean 128/255?"),
        ("linf", "nan", "--eps: expected a finite number, got nan"),
        ("linf", "inf", "--eps: expected a finite number, got inf"),
        ("linf", "8/0", "--eps: division by zero in '8/0'"),
        ("linf", "small", "--eps: expected a number such as 0.2 or 8/255, got 'small'"),
        ("linf", "", "--eps: expected a number such as 0.2 or 8/255, got ''"),
    ],
)
def test_budgets(rbvit: Rbvit, folder: Path, norm: str, eps: str, message: str) -> None:
    assert_refused(rbvit, folder, attack(norm=norm, eps=eps), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            attack(weights=None),
            "say where the weights of 'digits_cnn' come from: --weights FILE; random ones mean nothing",
        ),
        (attack(mean=".5"), "--mean and --std belong together: give both or neither"),
        (attack(std=".5"), "--mean and --std belong together: give both or neither"),
        (attack(mean=".5,.5", std=".5"), "mean has 2 numbers and std 1; give one of each per channel"),
        (attack(mean=".5", std="0"), "std holds 0; a standard deviation is above 0"),
        (attack(mean="half", std=".5"), "--mean: expected a number such as 0.2 or 8/255, got 'half'"),
        (attack(mean=".5,.5", std=".5,.5"), "the images have 1 channels, the normalisation 2"),
        (attack(n="49"), "asked for 49 samples of npz/samples.npz, which has 48"),
        (["run", "small", "--n", "49"], "asked for 49 samples of npz/samples.npz, which has 48"),
        (["run", "small", "--n", "5", "--publish"], "--publish needs the whole board: leave out --n and --smoke"),
        (["run", "small", "--smoke", "--publish"], "--publish needs the whole board: leave out --n and --smoke"),
    ],
)
def test_options_that_do_not_fit(rbvit: Rbvit, folder: Path, arguments: list[str], message: str) -> None:
    assert_refused(rbvit, folder, arguments, message)


@pytest.mark.parametrize("command", [["run", "small"], ["plan", "small"], attack()])
def test_devices_that_do_not_exist(rbvit: Rbvit, folder: Path, command: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    ran = rbvit(*command, "--device", "gpu9")
    assert ran.code == 2
    assert ran.err.startswith("error: device 'gpu9' cannot be used here: ")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "small", "--workers", "0"],
        ["run", "small", "--n", "0"],
        ["run", "small", "--width", "0"],
        ["run", "small", "--workers", "two"],
        attack(n="-1"),
        attack(width="0"),
        attack(seed="x"),
    ],
)
def test_numbers_out_of_range(rbvit: Rbvit, folder: Path, arguments: list[str]) -> None:
    ran = rbvit(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert f"Invalid value for '{arguments[-2]}'" in ran.err
    assert not (folder / "runs").exists()


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz") as held:
        return {"x": held["x"][:6], "y": held["y"][:6]}


def test_files_of_samples(rbvit: Rbvit, folder: Path) -> None:
    """More of them in tests/data."""
    good = arrays(folder)
    cases = [
        ({"x": good["x"] * 16}, "x ranges from 0 to 16; expected pixels in [0, 1] (divide by 255?)"),
        ({"x": good["x"] - 0.5}, "x ranges from -0.5 to 0.5; expected pixels in [0, 1]"),
        ({"x": np.where(good["x"] > 0.9, np.nan, good["x"])}, "x holds NaN or infinite pixels"),
        (
            {"x": (good["x"] * 255).astype(np.int64)},
            "x has type int64; expected uint8 (0..255) or floats in [0, 1]",
        ),
        ({"x": good["x"][:, 0]}, "x has shape (6, 8, 8); expected (n, channels, height, width) with n ≥ 1"),
        ({"y": good["y"][:5]}, "y has shape (5,); expected one label for each of the 6 images"),
        ({"y": good["y"].astype(np.float32)}, "y has type float32; expected integer class numbers"),
        ({"y": good["y"] - 100}, f"y holds the label {good['y'].min() - 100}; classes are numbered from 0"),
    ]
    for changed, message in cases:
        np.savez(folder / "bad.npz", **{**good, **changed})
        ran = rbvit(*attack(data="bad.npz"))
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"error: bad.npz: {message}")
    assert not (folder / "runs").exists()


def test_labels_and_images_that_do_not_fit_the_model(rbvit: Rbvit, folder: Path) -> None:
    good = arrays(folder)
    np.savez(folder / "bad.npz", x=good["x"], y=good["y"] + 5)
    highest = good["y"].max() + 5
    assert_refused(
        rbvit,
        folder,
        attack(data="bad.npz"),
        f"the model has 10 classes, but the labels go up to {highest}: wrong model or wrong data",
    )
    np.savez(folder / "bad.npz", x=np.repeat(good["x"], 3, 1), y=good["y"])
    ran = rbvit(*attack(data="bad.npz"))
    assert ran.code == 2
    assert ran.err == (
        f"error: {CNN}: weights of another model than this DigitsCNN;"
        " wrong shapes: stem.weight is (16, 1, 3, 3), the model has (16, 3, 3, 3)\n"
    )
    assert not (folder / "runs").exists()


def test_weights_that_are_none(rbvit: Rbvit, folder: Path) -> None:
    whole = (folder / CNN).read_bytes()

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "executed"),)

    bad = {
        "short.safetensors": (whole[:-100], "damaged or cut short ("),
        "noise.safetensors": (whole[50:], "damaged or cut short ("),
        "empty.safetensors": (b"", "the file is empty"),
        "page.safetensors": (
            b"\n<!DOCTYPE html><html><body>404</body></html>",
            "this is a web page, not weights (saved by a download that failed?)",
        ),
        "code.pt": (
            pickle.dumps({"w": Code()}),
            "loading this file would run code stored in it, which is refused; save the state dict alone, best as"
            " .safetensors",
        ),
        "weights.bin": (whole, "weights are .safetensors, .pt or .pth files, not '.bin'"),
    }
    for name, (content, message) in bad.items():
        (folder / name).write_bytes(content)
        ran = rbvit(*attack(weights=name))
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"error: {name}: {message}")
        assert ran.err.count("\n") == 1
        assert not (folder / "executed").exists()
    assert_refused(rbvit, folder, attack(weights="none.safetensors"), "no weights file at none.safetensors")
    ran = rbvit(*attack(model="digits_vit"))
    assert ran.code == 2
    assert ran.err.startswith(
        f"error: {CNN}: weights of another model than this VisionTransformer; missing: pos_embed,"
    )
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "attacks: [fgsm, short]",
            "attacks: [fgsm, shrot]",
            "leaderboards/small.yaml: unknown attack 'shrot'; did you mean 'short'?",
        ),
        (
            "defense: pgd-at",
            "defense: pdg-at",
            "leaderboards/small.yaml, entry 'cnn': unknown defense 'pdg-at'; did you mean 'pgd-at'?",
        ),
        (
            "model: digits_cnn",
            "model: digits_cn",
            "leaderboards/small.yaml, entry 'cnn': unknown model 'digits_cn'; did you mean 'digits_cnn'?",
        ),
        ("eps: 0.1", "eps: 2", "eps 2 is larger than the whole range of a pixel in [0, 1]; did you mean 2/255?"),
        ("norm: linf", "norm: l7", "leaderboards/small.yaml: field 'norm': should be 'linf', 'l2' or 'l1', got 'l7'"),
        ("samples: all", "samples: 60", "asked for 60 samples of npz/samples.npz, which has 48"),
        ("name: samples.npz", "name: sample.npz", "no data file at sample.npz"),
        (
            "vit, model: digits_vit, defense: standard, weights: weights/vit-standard",
            "twin, model: digits_cnn, defense: standard, weights: weights/cnn-pgd-at",
            "leaderboards/small.yaml: entries 'twin' and 'cnn' are the same model with the same weights;"
            " keep one of them",
        ),
    ],
)
def test_boards_that_name_what_is_not_there(rbvit: Rbvit, folder: Path, old: str, new: str, message: str) -> None:
    card = folder / "leaderboards" / "small.yaml"
    text = card.read_text(encoding="utf-8")
    assert old in text
    card.write_text(text.replace(old, new), encoding="utf-8")
    assert_refused(rbvit, folder, ["run", "small"], message)


def test_a_cascade_with_a_missing_card(rbvit: Rbvit, folder: Path) -> None:
    (folder / "attacks" / "short-fab.yaml").unlink()
    assert_refused(
        rbvit, folder, ["run", "small"], "attacks/short.yaml: unknown attack 'short-fab'; did you mean 'short-apgd'?"
    )


def test_a_board_without_its_weights(rbvit: Rbvit, folder: Path) -> None:
    missing = folder / "leaderboards" / "small" / "weights" / "cnn-pgd-at.safetensors"
    missing.unlink()
    message = f"leaderboards/small.yaml, entry 'cnn': no weights file at {missing}"
    assert_refused(rbvit, folder, ["run", "small"], message)
    shutil.copy(missing.with_name("vit-standard.safetensors"), missing)
    ran = rbvit("run", "small")
    assert ran.code == 2
    assert ran.err.startswith(f"error: leaderboards/small.yaml, entry 'cnn': {missing}: weights of another model than")
    assert not (folder / "runs").exists()


class Linear(nn.Module):
    """Ten logits from the pixels, changed by `after`."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.layer(x.flatten(1)))


def in_train_mode() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.1))


def partly_in_train_mode() -> nn.Module:
    model = in_train_mode().eval()
    model[2].train()
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Linear(lambda z: z.softmax(1)).eval(),
            "the model returns probabilities; gradients of saturated ones vanish. Return logits: drop the softmax",
        ),
        (Linear(lambda z: z * torch.nan).eval(), "the model returns NaN or infinite logits on clean images"),
        (Linear(lambda z: z / 0).eval(), "the model returns NaN or infinite logits on clean images"),
        (
            Linear(lambda z: z[:, :7]).eval(),
            "the model has 7 classes, but the labels go up to 9: wrong model or wrong data",
        ),
        (Linear(lambda z: z[:, :1]).eval(), "the model has one output; expected logits for at least two classes"),
        (
            Linear(lambda z: (z, z)).eval(),
            "the model returns a tuple; expected logits (n, classes). Wrap it: lambda x: model(x)[0]",
        ),
        (
            Linear(lambda z: {"out": z}).eval(),
            "the model returns a dict; expected logits (n, classes). Wrap it: lambda x: model(x)[0]",
        ),
        (
            Linear(lambda z: z[:, 0]).eval(),
            "the model returns (16,) for 16 images; expected logits of shape (16, classes)",
        ),
        (
            Linear(lambda z: z.argmax(1, keepdim=True).expand(-1, 10)).eval(),
            "the model returns torch.int64; expected floating-point logits, not decisions",
        ),
        (
            Linear(lambda z: None).eval(),
            "the model returns NoneType for 16 images; expected logits of shape (16, classes)",
        ),
        (
            in_train_mode(),
            "the model is in train mode (2: Dropout): dropout and batch statistics would be on; call model.eval()",
        ),
        (
            partly_in_train_mode(),
            "the model is in train mode (2: Dropout): dropout and batch statistics would be on; call model.eval()",
        ),
    ],
)
def test_models_that_no_number_would_be_right_for(model: nn.Module, message: str, folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        rbv.evaluate(model, "samples.npz", attack="short", eps=0.1, out="runs/mine", workspace=open_workspace(folder))
    assert (str(caught.value), caught.value.exit_code) == (message, 2)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 9)], ids=["channels", "size"])
def test_images_of_another_shape(shape: tuple[int, ...], folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 10)).eval()
    with pytest.raises(ModelError) as caught:
        rbv.evaluate(model, torch.rand(4, *shape), torch.arange(4), "short", eps=0.1, workspace=open_workspace(folder))
    assert str(caught.value).startswith(f"the model cannot take images of shape {shape} (channels, height, width): ")


X, Y = torch.linspace(0, 1, 256).view(4, 1, 8, 8), torch.tensor([0, 1, 2, 9])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, "x ranges from 0 to 255; expected pixels in [0, 1] (divide by 255?)"),
        (
            X * 2 - 1,
            Y,
            "x ranges from -1 to 1; expected pixels in [0, 1] (undo the normalisation and use"
            " rbv.normalised(model, mean, std))",
        ),
        (
            (X * 255).to(torch.uint8),
            Y,
            "x has type torch.uint8; expected floats in [0, 1] (for uint8 images: x.float() / 255)",
        ),
        (torch.full_like(X, torch.nan), Y, "x holds NaN or infinite pixels"),
        (X / 0, Y, "x holds NaN or infinite pixels"),
        (X[0], Y, "x has shape (1, 8, 8); expected (n, channels, height, width) with n ≥ 1"),
        (X[:0], Y[:0], "x has shape (0, 1, 8, 8); expected (n, channels, height, width) with n ≥ 1"),
        (X, Y[:3], "y has shape (3,); expected one label for each of the 4 images"),
        (X, Y.view(4, 1), "y has shape (4, 1); expected one label for each of the 4 images"),
        (X, Y.float(), "y has type torch.float32; expected integer class numbers (int64)"),
        (X, Y > 1, "y has type torch.bool; expected integer class numbers (int64)"),
        (X, Y - 1, "y holds the label -1; classes are numbered from 0"),
        (
            X,
            Y + 1,
            "the model has 10 classes, but the labels go up to 10: wrong model or wrong data"
            " (are they numbered from 1? subtract 1)",
        ),
        (X, None, "y is missing: give labels (n,), or a dataset in place of x"),
        ("samples.npz", Y, "a dataset brings its labels; leave y out"),
        (X.numpy(), Y.numpy(), "x and y are torch tensors, got ndarray and ndarray"),
    ],
)
def test_samples(x: Any, y: Any, message: str, folder: Path) -> None:
    model = Linear(lambda z: z).eval()
    with pytest.raises(RobustbenchError) as caught:
        rbv.evaluate(model, x, y, "short", eps=0.1, out="runs/mine", workspace=open_workspace(folder))
    assert (str(caught.value), caught.value.exit_code) == (message, 2)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"eps": 0}, "eps must be positive, got 0"),
        ({"eps": float("nan")}, "eps: expected a finite number, got nan"),
        ({"eps": [0.1, -0.2]}, "eps must be positive, got -0.2"),
        ({"eps": 8}, "eps 8 is larger than the whole range of a pixel in [0, 1]; did you mean 8/255?"),
        ({"eps": []}, "eps is an empty list; give at least one radius"),
        ({"eps": "8/"}, "eps: expected a number such as 0.2 or 8/255, got '8/'"),
        ({"eps": True}, "eps: expected a number such as 0.2 or 8/255, got True"),
        ({"attack": "autoatack"}, "unknown attack 'autoatack'; did you mean 'autoattack'?"),
        ({"norm": "Linf"}, "unknown norm 'Linf'; did you mean 'linf'?"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_arguments(named: dict[str, Any], message: str, folder: Path) -> None:
    arguments = {"attack": "short", "eps": 0.1, "out": "runs/mine", "workspace": open_workspace(folder), **named}
    with pytest.raises(InputError) as caught:
        rbv.evaluate(Linear(lambda z: z).eval(), X, Y, **arguments)
    assert str(caught.value) == message
    assert isinstance(caught.value, UnknownNameError) == message.startswith("unknown")
    assert not (folder / "runs").exists()


def test_a_callable_cannot_be_resumed(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        rbv.evaluate(lambda x: x.flatten(1)[:, :10], X, Y, "fgsm", eps=0.1, out="runs/mine")
    assert str(caught.value) == (
        "a run that can be resumed needs an nn.Module: a plain callable has no weights to know it by"
    )
    assert not (folder / "runs").exists()


def test_half_precision_images_are_no_bad_input(folder: Path) -> None:
    for precision in (torch.float16, torch.bfloat16, torch.float64):
        record = rbv.evaluate(Linear(lambda z: z).eval(), X.to(precision), Y, "fgsm", eps=0.1)
        assert record.adversarials.dtype is torch.float32
