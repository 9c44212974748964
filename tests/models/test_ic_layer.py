"""Facts about IC layers (arXiv:1905.05928)."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.ic_layer import IC, BehindIC, with_ic_layers

SHARED = nn.Linear(2, 2)


class Last(nn.Module):
    """(n, c, h, w) ↦ (n, h, w, c), as ConvNeXt's linear layers see it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


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


def test_dropout_scales_mutual_information_by_its_square():
    """A value is dropped or kept; of two equal bits, independent dropout leaves about q² of the information."""
    n, keep = 400_000, 0.5
    bit = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = IC(2, 1 - keep).train()(torch.stack([bit, bit], 1).float()).detach().sign().long() + 1
    joint = torch.bincount(y[:, 0] * 3 + y[:, 1], minlength=9).double().view(3, 3) / n
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    information = (joint * (joint / independent).log()).nan_to_num().sum() / torch.log(torch.tensor(2.0))
    assert float(information) == pytest.approx(keep**2, abs=0.005)


def folded(conv: nn.Conv2d, ic: IC) -> nn.Conv2d:
    """One convolution with the affine map of the IC layer before it put into its weights."""
    a = ic.norm.weight / (ic.norm.running_var + ic.norm.eps).sqrt()
    b = ic.norm.bias - ic.norm.running_mean * a
    single = copy.deepcopy(conv)
    with torch.no_grad():
        single.weight *= a.view(1, -1, 1, 1)
        single.bias += (conv.weight * b.view(1, -1, 1, 1)).sum((1, 2, 3))
    return single


@pytest.mark.parametrize("padding", [0, 1])
def test_folding_it_into_a_padded_convolution_is_wrong_at_the_border(padding):
    conv, ic = nn.Conv2d(5, 4, 3, padding=padding), trained(5)
    x = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (folded(conv, ic)(x) - conv(ic(x))).abs().amax((0, 1))
    inner = slice(padding, error.shape[0] - padding)
    assert error[inner, inner].max() < 2e-6
    if padding:
        error[inner, inner] = 1.0
        assert error.min() > 1e-3


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


@pytest.mark.parametrize(
    ("name", "args", "wrapped"),
    [
        ("resnet18", {}, 17),
        ("resnet50", {}, 49),
        ("convnext_atto", {}, 40),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}, 16),
        ("efficientnet_b0", {}, 81),
        ("mobilenetv3_small_050", {}, 53),
        ("regnetx_002", {}, 40),
        ("densenet121", {}, 120),
        ("repvgg_a0", {}, 43),
    ],
)
def test_it_wraps_cnns_of_timm(name, args, wrapped):
    """In eval mode a fresh IC layer is all but the identity; depthwise, grouped and channels-last layers work."""
    model = timm.create_model(name, num_classes=3, **args).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        before = model(x)
    with_ic_layers(model)
    assert sum(isinstance(m, BehindIC) for m in model.modules()) == wrapped
    after = model(x)
    assert (after - before).abs().max() < 1e-3 * before.abs().max()
    (gradient,) = torch.autograd.grad(after.square().sum(), x)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_a_linear_layers_channels_are_the_last_dimension():
    model = with_ic_layers(nn.Sequential(nn.Conv2d(3, 5, 1), Last(), nn.Linear(5, 2))).train()
    inside: list[torch.Tensor] = []
    model[2].ic.norm.register_forward_hook(lambda m, given, made: inside.append(made))
    assert model(3 + torch.randn(8, 3, 5, 6)).shape == (8, 5, 6, 2)
    assert inside[0].shape == (8 * 5 * 6, 5)
    assert inside[0].mean(0).abs().max() < 1e-4


def test_the_stem_is_what_timm_says_it_is():
    """RepVGG's image goes through two convolutions side by side."""
    model = with_ic_layers(timm.create_model("repvgg_a0"))
    assert [type(model.get_submodule(path)) for path in model.pretrained_cfg["first_conv"]] == [nn.Conv2d, nn.Conv2d]


def test_batch_normalisation_stays_before_the_relu():
    model = with_ic_layers(timm.create_model("resnet18"))
    assert isinstance(model.layer1[0].bn1, nn.BatchNorm2d)
    assert model.layer1[0].conv2.ic.norm is not model.layer1[0].bn1


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
        (nn.TransformerEncoderLayer(4, 2), 0.05, "'self_attn' is an nn.MultiheadAttention"),
        (nn.Sequential(SHARED, SHARED), 0.05, "'1' and '0' are one layer, which cannot have two IC layers"),
    ],
)
def test_refusals(model, p, message):
    with pytest.raises(InputError, match=message):
        with_ic_layers(model, p)
