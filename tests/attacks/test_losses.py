"""Objectives against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from robustbench_vit.attacks.losses import LOSSES, margin_targeted

Z = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0], [4.0, 1.0, 3.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
Y, TARGET = torch.tensor([0, 2, 3]), torch.tensor([4, 0, 1])


def test_cross_entropy():
    total = sum(math.exp(v) for v in Z[0].tolist())
    expected = [math.log(total) - 4, math.log(total) - 3, math.log(5)]
    torch.testing.assert_close(LOSSES["ce"](Z, Y, TARGET), torch.tensor(expected))


def test_margin_is_positive_exactly_when_misclassified():
    assert LOSSES["margin"](Z, Y, TARGET).tolist() == [-1.0, 1.0, 0.0]
    assert margin_targeted(Z, Y, TARGET).tolist() == [-2.0, 1.0, 0.0]


def test_dlr_divides_the_margin_by_the_gap_of_first_and_third():
    torch.testing.assert_close(LOSSES["dlr"](Z, Y, TARGET), torch.tensor([-1 / 2, 1 / 2, 0]))


def test_targeted_dlr_divides_by_the_gap_of_first_and_the_mean_of_third_and_fourth():
    torch.testing.assert_close(LOSSES["dlr-targeted"](Z, Y, TARGET), torch.tensor([-2 / 2.5, 1 / 2.5, 0]))


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("dlr-targeted", 2), ("dlr-targeted", 3)])
def test_with_too_few_classes_the_ratio_becomes_the_margin(name, classes):
    z, y, target = Z[:2, :classes], torch.tensor([0, 1]), torch.tensor([1, 0])
    assert LOSSES[name](z, y, target).tolist() == margin_targeted(z, y, target).tolist() == [-3.0, 3.0]
    if classes == 3 and name == "dlr-targeted":
        assert LOSSES["dlr"](z, y, target).tolist() != [-3.0, 3.0], "three classes are enough for the untargeted one"


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_a_row_s_value_and_gradient_are_its_own_and_finite(name, classes):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, classes, generator=generator)
    z[0] = 0  # all tied
    y, target = torch.arange(6) % classes, (torch.arange(6) + 1) % classes
    z.requires_grad_()
    value = LOSSES[name](z, y, target)
    (grad,) = torch.autograd.grad(value.sum(), z)
    alone = torch.cat([LOSSES[name](z[i : i + 1], y[i : i + 1], target[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(value, alone, rtol=0, atol=1e-7)
    assert bool(grad[1:].isfinite().all())
    if name in ("ce", "margin"):
        assert bool((grad.gather(1, y.unsqueeze(1))[1:] < 0).all()), "raising the true logit lowers the objective"
