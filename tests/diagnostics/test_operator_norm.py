"""Layer norms against published facts and against the dense matrix."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_vit.diagnostics.operator_norm import extreme_entries, input_sizes, operator_norm
from robustbench_vit.errors import InputError
from robustbench_vit.models.build import build_model


def fact_weight(layer: nn.Module) -> None:
    """Entry k of the flattened weight is ((7k + 3) mod 11 - 5) / 4."""
    weight = layer.weight
    k = torch.arange(weight.numel(), dtype=torch.float64)
    with torch.no_grad():
        weight.copy_((((7 * k + 3) % 11 - 5) / 4).view_as(weight).to(weight.dtype))


def dense(layer: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """The matrix (outputs, inputs) of a layer without bias, built from one-hot inputs."""
    channels = layer.weight.shape[1] * layer.groups
    n = channels * torch.Size(size).numel()
    basis = torch.eye(n, dtype=layer.weight.dtype).view(n, channels, *size)
    with torch.no_grad():
        return layer(basis).flatten(1).T


RECTANGULAR = {"in_channels": 2, "out_channels": 2, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
FACTS = [
    ({"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": 1, "padding": 1}, (8, 8), 13.00, 18.75),
    ({"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": 2, "padding": 1}, (8, 8), 7.25, 18.75),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "stride": 1, "padding": 1}, (3, 3), 18.75, 12.50),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 1, "stride": 1, "padding": 0}, (5, 5), 2.00, 1.75),
    ({"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2}, (8, 8), 24.75, 51.50),
    (
        {"in_channels": 2, "out_channels": 2, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        (7, 6),
        5.50,
        8.75,
    ),
]


@pytest.mark.parametrize(("settings", "size", "l1", "linf"), FACTS)
def test_published_facts(settings, size, l1, linf):
    layer = nn.Conv2d(**settings)
    fact_weight(layer)
    assert operator_norm(layer, size, "l1") == pytest.approx(l1, abs=1e-5)
    assert operator_norm(layer, size, "linf") == pytest.approx(linf, abs=1e-5)


RANDOM = [  # every stride, padding, group and dilation; then what the published code gets wrong
    (nn.Conv2d(4, 6, 3, stride=s, padding=p, groups=g, dilation=d), (7, 5))
    for s, p, g, d in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2))
] + [
    (nn.Conv2d(3, 4, (2, 5), stride=(3, 1), padding=(0, 3), dilation=(2, 1)), (6, 4)),
    (nn.Conv2d(3, 4, 5, padding=2), (2, 2)),  # the input is smaller than the kernel
    (nn.Conv2d(3, 4, 4, padding="same"), (5, 6)),  # an even kernel pads one side more
    (nn.Conv2d(3, 4, 3, padding="same", dilation=3), (4, 4)),
    (nn.Conv2d(1, 8, 2, stride=2), (8, 8)),  # a patch embedding: kernel == stride
    (nn.Conv2d(4, 4, 3, stride=4, padding=1, groups=4), (9, 9)),
    (nn.Conv1d(3, 5, 4, stride=3, padding=2), (11,)),
    (nn.Conv3d(2, 3, 2, stride=2, padding=1), (3, 4, 5)),
]


@pytest.mark.parametrize(("layer", "size"), RANDOM, ids=str)
def test_norms_and_entries_equal_those_of_the_dense_matrix(layer, size):
    layer = layer.double()
    layer.bias = None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    matrix = dense(layer, size)
    for ord, dim in (("linf", 1), ("l1", 0)):
        sums = matrix.abs().sum(dim)
        assert operator_norm(layer, size, ord) == pytest.approx(float(sums.max()), rel=1e-12)
        mask = extreme_entries(layer, size, ord)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        # The marked entries are those of one maximising row or column: their absolute values add up to the norm …
        assert float((mask * layer.weight.detach().abs()).sum()) == pytest.approx(float(sums.max()), rel=1e-12)
        # … and they are all of its entries (of equal ones, whichever rounding put first).
        lines = [matrix.select(1 - dim, i) for i in (sums > sums.max() - 1e-9).nonzero().flatten().tolist()]
        marked = sorted(layer.weight[mask.bool()].tolist())
        assert marked in [sorted(line[line != 0].tolist()) for line in lines]


@pytest.mark.parametrize("settings", [{"stride": 2, "padding": 1}, {"groups": 2, "padding": 2}, {"dilation": 2}])
def test_l1_norm_is_the_linf_norm_of_the_adjoint(settings):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **settings).double()
    x = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    s, p, d = settings.get("stride", 1), settings.get("padding", 0), settings.get("dilation", 1)
    ones = torch.ones_like(layer(x).detach())
    missing = 8 - ((ones.shape[2] - 1) * s - 2 * p + 2 * d + 1)  # input pixels no output is made from
    adjoint = F.conv_transpose2d(ones, layer.weight.detach().abs(), None, s, p, missing, layer.groups, d)
    assert operator_norm(layer, (8, 8), "l1") == pytest.approx(float(adjoint.max()), rel=1e-12)


def test_linear_layers():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 4.0], [-3.0, 0.0]]))
    assert operator_norm(layer, (), "linf") == 4.5
    assert operator_norm(layer, (), "l1") == 6.0
    assert extreme_entries(layer, (), "linf").tolist() == [[0, 0], [1, 1], [0, 0]]
    assert extreme_entries(layer, (), "l1").tolist() == [[0, 1], [0, 1], [0, 1]]


def test_nothing_of_the_layer_changes():
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    before = layer.weight.detach().clone()
    operator_norm(layer, (8, 8), "l1")
    extreme_entries(layer, (8, 8), "linf")
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("layer", "size", "ord", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (8, 8), "l1", "pads with 'reflect'"),
        (nn.Conv2d(1, 1, 5), (4, 8), "linf", r"inputs of size \(4, 8\) are too small for this Conv2d"),
        (nn.Conv2d(1, 1, 3), (8,), "l1", "a Conv2d needs 2 input sizes"),
        (nn.BatchNorm2d(3), (8, 8), "l1", "not for BatchNorm2d"),
        (nn.Linear(2, 2), (), "l2", "layer norms are l1 or linf, not 'l2'"),
    ],
)
def test_what_has_no_exact_norm_is_refused(layer, size, ord, message):
    with pytest.raises(InputError, match=message):
        operator_norm(layer, size, ord)
    with pytest.raises(InputError, match=message):
        extreme_entries(layer, size, ord)


def test_input_sizes_come_from_one_forward_and_no_hook_stays():
    model = build_model("digits_cnn").train()
    sizes = {path: size for path, (_, size) in input_sizes(model, torch.zeros(1, 1, 8, 8)).items()}
    assert sizes["stem"] == (8, 8)
    assert sizes["blocks.1.shortcut"] == (8, 8)
    assert sizes["blocks.2.conv1"] == (4, 4)
    assert sizes["head"] == ()
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
