"""Projections and what all regularisers have in common."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustbench_vit.defenses.norm_decay import NormDecay
from robustbench_vit.defenses.projections import BNProjection, SingularValueClipping
from robustbench_vit.defenses.train import train
from robustbench_vit.diagnostics import operator_norm
from robustbench_vit.diagnostics.clipping import clipped, periodic_singular_values
from robustbench_vit.errors import CardError, InputError
from robustbench_vit.models.build import build_model

IMAGE = torch.zeros(1, 3, 8, 8)


def conv(scale: float = 1.0, **settings) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 6, **{"kernel_size": 3, "padding": 1, **settings})
        with torch.no_grad():
            layer.weight.mul_(scale)
        return layer


def periodic_matrix(layer: nn.Conv2d, size: tuple[int, int]) -> torch.Tensor:
    """The matrix of a convolution of stride 1 on periodic images, written out from its definition."""
    h, w = size
    group = layer.in_channels // layer.groups
    matrix = torch.zeros(layer.out_channels, h, w, layer.in_channels, h, w)
    for o, i, a, b in torch.cartesian_prod(*map(torch.arange, layer.weight.shape)).tolist():
        channel = (o // (layer.out_channels // layer.groups)) * group + i
        for y in range(h):
            for x in range(w):
                at = (y + a * layer.dilation[0]) % h, (x + b * layer.dilation[1]) % w
                matrix[o, y, x, channel, at[0], at[1]] += layer.weight[o, i, a, b].item()
    return matrix.view(layer.out_channels * h * w, -1)


@pytest.mark.parametrize("settings", [{}, {"groups": 3}, {"dilation": 2, "kernel_size": (2, 3)}])
@pytest.mark.parametrize("size", [(5, 6), (6, 5)])
def test_singular_values_of_periodic_convolutions_are_those_of_their_matrix(settings, size):
    layer = conv(**settings)
    exact = torch.linalg.svdvals(periodic_matrix(layer, size).double())
    found = periodic_singular_values(layer, size)
    assert float(found.max()) == pytest.approx(float(exact[0]), rel=1e-5)
    assert float(found.min()) == pytest.approx(float(exact[-1]), rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"groups": 3}, {"stride": 2}, {"kernel_size": (5, 2), "dilation": (1, 3)}])
def test_a_kernel_as_large_as_the_image_is_clipped_exactly(settings):
    """Then nothing is dropped: the values over the bound are at the bound, the others as they were."""
    layer = conv(3.0, **{**settings, "dilation": 1})
    size = layer.kernel_size
    before = periodic_singular_values(layer, size)
    bound = float(before.quantile(0.5))
    with torch.no_grad():
        layer.weight.copy_(clipped(layer, size, bound))
    after = periodic_singular_values(layer, size)
    assert torch.allclose(after.sort().values, before.clamp(max=bound).sort().values, atol=1e-5)
    assert clipped(layer, size, bound) is None


@pytest.mark.parametrize("settings", [{}, {"groups": 3}, {"dilation": 2}, {"kernel_size": 1, "padding": 0}])
def test_clipping_lowers_the_true_norm_towards_the_bound(settings):
    layer = conv(4.0, **settings)
    before = operator_norm(layer, (8, 8), 2)
    for _ in range(8):
        if (better := clipped(layer, (8, 8), 1.0)) is None:
            break
        with torch.no_grad():
            layer.weight.copy_(better)
    assert before > 2
    assert operator_norm(layer, (8, 8), 2) < 1.25
    assert float(periodic_singular_values(layer, (8, 8)).max()) < 1.25


def test_a_linear_layer_is_clipped_exactly():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([3.0, 0.5, 1.5]))[:, [0, 1, 2, 2]])
    running = SingularValueClipping(bound=1.0, every=1).attach(layer, torch.zeros(1, 4))
    running.after_step()
    values = torch.linalg.svdvals(layer.weight)
    assert torch.allclose(values, torch.tensor([1.0, 1.0, 0.5]), atol=1e-6)


def test_layers_within_the_bound_keep_their_bits():
    layer = conv(0.1)
    before = layer.weight.detach().clone()
    SingularValueClipping(bound=2.0, every=1).attach(layer, IMAGE).after_step()
    assert torch.equal(layer.weight, before)


def test_clipping_happens_every_so_many_steps_also_after_a_restart():
    layer = conv(5.0)
    settings = SingularValueClipping(bound=0.5, every=3)
    running, before = settings.attach(layer, IMAGE), layer.weight.detach().clone()
    for _ in range(2):
        running.before_step()
        running.after_step()
    assert torch.equal(layer.weight, before)
    again = settings.attach(layer, IMAGE)
    again.restore(running.state())
    again.after_step()
    assert not torch.equal(layer.weight, before)


def test_weights_that_are_no_numbers_are_left_for_the_loop_to_report():
    layer = conv(math.nan)
    SingularValueClipping(bound=1.0, every=1).attach(layer, IMAGE).after_step()
    assert layer.weight.isnan().all()


def test_batch_normalisation_is_projected_channel_by_channel():
    layer = nn.BatchNorm2d(4, eps=0.5)
    with torch.no_grad():
        layer.running_var.copy_(torch.tensor([0.5, 3.5, 0.5, 0.5]))
        layer.weight.copy_(torch.tensor([7.0, 8.0, -6.0, 5.0]))
    running = BNProjection(bound=5.0).attach(nn.Sequential(layer), IMAGE)
    running.before_step()
    assert operator_norm(layer, (), 2) == 7
    running.after_step()
    assert layer.weight.tolist() == [5, 8, -5, 5]
    assert operator_norm(layer, (), 2) == 5
    running.restore(running.state())


def test_training_ends_within_the_bounds(recipe, data, tmp_path):
    """After the last step nothing moves the weights, so a projection that follows every step holds in what is kept."""
    rules = [{"name": "bn-projection", "bound": 0.5}, {"name": "singular-value-clipping", "bound": 0.5, "every": 1}]
    model = build_model("digits_ic_cnn", num_classes=2)
    train(recipe(regularisers=rules, epochs=1), model, data, None, tmp_path, seed=0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert max(operator_norm(m, (), 1) for m in norms) == pytest.approx(0.5, rel=1e-6)
    assert operator_norm(model.head.layer, (), 2) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("rule", [NormDecay(norm="l1", beta=1e-3, mu=0.5), SingularValueClipping(bound=1.0, every=1)])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "acts on Linear and Conv layers, and this Sequential has none"),
        (nn.ConvTranspose2d(3, 2, 3), "cannot act on '': .* not for ConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")), "cannot act on '0': .*'circular'"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 3)), "its weight is made of other parameters"),
    ],
)
def test_models_it_cannot_act_on_are_refused_before_training(rule, model, message):
    with pytest.raises(InputError, match=message):
        rule.attach(model, IMAGE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build_model("digits_cnn"), "acts on batch normalisation, and this DigitsCNN has none"),
        (nn.BatchNorm2d(3, affine=False), "acts on batch normalisation"),
        (nn.BatchNorm2d(3, track_running_stats=False), "a BatchNorm2d here keeps none"),
    ],
)
def test_bn_projection_needs_what_it_projects(model, message):
    with pytest.raises(InputError, match=message):
        BNProjection(bound=5.0).attach(model, IMAGE)


def test_a_linear_layer_that_runs_in_training_only_is_acted_on():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.extra = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) + (self.extra(x) if self.training else 0)

    running = NormDecay(norm="linf", beta=1.0, mu=0.5).attach(Auxiliary(), torch.zeros(1, 3))
    assert sorted(each.path for each in running.layers) == ["extra", "head"]


@pytest.mark.parametrize(
    ("component", "fault"),
    [
        ({"name": "bn-projection", "bound": 0}, "field 'regularisers.0.bound': should be greater than 0"),
        (
            {"name": "singular-value-clipping", "bound": 1, "every": 0},
            "0.every': should be greater than or equal to 1, got 0",
        ),
        ({"name": "singular-value-clipping", "bound": 1}, "missing field 'regularisers.0.every'"),
    ],
)
def test_faults_of_cards_are_named(recipe, component, fault):
    with pytest.raises(CardError, match=fault):
        recipe(regularisers=[component])
