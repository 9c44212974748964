"""Square where the general tests don't look: small and narrow images, few and many classes, memory, idle queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vit.attacks import square
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Oracles, Start
from robustbench_vit.attacks.square_bumps import MEASURES, bump, bumps

norms = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
SHAPES = [(1, 4, 4), (1, 1, 1), (3, 5, 9), (1, 28, 4), (2, 1, 6), (1, 3, 40), (3, 14, 14), (1, 9, 1), (2, 12, 31)]
EPS = {"linf": 0.2, "l2": 0.9, "l1": 3.0}


def start_for(x: Tensor, y: Tensor, norm: str) -> Start:
    eps = torch.linspace(0.1, 1, len(x)).to(x.dtype) * EPS[norm]
    return Start(x, y, torch.full_like(y, -1), eps, torch.zeros_like(y))


def images(n: int, shape: tuple[int, int, int]) -> Tensor:
    """Some pixels at the walls of the box."""
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, *shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)


@norms
@pytest.mark.parametrize(
    ("shape", "n", "classes"), [(s, (1, 3)[i % 2], (2, 3, 1000)[i % 3]) for i, s in enumerate(SHAPES)]
)
def test_small_and_narrow_images_of_few_and_many_classes(build, drive, bumpy, norm, shape, n, classes):
    model, x = bumpy(shape, classes), images(n, shape)
    start = start_for(x, model(x).argmax(1), norm)
    attack = build("square", norm, queries=60)
    state = drive(attack, model, start)
    assert state.asked.tolist() == [61] * n
    assert bool(state.x.isfinite().all())
    assert 0 <= float(state.x.min()) <= float(state.x.max()) <= 1
    assert bool((NORMS[norm].size(state.x - x) <= start.eps * (1 + 1e-6)).all())
    logits = model(state.x).detach()
    others = logits.masked_fill(torch.nn.functional.one_hot(start.y, classes).bool(), -torch.inf).amax(1)
    torch.testing.assert_close(
        state.loss, others - logits.gather(1, start.y.unsqueeze(1)).squeeze(1), rtol=0, atol=1e-4
    )


@norms
def test_the_search_gains_and_never_loses(build, drive, bumpy, norm):
    model, x = bumpy((3, 8, 8)), images(6, (3, 8, 8))
    start = start_for(x, model(x).argmax(1), norm)
    after = [drive(build("square", norm), model, start, steps).loss for steps in (1, 20, 120)]
    assert bool((after[0] <= after[1]).all() & (after[1] <= after[2]).all())
    assert int((after[0] < after[2]).sum()) >= 5


class Idle:
    """A view of a model that no query improves, and that counts the queries that it was asked."""

    def __init__(self) -> None:
        self.queries = 0

    def whole(self, n: int) -> int:
        return n

    computed = whole

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        self.queries += len(x)
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)


def test_a_query_that_changes_nothing_is_not_asked(build, noise):
    """On one grey pixel a window either paints what is there or the other end: about half of them change nothing."""
    attack, view, y = build("square", "linf", queries=400), Idle(), torch.zeros(5, dtype=torch.int64)
    state = attack.init(start_for(torch.full((5, 1, 1, 1), 0.5), y, "linf"), noise(5))
    while not bool(attack.finished(state).all()):
        state = attack.step(state, Oracles(view), noise(5))
    assert 5 * 150 < view.queries < 5 * 250


@norms
def test_a_radius_of_nothing_asks_once(build, noise, norm):
    attack, view, y = build("square", norm, queries=50), Idle(), torch.zeros(2, dtype=torch.int64)
    x = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    state = attack.init(dataclasses.replace(start_for(x, y, norm), eps=torch.zeros(2)), noise(2))
    for _ in range(60):
        state = attack.step(state, Oracles(view), noise(2))
    assert bool(attack.finished(state).all())
    assert view.queries == 2
    assert torch.equal(state.x, x)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_only_the_bumps_in_use_are_kept(norm):
    sides = square._sides(norm, 0.8, 224, 224)
    kept = bumps(norm, sides, torch.float32, "cpu")
    assert kept.table.shape == (10, 202, 202)
    assert kept.table.dtype == torch.float32
    assert bumps(norm, sides, torch.float32, "cpu") is kept
    for side in (1, 2, 3, 17):
        assert float(NORMS[norm].size(bump(MEASURES[norm], side).view(1, 1, side, side))) == pytest.approx(1)


@norms
def test_all_rows_and_some_rows_take_the_same_way(build, noise, norm):
    """When one row has nothing to ask, the others are taken out; it must not matter."""
    attack, x, y = build("square", norm), images(4, (1, 6, 6)), torch.zeros(4, dtype=torch.int64)
    start = start_for(x, y, norm)

    class Mean:
        def whole(self, n: int) -> int:
            return n

        computed = whole

        def scores(self, x: Tensor, rows: Any) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([mean + 9, 2 * mean], 1)

    def after(eps: Tensor) -> Tensor:
        state = attack.init(dataclasses.replace(start, eps=eps), noise(4))
        for _ in range(40):
            state = attack.step(state, Oracles(Mean()), noise(4))
        return state.x[1:]

    still = start.eps.clone()
    still[0] = 0  # this row never has anything to ask
    whole = after(start.eps)
    assert torch.equal(after(still), whole)
    assert not torch.equal(whole, x[1:])
