"""Facts about IC layers (arXiv:1905.05928)."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.ic_layer import IC, BehindIC, with_ic_layers


def trained(features: int) -> IC:
    """An IC layer with statistics and parameters unlike the initial ones, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    layer = IC(features, 0.05)
    with torch.no_grad():
        for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
            tensor.copy_(0.5 + torch.rand(features, generator=generator))
    return layer.eval()


@pytest.mark.parametrize("shape", [(6, 5), (6, 7, 5), (6, 5, 4, 3)])
def test_in_eval_mode_it_is_an_affine_map(shape):
    layer = trained(5)
    norm = layer.norm
    a = norm.weight / (norm.running_var + norm.eps).sqrt()
    b = norm.bias - norm.running_mean * a
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    channels = (1, 5, 1, 1) if len(shape) == 4 else (5,)
    expected = a.view(channels) * x + b.view(channels)
    assert (layer(x) - expected).abs().max() < 5e-7
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("keep", "expected"), [(0.95, 0.570), (0.5, 0.300)])
def test_dropout_scales_correlation_by_the_keep_probability(keep, expected):
    n = 400_000
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, generator=generator)
    second = 0.6 * first + 0.8 * torch.randn(n, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = IC(2, 1 - keep).train()(torch.stack([first, second], 1)).detach()
    assert float(torch.corrcoef(y.T)[0, 1]) == pytest.approx(expected, abs=0.006)


def test_in_train_mode_every_channel_is_normalised():
    x = 3 + 2 * torch.randn(64, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    y = IC(5, 0.0).train()(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert (y.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-4


def test_it_stands_before_every_weight_layer_but_stem_and_shortcuts():
    model = with_ic_layers(build_model("digits_cnn"), 0.05)
    wrapped = {path for path, module in model.named_modules() if isinstance(module, BehindIC)}
    assert wrapped == {f"blocks.{i}.conv{k}" for i in range(3) for k in (1, 2)} | {"head"}
    assert isinstance(model.stem, nn.Conv2d)
    assert isinstance(model.blocks[1].shortcut, nn.Conv2d)
    keys = model.state_dict()
    assert "blocks.0.conv1.layer.weight" in keys
    assert "blocks.0.conv1.ic.norm.running_mean" in keys


def test_it_wraps_a_timm_resnet_and_its_bottlenecks():
    model = timm.create_model("resnet26", num_classes=3)
    before = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    bare = {"conv1"} | {path for path in before if "downsample" in path}
    with_ic_layers(model, 0.1)
    wrapped = {path for path, m in model.named_modules() if isinstance(m, BehindIC)}
    assert wrapped == set(before) - bare
    assert "layer1.0.conv1" in wrapped  # 1×1, and no shortcut
    model.train()
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_the_wrapped_layers_keep_their_weights_and_mode():
    model = build_model("digits_cnn")
    head = model.head
    assert with_ic_layers(model, 0.2).head.layer is head
    assert not model.head.ic.training
    assert model.head.ic.dropout.p == 0.2


@pytest.mark.parametrize(
    ("model", "p", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), 0.05, "no weight layer"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), IC(2, 0.1)), 0.05, "has IC layers already"),
        (nn.Sequential(nn.Linear(1, 2)), 1.0, "probability in"),
    ],
)
def test_refusals(model, p, message):
    with pytest.raises(InputError, match=message):
        with_ic_layers(model, p)
