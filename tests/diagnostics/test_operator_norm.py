"""Layer norms against published facts and against the dense matrix."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_vit.diagnostics import operator_norm, spectral
from robustbench_vit.diagnostics.layers import measurable_fault
from robustbench_vit.diagnostics.operator_norm import extreme_entries, named_order
from robustbench_vit.errors import InputError


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


FACTS = [
    ({"in_channels": 3, "out_channels": 2, "kernel_size": 3, "padding": 1}, (8, 8), (13.00, 18.75, 9.260967)),
    (
        {"in_channels": 3, "out_channels": 2, "kernel_size": 3, "stride": 2, "padding": 1},
        (8, 8),
        (7.25, 18.75, 5.690239),
    ),
    ({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1}, (3, 3), (18.75, 12.50, 7.490232)),
    ({"in_channels": 2, "out_channels": 2, "kernel_size": 1}, (5, 5), (2.00, 1.75, 1.560736)),
    (
        {"in_channels": 3, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2},
        (8, 8),
        (24.75, 51.50, 16.167231),
    ),
    (
        {"in_channels": 2, "out_channels": 2, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        (7, 6),
        (5.50, 8.75, 4.792828),
    ),
]


@pytest.mark.parametrize(("settings", "size", "norms"), FACTS)
def test_published_facts(settings, size, norms):
    layer = nn.Conv2d(**settings)
    fact_weight(layer)
    assert [operator_norm(layer, size, ord) for ord in (1, math.inf)] == list(norms[:2])
    assert operator_norm(layer, size, 2) == pytest.approx(norms[2], abs=5e-7)


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


def random_layer(draw: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer of any shape with random weights in float64, and an input size that it takes."""
    dims = draw.choice([0, 1, 2, 2, 2, 2, 3])
    if dims == 0:
        return seeded(nn.Linear(draw.randint(1, 9), draw.randint(1, 9), bias=False), draw), ()
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    largest = (9, 5, 3)[dims - 1]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(low, high) for _ in range(dims))

    while True:
        kernel, groups = each(1, largest), draw.choice([1, 1, 2, 3])
        stride = kernel if draw.random() < 0.2 else each(1, 4)
        padding = draw.choice([each(0, 3), each(0, 3), "valid", "same"])
        settings = {"stride": 1 if padding == "same" else stride, "padding": padding, "dilation": each(1, 2)}
        channels = [groups * draw.randint(1, 2) for _ in range(2)]
        layer, size = kind(*channels, kernel, groups=groups, bias=False, **settings), each(1, (12, 6, 4)[dims - 1])
        if measurable_fault(layer, size) is None:
            return seeded(layer, draw), size


def seeded(layer: nn.Module, draw: random.Random) -> nn.Module:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer.double()


def features(layer: nn.Module, size: tuple[int, ...]) -> set[str]:
    """What is special about a layer."""
    if isinstance(layer, nn.Linear):
        return {"linear"}
    seen = {
        "smaller than the kernel": any(n < k for n, k in zip(size, layer.kernel_size, strict=True)),
        "kernel == stride": layer.kernel_size == layer.stride and max(layer.stride) > 1,
        "rectangular, unequal strides": len({*layer.kernel_size}) > 1 and len({*layer.stride}) > 1,
        "groups": layer.groups > 1,
        "dilation": max(layer.dilation) > 1,
        "stride over kernel": any(s > k for s, k in zip(layer.stride, layer.kernel_size, strict=True)),
        str(layer.padding) if isinstance(layer.padding, str) else "padding": True,
    }
    return {name for name, is_so in seen.items() if is_so}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("largest_dense", [spectral.DENSE, 0], ids=["from the matrix", "iterated"])
def test_300_random_layers_equal_the_dense_matrix(largest_dense, monkeypatch):
    monkeypatch.setattr(spectral, "DENSE", largest_dense)
    draw, seen = random.Random(0), Counter()
    for _ in range(300):
        layer, size = random_layer(draw)
        seen.update(features(layer, size))
        matrix = layer.weight.detach() if isinstance(layer, nn.Linear) else dense(layer, size)
        norms = {ord: operator_norm(layer, size, ord) for ord in (1, 2, math.inf)}
        for ord, found in norms.items():
            expected = float(torch.linalg.matrix_norm(matrix, ord))
            assert found == pytest.approx(expected, rel=1e-8 if ord == 2 else 1e-12), (layer, size, ord)
        assert norms[2] <= math.sqrt(norms[1] * norms[math.inf]) * (1 + 1e-12), (layer, size)
    assert len(seen) == 10
    assert min(seen.values()) >= 10, seen


