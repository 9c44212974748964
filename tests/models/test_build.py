"""Building models by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.catalogue import model_catalogue

PARAMETERS = {"digits_vit": 102_538, "digits_cnn": 38_058, "digits_ic_cnn": 38_410}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_our_models_take_timms_habits(name):
    model = build_model(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    other = timm.create_model(name, num_classes=3, in_chans=2)
    assert other(torch.rand(2, 2, 8, 8)).shape == (2, 3)


def test_the_catalogue_is_what_is_registered():
    build_model("digits_cnn")
    catalogue = model_catalogue()
    assert set(PARAMETERS) <= set(catalogue)
    assert all(timm.is_model(name) and line for name, line in catalogue.items())
    assert catalogue["digits_vit"].startswith("Vision Transformer for 8×8 grey images")


def test_listing_models_imports_no_torch():
    code = (
        "import sys; from robustbench_vit.models.catalogue import model_catalogue; "
        "assert model_catalogue(); assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cnn_has_no_batch_normalisation():
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in build_model("digits_cnn").modules())


def test_any_timm_model_is_built():
    model = build_model("vit_tiny_patch16_224", img_size=32, num_classes=5)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("digits_vti", {}, UnknownNameError, "unknown model 'digits_vti'; did you mean 'digits_vit'?"),
        ("resnet18", {"pretrained": True}, InputError, "weights are not downloaded; give a weights file"),
        ("digits_cnn", {"width": 3}, InputError, "digits_cnn has no setting 'width'"),
        ("digits_vit", {"embed_dim": 63}, InputError, "model 'digits_vit' cannot be built with embed_dim=63"),
    ],
)
def test_what_cannot_be_built_says_why(name, args, error, message):
    with pytest.raises(error) as caught:
        build_model(name, **args)
    assert message in str(caught.value)
