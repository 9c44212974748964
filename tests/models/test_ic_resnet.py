"""Facts about IC-ResNets (arXiv:1905.05928)."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustbench_vit.engine.intake import intake
from robustbench_vit.errors import InputError, ModelError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.ic_layer import IC
from robustbench_vit.models.ic_resnet import UNITS
from robustbench_vit.models.weights import load_weights, save_weights

SIZES = {
    "ic_resnet20": (273_066, 19),
    "ic_resnet56": (857_706, 55),
    "ic_resnet110": (1_734_666, 109),
    "ic_resnet164_bottleneck": (1_715_818, 163),
    "digits_ic_resnet": (77_898, 7),
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layers(model: nn.Module) -> list[str]:
    """What a forward pass runs through, in its order, but the shortcuts."""
    seen: list[str] = []
    kinds = {nn.Conv2d: "conv", nn.ReLU: "relu", IC: "ic", nn.Linear: "linear"}
    for path, module in model.named_modules():
        if type(module) in kinds and "shortcut" not in path:
            module.register_forward_hook(lambda m, _, __: seen.append(kinds[type(m)]))
    with torch.no_grad():
        model(torch.rand(1, 3, 8, 8))
    return seen


@pytest.mark.parametrize(
    ("name", "unit"), [*((name, UNITS[0]) for name in SIZES), *(("ic_resnet20", u) for u in UNITS)]
)
def test_parameters_and_ic_layers(name, unit):
    with torch.device("meta"):
        model = timm.create_model(name, unit=unit)
    assert (parameters(model), sum(isinstance(m, IC) for m in model.modules())) == SIZES[name]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("relu-ic-conv", ["conv", *["relu", "ic", "conv"] * 6, "relu", "ic", "linear"]),
        ("ic-conv-relu", ["conv", "relu", *["ic", "conv", "relu"] * 6, "ic", "linear"]),
        ("conv-relu-ic", ["conv", "relu", "ic", *["conv", "relu", "ic"] * 6, "linear"]),
    ],
)
def test_every_weight_layer_stands_in_a_unit_of_the_order(unit, expected):
    assert layers(build_model("digits_ic_resnet", in_chans=3, unit=unit)) == expected


def test_a_bottleneck_has_three_units_and_the_stride_in_the_middle():
    model = build_model("ic_resnet164_bottleneck")
    assert [len(stage) for stage in model.stages] == [18, 18, 18]
    convs = [unit.conv for unit in model.stages[1][0].units]
    assert [(c.kernel_size[0], c.stride[0], c.in_channels, c.out_channels) for c in convs] == [
        (1, 1, 64, 32),
        (3, 2, 32, 32),
        (1, 1, 32, 128),
    ]


def test_macs_are_those_of_resnet_20_and_two_shortcuts():
    model = build_model("ic_resnet20")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    stem, head = 16 * 27 * 1024, 640
    first = 6 * 16 * 16 * 9 * 1024
    later = 2 * (16 * 16 * 9 * 1024 // 2 + 5 * 16 * 16 * 9 * 1024)
    shortcuts = 2 * 16 * 32 * 256
    assert counter.get_total_flops() == 2 * (stem + first + later + shortcuts + head)


@pytest.mark.parametrize("name", sorted(SIZES))
@pytest.mark.parametrize("batch", [1, 2])
def test_it_runs_has_gradients_and_repeats_itself(name, batch):
    model = build_model(name)
    x = torch.rand(batch, model.in_chans, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(x)
    assert logits.shape == (batch, 10)
    assert torch.equal(logits, model(x))
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_timms_habits():
    model = build_model("ic_resnet20", in_chans=1, num_classes=5, img_size=28)
    x = torch.rand(2, 1, 28, 28)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 7, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, 64)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.get_classifier().out_features == 5
    model.reset_classifier(3)
    assert model(x).shape == (2, model.num_classes) == (2, 3)
    model.reset_classifier(0)
    assert torch.equal(model(x), features.mean((2, 3)))
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    for key in ("classifier", "first_conv"):
        assert build_model("ic_resnet20").get_submodule(model.pretrained_cfg[key]) is not None
    with pytest.raises(InputError, match="update batch statistics twice"):
        model.set_grad_checkpointing()


def test_its_stages_are_features():
    model = timm.create_model("ic_resnet20", features_only=True)
    assert [tuple(f.shape[1:]) for f in model(torch.rand(1, 3, 32, 32))] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_training_fits_a_batch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model("digits_ic_resnet", num_classes=4).train()
        x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 4
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(25):
            losses.append(nn.functional.cross_entropy(model(x), y))
            optimiser.zero_grad()
            losses[-1].backward()
            optimiser.step()
    assert losses[-1] < 0.3 * losses[0]


def test_intake_takes_it_and_refuses_dropout_left_on():
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = build_model("digits_ic_resnet")
    y = model(x).argmax(1)
    assert not [f for f in intake(model, x, y).findings if f.level == "refuse"]
    model.stages[0][0].units[0].ic.dropout.train()
    with pytest.raises(ModelError, match=r"train mode \(stages\.0\.0\.units\.0\.ic\.dropout: Dropout\)"):
        intake(model, x, y)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"unit": "conv-bn-relu"}, "unit 'conv-bn-relu' is none of relu-ic-conv, ic-conv-relu, conv-relu-ic"),
        ({"p": 1.0}, r"probability in \[0, 1\), got 1"),
        ({"depth": 21}, "depth 21: three equal stages need a depth of 6n \\+ 2"),
        ({"depth": 26, "bottleneck": True}, "depth of 9n \\+ 2"),
        ({"heads": 2}, "ic_resnet20 has no setting 'heads'"),
        ({"self": 2}, "ic_resnet20 has no setting 'self'"),
        ({"pretrained": True}, "ic_resnet20 has no pretrained weights; load a file"),
    ],
)
def test_bad_settings(args, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("ic_resnet20", **args)


def test_weights_of_another_depth_do_not_load(tmp_path):
    save_weights(build_model("ic_resnet20"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing: stages\.0\.3\.units"):
        load_weights(build_model("ic_resnet56"), tmp_path / "w.safetensors")
