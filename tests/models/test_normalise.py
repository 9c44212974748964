"""Normalisation inside the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_vit as rbv
from robustbench_vit.errors import InputError


def test_images_are_shifted_and_scaled_per_channel():
    model = rbv.normalised(nn.Identity(), (0.5, 0.0), (0.25, 2.0))
    x = torch.full((3, 2, 4, 4), 1.0)
    y = model(x)
    assert torch.equal(y[:, 0], torch.full((3, 4, 4), 2.0))
    assert torch.equal(y[:, 1], torch.full((3, 4, 4), 0.5))


def test_the_state_dict_is_the_wrapped_models():
    inner = nn.Linear(2, 2)
    model = rbv.normalised(inner, (0.5,), (0.5,))
    assert set(model.state_dict()) == {"model.weight", "model.bias"}
    model.model.load_state_dict(nn.Linear(2, 2).state_dict())


def test_buffers_follow_the_model():
    model = rbv.normalised(nn.Identity(), (0.5,), (0.5,)).double()
    assert model(torch.zeros(1, 1, 1, 1, dtype=torch.float64)).dtype == torch.float64


def test_the_mode_is_the_models():
    assert not rbv.normalised(nn.Dropout().eval(), (0.5,), (0.5,)).training
    assert rbv.normalised(nn.Dropout(), (0.5,), (0.5,)).training


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (0.5,), "mean has 2 numbers and std 1"),
        ((), (), "mean has 0 numbers"),
        ((0.5,), (0.0,), "std holds 0; a standard deviation is above 0"),
        ((float("nan"),), (0.5,), "must be finite"),
    ],
)
def test_bad_numbers_are_refused(mean, std, message):
    with pytest.raises(InputError, match=message):
        rbv.normalised(nn.Identity(), mean, std)


def test_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match="the images have 3 channels, the normalisation 1"):
        rbv.normalised(nn.Identity(), (0.5,), (0.5,))(torch.zeros(1, 3, 2, 2))
