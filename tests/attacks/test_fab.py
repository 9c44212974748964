"""FAB where the general tests don't look: untargeted, restarts, few and many classes, small and narrow images."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Gradient, Oracles, Start
from robustbench_vit.engine.oracle import Oracle

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
FAR = {"linf": 1.0, "l2": 40.0, "l1": 4000.0}


def start_for(model: nn.Module, x: Tensor, norm: str, targeted: bool, restart: int = 0) -> Start:
    order = model(x).detach().argsort(dim=1, descending=True)
    target = order[:, 1] if targeted else torch.full_like(order[:, 0], -1)
    return Start(x, order[:, 0], target, torch.full((len(x),), FAR[norm]), torch.full_like(target, restart))


@norms
@pytest.mark.parametrize("name", ["fab-t", "fab"])
@pytest.mark.parametrize(
    ("shape", "n", "classes"),
    [((1, 4, 4), 1, 2), ((1, 1, 1), 3, 3), ((3, 5, 9), 3, 4), ((1, 28, 4), 1, 3), ((2, 1, 6), 3, 2), ((3, 8, 8), 1, 4)],
)
def test_small_and_narrow_images_of_few_classes(build, drive, bumpy, name, norm, shape, n, classes):
    model, x = bumpy(shape, classes), torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    start = start_for(model, x, norm, name == "fab-t")
    found = build(name, norm, steps=25).best(drive(build(name, norm, steps=25), model, start))
    assert found.x.shape == x.shape
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1
    assert bool((model(found.x).argmax(1) != start.y)[found.found].all())
    torch.testing.assert_close(NORMS[norm].size(found.x - x)[found.found], found.distance[found.found])


@norms
def test_a_thousand_classes_take_a_backward_pass_each(build, noise, bumpy, norm):
    model, x, draws = bumpy((1, 4, 4), 1000), torch.rand(2, 1, 4, 4), noise(2)
    attack, oracle = build("fab", norm, steps=1), Oracle(model)
    oracle.count(2)
    attack.step(attack.init(start_for(model, x, norm, False), draws), Oracles(oracle.view(attack.access)), draws)
    assert oracle.passes.forwards.tolist() == [1000] * 2
    assert oracle.passes.backwards.tolist() == [999] * 2
    assert (attack.cost(1000).forwards, attack.cost(1000).backwards) == (1000 * 5, 999 * 5)


class Planes:
    """A model's view with a known linearisation for each class, which watches how many of its gradients live on."""

    def __init__(self, value: Tensor, grad: Tensor) -> None:
        self._value, self._grad = value, grad  # (classes,), (classes, c, h, w)
        self._given: list[Any] = []
        self.most_alive = 0

    def gradient(self, x: Tensor, objective: Any) -> Gradient:
        at, logits = torch.arange(len(x)), self._value.expand(len(x), -1)
        weights = torch.stack([objective(unit.expand(len(x), -1), at) for unit in torch.eye(len(self._value))], dim=1)
        grad = torch.einsum("rk,kchw->rchw", weights, self._grad)
        self._given.append(weakref.ref(grad))
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self._given))
        return Gradient(logits, objective(logits, at), grad)

    def scores(self, x: Tensor) -> Tensor:
        return self._value.expand(len(x), -1)


@norms
def test_the_nearest_plane_is_the_one_taken_and_few_are_held(build, noise, norm):
    """Class 1 is nearest in l1 (one steep pixel), class 2 in l2, class 3 in linf (all pixels alike)."""
    classes, pixels = 30, 16
    grad = torch.zeros(classes, pixels)
    grad[1, 0], grad[2, :4], grad[3] = 2.0, 1.4, 0.62
    view = Planes(torch.full((classes,), -1.0).index_fill(0, torch.tensor([0]), 0.0), grad.view(classes, 1, 4, 4))
    attack, x, y = build("fab", norm), torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    state = attack.init(Start(x, y, y - 1, torch.ones(3), y), noise(3))
    after = attack.step(state, Oracles(view), noise(3))
    moved = (after.x - x).flatten(1)
    expected = {"l1": grad[1], "l2": grad[2], "linf": grad[3]}[norm]
    torch.testing.assert_close((moved > 1e-6).float(), (expected > 0).float().expand(3, -1))
    assert view.most_alive <= 3, "memory grows with the number of classes"


@norms
def test_later_restarts_begin_half_the_radius_away(build, noise, norm):
    attack, x = build("fab", norm), torch.full((40, 2, 5, 5), 0.5)
    eps = torch.linspace(0.01, 0.4, 40)
    y = torch.zeros(40, dtype=torch.int64)
    restart = torch.arange(40) % 5
    begun = attack.init(Start(x, y, y - 1, eps, restart), noise(40)).x
    away = NORMS[norm].size(begun - x)
    torch.testing.assert_close(away, torch.where(restart == 0, 0, eps / 2), rtol=1e-4, atol=1e-6)
    directions = ((begun - x) / eps.view(-1, 1, 1, 1))[restart > 0].flatten(1)
    assert torch.pdist(directions).min() > 1e-3, "every row draws its own"
    corner = attack.init(Start(torch.ones_like(x), y, y - 1, eps, restart), noise(40)).x
    assert float(corner.max()) <= 1


def test_a_single_run_draws_nothing(build):
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    attack = build("fab-t", "l2")
    assert torch.equal(attack.init(Start(x, y, y + 1, torch.ones(2), y), None).x, x)
    assert attack.restarts() == 1
    assert build("fab", "l2").restarts() == 5
    assert build("fab", "l2").targets(10) == 0


@norms
@pytest.mark.parametrize("name", ["fab-t", "fab"])
def test_a_point_that_failed_its_recheck_is_forgotten_and_another_one_found(build, drive, bumpy, noise, name, norm):
    """Only the nearest point is ever shown: without forgetting it, farther ones could never be."""
    model, x = bumpy((1, 5, 5), 4), torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    attack, start = build(name, norm, steps=30), start_for(model, x, norm, name == "fab-t")
    before = drive(attack, model, start, steps=8)
    nearest = attack.best(before)
    assert bool(nearest.found.all())
    forgotten = attack.forget(before)
    assert attack.best(forgotten).found.tolist() == [False] * 3
    assert torch.equal(attack.best(forgotten).x, x)
    assert torch.equal(forgotten.x, before.x), "the walk goes on from where it was"
    oracle, state = Oracle(model), forgotten
    for _ in range(8):
        oracle.count(3)
        state = attack.step(state, Oracles(oracle.view(attack.access)), noise(3))
    assert bool(attack.best(state).found.all())
