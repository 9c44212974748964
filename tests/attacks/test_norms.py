"""Budgets: sizes, projections, directions and random starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import NORM_NAMES

checked = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SHAPES = st.sampled_from([(1, 1, 1), (1, 8, 8), (3, 5, 7), (2, 9, 1)])
ROUNDING = 1e-6


def points(seed: int, shape: tuple[int, int, int], far: float, rows: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """(x, x0, eps): clean images, some pixels at the walls, points around them, and a radius for each row."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(rows, *shape, generator=generator)
    x0 = torch.where(torch.rand(x0.shape, generator=generator) < 0.3, x0.round(), x0)
    x = x0 + far * torch.randn(x0.shape, generator=generator)
    return x, x0, torch.rand(rows, generator=generator) * 0.7 + 1e-3


def test_every_norm_that_cards_may_name_exists():
    assert set(NORM_NAMES) == set(NORMS)
    assert all(norm.name == name for name, norm in NORMS.items())


@pytest.mark.parametrize(("name", "size", "dual"), [("linf", 4.0, 9.0), ("l2", 29**0.5, 29**0.5), ("l1", 9.0, 4.0)])
def test_sizes(name, size, dual):
    row = torch.tensor([3.0, -4.0, 2.0, 0.0]).view(1, 1, 2, 2)
    both = torch.cat([row, torch.zeros_like(row)])
    assert NORMS[name].size(both).tolist() == pytest.approx([size, 0.0])
    assert NORMS[name].dual(both).tolist() == pytest.approx([dual, 0.0])


@pytest.mark.parametrize("name", sorted(NORMS))
@checked
@given(seed=st.integers(0, 10**6), shape=SHAPES, far=st.sampled_from([1e-4, 0.3, 10.0]))
def test_projections_land_inside_and_stay_there(name, seed, shape, far):
    norm = NORMS[name]
    x, x0, eps = points(seed, shape, far)
    before = (x.clone(), x0.clone(), eps.clone())
    once = norm.project(x, x0, eps)
    assert float(once.min()) >= 0
    assert float(once.max()) <= 1
    assert bool((norm.size(once - x0) <= eps + ROUNDING).all())
    torch.testing.assert_close(norm.project(once, x0, eps), once, rtol=0, atol=ROUNDING)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, x0, eps), strict=True)), "inputs were changed"
    assert once.data_ptr() not in (x.data_ptr(), x0.data_ptr())


