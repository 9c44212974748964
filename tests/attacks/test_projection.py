"""The projection onto a hyperplane within the box, against scipy's solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.projection import FLAT, onto_hyperplane

REACH = 1e-9
norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def problems(rows: int, pixels: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points with some pixels at the walls, normals with some zeros, and offsets on both sides, in float64."""
    generator = torch.Generator().manual_seed(pixels)
    x = torch.rand(rows, pixels, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    w = torch.randn(rows, pixels, generator=generator, dtype=torch.float64)
    w = torch.where(torch.rand(w.shape, generator=generator) < 0.2, 0.0, w)
    b = (w * x).sum(1) + spread * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, w, b


def solved(x: np.ndarray, w: np.ndarray, b: float, norm: str) -> float | None:
    """The least norm of d with w·(x + d) = b and x + d in the box, or None where there is none."""
    n = len(x)
    if norm == "linf":
        cost = np.append(np.zeros(n), 1.0)
        sides = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        answer = linprog(
            cost,
            A_ub=sides,
            b_ub=np.zeros(2 * n),
            A_eq=np.append(w, 0.0)[None],
            b_eq=[b - w @ x],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        return float(answer.fun) if answer.status == 0 else None
    if norm == "l1":
        answer = linprog(
            np.ones(2 * n),
            A_eq=np.append(w, -w)[None],
            b_eq=[b - w @ x],
            bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)],
        )
        return float(answer.fun) if answer.status == 0 else None
    reach = np.where(w > 0, 1 - x, -x), np.where(w > 0, -x, 1 - x)
    if not w @ reach[1] <= b - w @ x <= w @ reach[0]:
        return None
    answer = minimize(
        lambda d: d @ d,
        np.zeros(n),
        jac=lambda d: 2 * d,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "eq", "fun": lambda d: w @ (x + d) - b, "jac": lambda d: w},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert answer.success, answer.message
    return float(answer.fun**0.5)


@norms
@pytest.mark.parametrize(("pixels", "spread"), [(1, 0.5), (3, 0.7), (12, 3.5)])
def test_the_distance_is_the_one_scipy_finds(norm, pixels, spread):
    x, w, b = problems(40, pixels, spread)
    d = onto_hyperplane(x, w, b, norm)
    assert float((x + d).min()) >= -1e-12
    assert float((x + d).max()) <= 1 + 1e-12
    size, gap = NORMS[norm].size(d.view(40, 1, 1, pixels)), (w * (x + d)).sum(1) - b
    reachable = 0
    for i in range(len(x)):
        best = solved(x[i].numpy(), w[i].numpy(), float(b[i]), norm)
        if best is not None:
            reachable += 1
            assert float(gap[i].abs()) < REACH
            assert float(size[i]) == pytest.approx(best, abs=1e-6)
    assert 0 < reachable < 40, "the comparison needs planes within and out of reach"


@norms
def test_out_of_reach_every_pixel_goes_as_far_as_it_may(norm):
    x, w, _ = problems(20, 9, 1.0)
    d = onto_hyperplane(x, w, torch.full((20,), 1e3, dtype=torch.float64), norm)
    corner = torch.where(w > 0, 1 - x, torch.where(w < 0, -x, 0.0))
    torch.testing.assert_close(d, corner, rtol=0, atol=1e-12)


@norms
def test_a_point_on_the_plane_and_a_flat_model_move_nothing(norm):
    x, w, _ = problems(20, 9, 1.0)
    assert float(onto_hyperplane(x, w, (w * x).sum(1), norm).abs().max()) < 1e-12
    assert float(onto_hyperplane(x, torch.zeros_like(w), torch.ones(20), norm).abs().max()) == 0


@norms
def test_rows_do_not_mix_and_inputs_stay(norm):
    x, w, b = problems(20, 9, 1.0)
    before = (x.clone(), w.clone(), b.clone())
    together = onto_hyperplane(x, w, b, norm)
    alone = torch.cat([onto_hyperplane(x[i : i + 1], w[i : i + 1], b[i : i + 1], norm) for i in range(20)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)
    assert all(torch.equal(old, new) for old, new in zip(before, (x, w, b), strict=True))


@norms
@pytest.mark.parametrize("decades", [0, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_pixels_of_very_different_weights_move_as_the_optimum_demands(norm, decades, dtype):
    generator = torch.Generator().manual_seed(decades)
    x, w, _ = problems(12, 3072, 1.0)
    w = w * 10 ** (-decades * torch.rand(w.shape, generator=generator, dtype=torch.float64))
    corner = torch.where(w > 0, -x, torch.where(w < 0, 1 - x, 0.0))  # as far down as the box allows
    share = torch.logspace(-4, -1e-3, 12, dtype=torch.float64)  # of that: all planes are within reach
    b = (w * x).sum(1) + share * (w * corner).sum(1)
    x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
    d = onto_hyperplane(x, w, b, norm)

    rounding = 3072 * torch.finfo(dtype).eps
    torch.testing.assert_close((w * (x + d)).sum(1), b, rtol=0, atol=rounding * float((w * x).abs().sum(1).max()))
    assert bool((d * w <= 0).all())
    weight = torch.where(w.abs() > FLAT[norm], w.abs(), 0)
    way, room = d.abs(), torch.where(w > 0, x, 1 - x)
    if norm == "l1":  # whatever weighs more than a pixel that moves goes all the way
        moving = torch.where(way > 0, weight, torch.inf).amin(1, keepdim=True)
        assert torch.equal(way[weight > moving], room[weight > moving])
    else:
        unit = torch.ones_like(weight) if norm == "linf" else weight
        free = (way < room) & (weight > 0)
        multiplier = torch.where(free, way / unit, 0).amax(1, keepdim=True)
        expected = torch.where(weight > 0, (multiplier * unit).minimum(room), 0)
        torch.testing.assert_close(way, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_in_l1_the_first_of_pixels_of_equal_weight_moves_first():
    x, w = torch.full((1, 6), 0.5, dtype=torch.float64), torch.tensor([[1.0, 2, -2, 2, 0, 1]], dtype=torch.float64)
    d = onto_hyperplane(x, w, (w * x).sum(1) - 1.5, "l1")
    assert d.tolist() == [[0, -0.5, 0.25, 0, 0, 0]]
