"""Building models by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from robustbench_vit.engine.intake import intake
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.models.build import build_model, register_models
from robustbench_vit.models.catalogue import model_catalogue

PARAMETERS = {"digits_vit": 102_538, "digits_cnn": 38_058, "digits_ic_cnn": 38_410}
MODELS = list(model_catalogue())
register_models()
ARCHITECTURES = [name for name in MODELS if timm.get_pretrained_cfg(name) is not None]
"""Models with timm's habits; the others are for the digits."""
DIGITS = [name for name in MODELS if name.startswith("digits_")]
REAL = [name for name in MODELS if name.startswith(("digits_", "small_"))]
REAL += ["t2t_vit_7", "evit_tiny_patch16_224", "ic_resnet20"]
"""Models that run on numbers here; all of them run on shapes alone."""


def on_meta(name: str, **args: Any) -> Any:
    """The model without numbers: whatever its size, building and running it takes little."""
    with torch.device("meta"):
        return build_model(name, **args)


def seeded(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name)


def shape_of(model: nn.Module) -> tuple[int, ...]:
    """Of one image."""
    return getattr(model, "pretrained_cfg", {"input_size": (1, 8, 8)})["input_size"]


def images(model: nn.Module, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *shape_of(model), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_logits_and_input_gradients(name):
    model = on_meta(name)
    classes = model.pretrained_cfg["num_classes"] if name in ARCHITECTURES else 10
    x = torch.empty(2, *shape_of(model), device="meta", requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, classes)
    assert torch.autograd.grad(logits.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_model_has_timms_habits(name):
    model = on_meta(name, num_classes=7, drop_rate=0.1)
    x = torch.empty(2, *shape_of(model), device="meta")
    features = model.forward_features(x)
    assert model.forward_head(features).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])
    model.reset_classifier(3)
    assert model.forward_head(features).shape == (2, model.num_classes) == (2, 3)
    assert model.pretrained_cfg["architecture"] == name
    with pytest.raises(InputError, match=f"{name} has no pretrained weights"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(InputError, match=r"has no setting 'widht'"):
        build_model(name, widht=3)


@pytest.mark.parametrize("name", REAL)
def test_in_eval_mode_answers_depend_on_the_image_alone(name):
    model = seeded(name)
    x = images(model, 2).requires_grad_()
    logits = model(x)
    assert torch.equal(model(x), logits)
    torch.testing.assert_close(model(x[1:]), logits[1:], atol=1e-5, rtol=1e-4)
    both = torch.autograd.grad(logits[:, 0].sum(), x)[0]
    assert both.isfinite().all()
    assert bool((both != 0).flatten(1).any(1).all())
    alone = torch.autograd.grad(model(x[:1])[:, 0].sum(), x)[0]
    torch.testing.assert_close(alone[0], both[0], atol=1e-5 * float(both.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", REAL)
def test_precisions(name):
    model = seeded(name)
    exact = model(images(model, 2)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images(model, 2)).detach()
    torch.testing.assert_close(rough.float(), exact, atol=0.1 * float(exact.abs().max()), rtol=0)
    double = model.double()(images(model, 2, torch.float64)).detach()
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), exact, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", DIGITS)
def test_compiled_models_answer_alike(name):
    model = seeded(name)
    torch.testing.assert_close(torch.compile(model, backend="eager")(images(model, 2)), model(images(model, 2)))


@pytest.mark.parametrize("name", DIGITS)
def test_intake_finds_nothing_to_refuse(name):
    model = seeded(name)
    assert intake(model, images(model, 20), torch.arange(20) % 10).policy == "A"


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
    assert len(ARCHITECTURES) >= 32
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