@pytest.mark.parametrize("name", sorted(NORMS))
@checked
@given(seed=st.integers(0, 10**6), shape=SHAPES)
def test_a_projection_leaves_what_is_inside_and_uses_the_whole_radius(name, seed, shape):
    norm = NORMS[name]
    x, x0, eps = points(seed, shape, 1.0)
    x0 = 0.4 + 0.2 * x0
    eps = eps.clamp(max=0.35)
    direction = norm.steepest(x)
    inside = x0 + direction * (0.9 * eps).view(-1, 1, 1, 1)
    torch.testing.assert_close(norm.project(inside, x0, eps), inside, rtol=0, atol=ROUNDING)
    outside = x0 + direction * (3 * eps).view(-1, 1, 1, 1)
    torch.testing.assert_close(norm.size(norm.project(outside, x0, eps) - x0), eps, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", sorted(NORMS))
@checked
@given(seed=st.integers(0, 10**6), shape=SHAPES)
def test_the_steepest_direction_attains_the_dual_norm(name, seed, shape):
    norm = NORMS[name]
    grad, _, _ = points(seed, shape, 1.0)
    steepest = norm.steepest(grad)
    torch.testing.assert_close(norm.size(steepest), torch.ones(5), rtol=0, atol=1e-5)
    torch.testing.assert_close((grad * steepest).flatten(1).sum(1), norm.dual(grad), rtol=1e-5, atol=1e-5)
    assert bool((norm.steepest(torch.zeros_like(grad)) == 0).all()), "no gradient, no direction"


@pytest.mark.parametrize("name", sorted(NORMS))
def test_random_starts_lie_on_the_sphere_and_fill_the_ball(name, noise):
    norm, rows = NORMS[name], 400
    x0, eps = torch.rand(rows, 1, 1, 3), torch.linspace(0.1, 0.5, rows)
    on = norm.size(norm.on_sphere(x0, eps, noise(rows), 0) - x0) / eps
    torch.testing.assert_close(on, torch.ones(rows), rtol=0, atol=1e-5)
    inside = norm.size(norm.in_ball(x0, eps, noise(rows), 0) - x0) / eps
    assert float(inside.max()) <= 1 + 1e-5
    # In three dimensions a uniform draw lies within r with chance r³, whatever the norm.
    share = [float((inside <= r).float().mean()) for r in (0.5, 0.7937, 0.9)]
    np.testing.assert_allclose(share, [0.125, 0.5, 0.729], atol=0.09)
    mean = (norm.in_ball(x0, eps, noise(rows), 0) - x0).mean(0) / eps.mean()
    assert float(mean.abs().max()) < 0.12


def test_in_l2_the_radius_of_a_start_is_drawn_apart_from_its_direction(noise):
    x0, eps = torch.full((300, 1, 1, 1), 0.5), torch.full((300,), 0.2)
    moved = (NORMS["l2"].in_ball(x0, eps, noise(300), 0) - x0).flatten() / 0.2
    assert abs(float(moved.mean())) < 0.12
    assert 0.4 < float((moved.abs() < 0.5).float().mean()) < 0.6


def l1_by_bisection(x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """The projection on the l1 ball and the box, from its optimality conditions."""
    delta = x - x0
    room = torch.where(delta > 0, 1 - x0, x0)
    low, high = torch.zeros_like(eps), delta.abs().flatten(1).amax(1)
    for _ in range(80):
        middle = (low + high) / 2
        left = (delta.abs() - middle.view(-1, 1, 1, 1)).clamp_min(0).minimum(room)
        too_large = left.flatten(1).sum(1) > eps
        low, high = torch.where(too_large, middle, low), torch.where(too_large, high, middle)
    return x0 + delta.sign() * left


@checked
@given(seed=st.integers(0, 10**6), shape=SHAPES, far=st.sampled_from([1e-4, 0.05, 0.3, 10.0]))
def test_the_l1_projection_is_the_nearest_point(seed, shape, far):
    x, x0, eps = (t.double() for t in points(seed, shape, far))
    nearest = NORMS["l1"].project(x, x0, eps)
    torch.testing.assert_close(nearest, l1_by_bisection(x, x0, eps), rtol=0, atol=1e-12)
    # Of a convex set, p is the point nearest to x exactly when (x - p)·(q - p) ≤ 0 for every q of the set.
    others = NORMS["l1"].project(x0 + 0.2 * (x0.roll(1, 0) - 0.5), x0, eps)
    for q in (x0, others, (x0 + others) / 2):
        assert bool((((x - nearest) * (q - nearest)).flatten(1).sum(1) <= 1e-9).all())


@pytest.mark.parametrize("eps", [0.5, 12.0, 75.0])
@pytest.mark.parametrize("far", [0.01, 1.0])
def test_in_float32_a_sum_of_many_rounded_pixels_stays_within_the_l1_radius(eps, far):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 3, 200, 130, generator=generator)
    x = x0 + far * torch.randn(x0.shape, generator=generator)
    near = NORMS["l1"].project(x, x0, torch.full((2,), eps))
    size = NORMS["l1"].size(near.double() - x0.double())
    assert bool((size <= eps + 1e-7).all())
    assert bool((size >= eps * (1 - 2e-5) - 1e-4).all())


def test_an_l1_projection_leaves_alone_what_it_need_not_move():
    x0 = torch.tensor([0.5, 0.5, 0.2, 0.9]).view(1, 1, 1, 4)
    x = torch.tensor([0.6, 0.5, 0.1, 1.3]).view(1, 1, 1, 4)
    clipped = torch.tensor([0.6, 0.5, 0.1, 1.0]).view(1, 1, 1, 4)
    assert torch.equal(NORMS["l1"].project(x, x0, torch.tensor([0.7])), clipped)
    sparse = NORMS["l1"].project(
        x, x0, torch.tensor([0.05])
    )  # the wall holds nothing up: three pixels lose 0.35 or all
    torch.testing.assert_close(sparse, torch.tensor([0.5, 0.5, 0.2, 0.95]).view(1, 1, 1, 4), rtol=0, atol=1e-6)
    assert torch.equal(sparse[..., :3], x0[..., :3])
    assert torch.equal(NORMS["l1"].project(x, x0, torch.tensor([0.0])), x0)


def test_of_several_largest_entries_the_l1_direction_takes_one():
    grad = torch.tensor([1.0, -3.0, 3.0, 0.0]).view(1, 1, 2, 2)
    assert NORMS["l1"].steepest(grad).flatten().tolist() == [0, -1, 0, 0]


@pytest.mark.parametrize("name", sorted(NORMS))
def test_a_wall_does_not_hold_up_an_attack(name):
    x, grad = torch.tensor([0.0, 1.0, 0.5, 1.0]).view(1, 1, 2, 2), torch.tensor([-4.0, 3.0, 1.0, -2.0]).view(1, 1, 2, 2)
    direction = NORMS[name].steepest_from(x, grad)
    assert bool((((x + 0.1 * direction).clamp(0, 1) - x).abs() > 0).any())
    assert direction.flatten().tolist() == [0, 0, 0, -1] or name != "l1"
    free = torch.full_like(x, 0.5)
    assert torch.equal(NORMS[name].steepest_from(free, grad), NORMS[name].steepest(grad))