def test_a_large_layer_is_iterated():
    layer = seeded(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), random.Random(0)).float()
    size = (16, 16)
    operator = spectral.operator_of(layer, size)
    assert math.prod(operator.shape) > spectral.DENSE
    gram = spectral.dense(operator) @ spectral.dense(operator).T
    exact = float(torch.linalg.eigvalsh(gram)[-1].sqrt())
    assert operator_norm(layer, size, 2) == pytest.approx(exact, rel=1e-8)


def test_an_iteration_that_does_not_converge_is_no_norm(monkeypatch):
    monkeypatch.setattr(spectral, "DENSE", 0)
    monkeypatch.setattr(spectral, "ITERATIONS", 1)
    with pytest.raises(InputError, match="not found in 1 iterations"):
        operator_norm(seeded(nn.Linear(400, 400), random.Random(0)), (), 2)


@pytest.mark.parametrize("largest_dense", [spectral.DENSE, 0])
def test_a_layer_of_zeros_has_norm_zero(largest_dense, monkeypatch):
    monkeypatch.setattr(spectral, "DENSE", largest_dense)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    nn.init.zeros_(layer.weight)
    assert [operator_norm(layer, (5, 5), ord) for ord in (1, 2, math.inf)] == [0, 0, 0]


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_in_eval_mode(affine):
    layer = nn.BatchNorm2d(3, eps=0.5, affine=affine).double().train()
    with torch.no_grad():
        layer.running_var.copy_(torch.tensor([0.5, 3.5, 1.5]))
        if affine:
            layer.weight.copy_(torch.tensor([1.0, -5.0, 2.0]))
    x = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    eval_mode = copy.deepcopy(layer).eval()
    matrix = (eval_mode(x) - eval_mode(torch.zeros_like(x))).flatten(1).T.detach()
    for ord in (1, 2, math.inf):
        found = operator_norm(layer, (1, 1), ord)
        assert found == pytest.approx(float(torch.linalg.matrix_norm(matrix, ord)))
        assert found == pytest.approx(2.5 if affine else 1.0)


def test_weights_in_half_precision_are_measured_in_float64():
    layer = nn.Linear(4096, 1, bias=False)
    nn.init.ones_(layer.weight)
    assert operator_norm(layer.half(), (), math.inf) == 4096
    assert operator_norm(layer, (), 2) == pytest.approx(64)


@pytest.mark.parametrize(("ord", "name"), [(1, "l1"), (2, "l2"), (math.inf, "linf"), ("inf", "linf"), ("l2", "l2")])
def test_orders_have_numbers_and_names(ord, name):
    assert named_order(ord) == name


class Standardised(nn.Conv2d):
    """A layer whose weight is not what it convolves with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight - self.weight.mean())


NAN = nn.Linear(2, 2)
nn.init.constant_(NAN.weight, math.nan)
ATTENTION = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("layer", "size", "ord", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (8, 8), 1, "pads with 'reflect'"),
        (nn.Conv2d(1, 1, 5), (4, 8), math.inf, r"inputs of size \(4, 8\) are too small for this Conv2d"),
        (nn.Conv2d(1, 1, 3), (8,), 2, "a Conv2d needs 2 input sizes"),
        (nn.Conv1d(1, 1, 3, padding=3), (0,), 2, r"inputs of size \(0,\) are too small"),
        (Standardised(1, 1, 3), (8, 8), 1, "this Standardised computes something else than Conv2d"),
        (ATTENTION, (), 1, "not for MultiheadAttention"),
        (NAN, (), 1, "this Linear holds NaN or infinite values"),
        (nn.Linear(2, 2), (), 3, "layer norms are of order 1, 2 or inf, not 3"),
        (nn.Linear(2, 2), (), "fro", "layer norms are of order 1, 2 or inf, not 'fro'"),
    ],
)
def test_what_has_no_exact_norm_is_refused(layer, size, ord, message):
    with pytest.raises(InputError, match=message):
        operator_norm(layer, size, ord)


def test_batch_normalisation_without_statistics_is_refused():
    with pytest.raises(InputError, match="this BatchNorm2d keeps no running variance"):
        operator_norm(nn.BatchNorm2d(3, track_running_stats=False), (), 1)


@pytest.mark.parametrize(
    ("layer", "ord", "message"),
    [(nn.BatchNorm2d(3), 1, "not for BatchNorm2d"), (nn.Linear(2, 2), 2, "the l2 norm is made by all entries")],
)
def test_what_has_no_extreme_entries_is_refused(layer, ord, message):
    with pytest.raises(InputError, match=message):
        extreme_entries(layer, (), ord)
