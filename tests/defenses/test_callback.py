"""Robust validation accuracy in somebody else's loop."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.data import Dataset
from robustbench_vit.defenses.callback import RobustValidation
from robustbench_vit.errors import CardError, InputError, UnknownNameError


class Threshold(nn.Module):
    """Class 1 when the mean pixel exceeds a half: sample i falls when eps exceeds its mean's distance from there."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.norm = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm[0].training:
            raise AssertionError("asked in train mode")
        z = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Means 0.5 ± 0.05, ± 0.15, ± 0.25, …; the last sample's label is wrong."""
    distance = torch.tensor([0.05, -0.05, 0.15, -0.15, 0.25, -0.25, 0.35, -0.35])
    y = (distance > 0).long()
    y[-1] = 1
    return (0.5 + distance).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), y


def test_the_accuracy_is_the_one_known_in_closed_form(images, tmp_path: Path):
    check = RobustValidation(images, "pgd-20", "linf", 0.1, csv=tmp_path / "robust.csv")
    assert check(Threshold(), 1) == 5 / 8
    assert check.history[0].clean_accuracy == 7 / 8
    assert RobustValidation(images, "pgd-20", "linf", 0.2, batch_size=3)(Threshold(), 1) == 3 / 8
    model = Threshold()
    model.scale.data.neg_()  # only the wrong label is right now
    check(model, 2)
    check(Threshold(), 3)
    assert check.best_epoch == 1
    with (tmp_path / "robust.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["robust_accuracy"] for row in rows] == ["0.625", "0.125", "0.625"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["best_epoch"] for row in rows] == ["1", "1", "1"]
    assert rows[0]["clean_accuracy"] == "0.875"


def test_the_model_is_left_as_it_was(images):
    model = Threshold().train()
    model.norm[1].eval()  # a part that somebody froze
    model.scale.grad = torch.tensor(3.0)
    model.other = nn.Parameter(torch.ones(2), requires_grad=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    check = RobustValidation(images, "pgd-20", "linf", 0.1)
    with torch.inference_mode():  # whatever the loop around it has switched on
        first = check(model, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert check(model, 2) == first == 5 / 8
    assert (model.training, model.norm[0].training, model.norm[1].training) == (True, True, False)
    assert (model.scale.requires_grad, model.other.requires_grad) == (True, False)
    assert model.scale.grad == 3.0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_that_fails_is_left_as_it_was_too(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).train()
    with pytest.raises(InputError, match=r"^Sequential cannot be attacked on images of shape 1×2×2 with labels"):
        RobustValidation(images, "pgd-20", "linf", 0.1)(model, 1)
    assert model.training
    assert model[1].weight.requires_grad


class Callback:
    """What Lightning's class of that name does here: it has every hook, and most do nothing."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        raise AssertionError("not overridden")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing."""


def test_as_a_callback_of_lightning(images):
    check = RobustValidation(images, "pgd-20", "linf", 0.1)
    hook = check.lightning(Callback)
    assert isinstance(hook, Callback)
    logged = {}
    module = Threshold()
    module.log = lambda name, value, rank_zero_only: logged.update({name: value})
    hook.on_train_epoch_end(SimpleNamespace(is_global_zero=False, current_epoch=0), module)
    assert (check.history, logged) == ([], {})
    hook.on_train_epoch_end(SimpleNamespace(is_global_zero=True, current_epoch=0), module)
    assert logged == {"robust_accuracy": 5 / 8}
    assert [one.epoch for one in check.history] == [1]


def changed(images: tuple[Tensor, Tensor], x: Tensor | None = None, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return (images[0] if x is None else x, images[1] if y is None else y)


def test_what_cannot_validate_is_refused(images, data: Dataset):
    x, y = images
    refused = [
        (changed(images, x=x * 255), "images lie in [0, 1], these reach from"),
        (changed(images, x=x * torch.nan), "images lie in [0, 1]"),
        (changed(images, y=y[:3]), "expected images (n, c, h, w) and integer labels (n,)"),
        (changed(images, y=y.float()), "expected images (n, c, h, w) and integer labels (n,)"),
        (changed(images, x=x[:0], y=y[:0]), "there is no sample to validate on"),
    ]
    for given, message in refused:
        with pytest.raises(InputError) as caught:
            RobustValidation(given, "pgd-20", "linf", 0.1)
        assert message in str(caught.value)
    test = Dataset("digits", "test", data.x, data.y, data.sample_ids, "", "none", 2)
    with pytest.raises(InputError, match="digits/test must not choose a model"):
        RobustValidation(test, "pgd-20", "linf", 0.1)


def test_settings_that_cannot_run_are_refused(images):
    with pytest.raises(InputError, match="did you mean 8/255"):
        RobustValidation(images, "pgd-20", "linf", 8)
    with pytest.raises(InputError, match="eps is larger than 0, got 0"):
        RobustValidation(images, "pgd-20", "linf", 0)
    with pytest.raises(InputError, match="batch_size is at least 1"):
        RobustValidation(images, "pgd-20", "linf", 0.1, batch_size=0)
    with pytest.raises(CardError, match="validation runs a card of algorithm 'pgd', not 'autoattack'"):
        RobustValidation(images, "autoattack", "linf", 0.1)
    with pytest.raises(UnknownNameError, match="did you mean 'pgd-20'"):
        RobustValidation(images, "pgd-21", "linf", 0.1)
    with pytest.raises(CardError, match="works in linf, l2, l1, not in l0"):
        RobustValidation(images, "pgd-20", "l0", 0.1)


def test_the_numbers_are_those_of_a_training_run(images, data: Dataset):
    """A data set and the same pixels as tensors draw other noise, and agree where noise decides nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :32] = model[1].weight[1, 32:] = 1.0
        model[1].bias.zero_()
    tensors = (torch.from_numpy(data.x), torch.from_numpy(data.y))
    found = [RobustValidation(given, "pgd-20", "linf", 0.02)(model, 1) for given in (data, tensors)]
    assert found == [1.0, 1.0]
    assert RobustValidation(data, "pgd-20", "linf", 0.9)(model, 1) == 0.0
