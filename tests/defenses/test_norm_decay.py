"""Norm decay against the facts stated for it (arXiv:2009.08435)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_vit.defenses.norm_decay import NormDecay
from robustbench_vit.models.build import build_model


def with_gradients(model: nn.Module, value: float = 0.0) -> nn.Module:
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    return model


def conv() -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3, stride=2, padding=1)


def test_sixteen_entries_of_the_gradient_change_and_no_weight():
    layer = with_gradients(conv())
    before = layer.weight.detach().clone()
    NormDecay(norm="l1", beta=1e-3, mu=0.5).attach(layer, torch.zeros(1, 3, 8, 8)).before_step()
    changed = layer.weight.grad[layer.weight.grad != 0]
    assert len(changed) == 16
    assert torch.equal(changed.abs(), torch.full((16,), 1e-3))
    assert torch.equal(layer.weight, before)
    assert not layer.bias.grad.any()


def test_the_pull_points_against_the_weights_sign_and_adds_to_the_gradient():
    layer = with_gradients(conv(), 7.0)
    NormDecay(norm="linf", beta=0.25, mu=0.5).attach(layer, torch.zeros(1, 3, 8, 8)).before_step()
    output = layer.weight.detach().abs().sum((1, 2, 3)).argmax()
    expected = torch.full_like(layer.weight, 7.0)
    expected[output] += 0.25 * layer.weight.detach()[output].sign()
    assert torch.equal(layer.weight.grad, expected)


def test_entries_that_are_no_longer_extreme_are_let_go_by_mu():
    layer = with_gradients(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -2.0], [1.0, 1.0]]))
    running = NormDecay(norm="linf", beta=1.0, mu=0.5).attach(layer, torch.zeros(1, 2))
    running.before_step()
    assert layer.weight.grad.tolist() == [[1, -1], [0, 0]]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [3.0, -3.0]]))
    layer.weight.grad.zero_()
    running.before_step()
    assert layer.weight.grad.tolist() == [[0.5, -0.5], [1, -1]]


@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_a_patch_embedding_keeps_its_weights(norm):
    model = with_gradients(build_model("digits_vit"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    NormDecay(norm=norm, beta=1e-3, mu=0.5).attach(model, torch.zeros(1, 1, 8, 8)).before_step()
    grad = model.patch_embed.proj.weight.grad
    # kernel == stride: a column holds one entry of each output channel, a row all entries of one.
    assert int((grad != 0).sum()) == (64 if norm == "l1" else 4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_every_weight_layer_is_pulled_and_normalisation_is_not():
    model = with_gradients(build_model("digits_ic_cnn"))
    NormDecay(norm="linf", beta=1e-3, mu=0.5).attach(model, torch.zeros(1, 1, 8, 8)).before_step()
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # convolutions that start at zero have no sign to follow
            assert module.weight.grad.any() == module.weight.any(), path
        elif isinstance(module, nn.BatchNorm1d):
            assert not module.weight.grad.any(), path


def test_it_lowers_the_norm_it_decays():
    layer = conv()
    running = NormDecay(norm="linf", beta=1.0, mu=0.5).attach(layer, torch.zeros(1, 3, 8, 8))
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-3)
    before = layer.weight.detach().abs().sum((1, 2, 3)).max()
    for _ in range(50):
        with_gradients(layer)
        running.before_step()
        optimiser.step()
    assert layer.weight.detach().abs().sum((1, 2, 3)).max() < 0.9 * before


def test_its_state_is_kept_and_restored():
    first = with_gradients(conv())
    running = NormDecay(norm="l1", beta=1.0, mu=0.5).attach(first, torch.zeros(1, 3, 8, 8))
    running.before_step()
    other = conv()
    copy = NormDecay(norm="l1", beta=1.0, mu=0.5).attach(other, torch.zeros(1, 3, 8, 8))
    copy.restore(running.state())
    for layer, pull in ((first, running), (other, copy)):
        with torch.no_grad():
            layer.weight.zero_()
        with_gradients(layer)
        pull.before_step()
    assert torch.equal(first.weight.grad, other.weight.grad)
    assert other.weight.grad.any()
