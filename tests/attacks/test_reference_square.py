"""Every query of Square equals the authors' (pyautoattack) on a batch of one, from their state with their draws."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks import square
from robustbench_vit.attacks.rows import Oracles, Start
from robustbench_vit.attacks.square import DRAWS_AHEAD, SquareState

pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
from pyautoattack.square import SquareAttack

REFERENCE_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.1, "l2": 0.8, "l1": 6.0}
OUT_OF_REACH = 100.0
QUERIES, STRIDE = 110, 60
"""The reference's schedule is asked for every 60th query, so that few queries see all sizes of window."""

pytestmark = pytest.mark.usefixtures("reference_in_float64")
norms = pytest.mark.parametrize("norm", sorted(REFERENCE_NORM))


@dataclasses.dataclass
class Asked:
    """A query of the reference: its best image before, its draws, what it asked."""

    x: Tensor  # (1, c, h, w)
    loss: Tensor  # (1,)
    draws: Tensor  # (k,) uniforms in the order of ours
    number: int  # in its schedule
    proposal: Tensor  # (1, c, h, w)


class Watched(SquareAttack):
    """The reference, noting its draws and its variables at every query."""

    def init_hyperparam(self, x: Tensor) -> None:
        super().init_hyperparam(x)
        self.asked: list[Asked] = []
        self.forget()

    def forget(self) -> None:
        self.ints: list[Tensor] = []
        self.turns: list[Tensor] = []
        self.signs: list[Tensor] = []

    def random_int(self, low: int = 0, high: int = 1, shape: Any = (1,)) -> Tensor:
        self.ints.append(torch.rand(shape))
        return (low + (high - low) * self.ints[-1]).long()

    def random_choice(self, shape: Any) -> Tensor:
        self.signs.append(super().random_choice(shape))
        return self.signs[-1]

    def eta(self, s: int) -> Tensor:
        before = torch.get_rng_state()
        self.turns.append(torch.rand([1]))
        torch.set_rng_state(before)
        return super().eta(s)

    def p_selection(self, it: int) -> float:
        return super().p_selection(it * STRIDE)

    def margin_and_loss(self, x: Tensor, y: Tensor) -> Any:
        variables = sys._getframe(1).f_locals
        if "i_iter" in variables:
            signs = [0.5 + 0.25 * s.flatten() for s in self.signs]
            draws = torch.cat([*self.ints, *self.turns, *signs])
            before = variables["x_best"].clone(), -variables["margin_min"]
            self.asked.append(Asked(*before, draws, variables["i_iter"] * STRIDE, x.clone()))
        else:
            self.first_turns, self.first_signs = self.turns, self.signs
        self.forget()
        return super().margin_and_loss(x, y)


class Recording:
    """A view of a model that keeps the images it was asked about."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.seen: list[Tensor] = []

    def whole(self, n: int) -> int:
        return n

    computed = whole

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        self.seen.append(x)
        return self._net(x).detach()


class _Replay:
    """Stands in for Noise: the draws of the reference's start."""

    def __init__(self, reference: Watched, shape: torch.Size) -> None:
        _, self._c, h, w = shape
        self._side = max(h // 5, 1)
        self._grid = h // self._side, w // self._side
        self._reference = reference

    def signs(self, shape: tuple[int, ...], stream: int) -> Tensor:
        signs = torch.cat([s.flatten() for s in self._reference.first_signs])
        return signs.view(1, *shape) if self._reference.norm == "Linf" else self._of_tiles(signs, shape)

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        return self._of_tiles(torch.cat(self._reference.first_turns), shape)

    def _of_tiles(self, drawn: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Without those that the reference draws for tiles beyond the border."""
        return drawn.view(1, *self._grid, *shape[2:])[:, : shape[0], : shape[1]]


def problem(shape: tuple[int, int, int], classes: int = 4) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A net, an image and its own decision on it; a fifth of the pixels lie on the walls of the box."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, *shape, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        hidden = nn.Conv2d(shape[0], 6, 3, padding=1)
        net = nn.Sequential(hidden, nn.GELU(), nn.Flatten(), nn.Linear(6 * shape[1] * shape[2], classes)).eval()
    return net, x, net(x).detach().argmax(1)


def state_of(asked: Asked, x0: Tensor, y: Tensor, eps: Tensor) -> SquareState:
    """Our state before this query, with its draws."""
    number = torch.tensor([asked.number + 1])  # ours counts the start too
    draws = asked.draws.expand(1, DRAWS_AHEAD, -1)
    return SquareState(x0, y, eps, asked.x, asked.loss, number, torch.zeros(1, dtype=torch.bool), draws, number)


def searched(net: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[Watched, Tensor]:
    """The reference after its search, and the image that it ended with."""
    reference = Watched(
        net, norm=REFERENCE_NORM[norm], n_queries=QUERIES, eps=EPS[norm], resc_schedule=False, device="cpu"
    )
    reference.init_hyperparam(x)
    torch.manual_seed(0)
    return reference, reference.attack_single_run(x, y)[1]


@norms
@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 13, 13), (1, 9, 7), (1, 7, 28)])
def test_a_query_equals_the_reference_s(build, monkeypatch, norm, shape, falls):
    monkeypatch.setattr(square, "LOOK_AHEAD", 1)
    net, x0, y = problem(shape)
    bias = list(net.parameters())[-1].data
    bias[y] += OUT_OF_REACH
    reference, last = searched(net, x0, y, norm)
    if falls:  # half-way on the same path
        bias[y] += (reference.asked[0].loss + reference.asked[-1].loss) / 2
        reference, last = searched(net, x0, y, norm)
    assert (len(reference.asked) < QUERIES) == falls

    attack, eps, view = build("square", norm, queries=10**4), torch.tensor([EPS[norm]]), Recording(net)
    begun = attack.init(Start(x0, y, torch.full_like(y, -1), eps, torch.zeros_like(y)), _Replay(reference, x0.shape))
    torch.testing.assert_close(begun.x, reference.asked[0].x, rtol=0, atol=1e-12)

    accepted = 0
    for asked, after in zip(reference.asked, [*(a.x for a in reference.asked[1:]), last], strict=True):
        view.seen.clear()
        ours = attack.step(state_of(asked, x0, y, eps), Oracles(view), None)
        proposal = view.seen[0] if view.seen else asked.x
        torch.testing.assert_close(proposal, asked.proposal, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.x, after, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.loss, -reference.margin_and_loss(after, y)[0], rtol=0, atol=1e-10)
        assert bool(ours.found) == (falls and asked is reference.asked[-1])
        accepted += not torch.equal(ours.x, asked.x)
    assert 2 < accepted < len(reference.asked), "the comparison needs queries that are accepted and some that are not"


@norms
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 32), (224, 224), (4, 4), (2, 2), (1, 1), (5, 9), (64, 3)])
def test_the_windows_are_the_reference_s(norm, shape):
    reference, (h, w) = SquareAttack(None, norm=REFERENCE_NORM[norm], resc_schedule=False), shape
    after = torch.tensor(square.SHARE_HALVES_AFTER)
    queries = torch.arange(10000)
    sides = torch.tensor(square._sides(norm, 0.8, h, w))[torch.bucketize(queries, after)].tolist()
    for query in {0, *(q + d for q in square.SHARE_HALVES_AFTER for d in (0, 1)), 9999}:
        side = round(math.sqrt(reference.p_selection(query) * h * w))
        side = max(side, 1) if norm == "linf" else max(side, 3) + (max(side, 3) + 1) % 2
        assert sides[query] == min(side, h, w)
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13, 29])
def test_bumps_are_the_reference_s(norm, side):
    reference = Watched(None, norm=REFERENCE_NORM[norm], eps=1.0, device="cpu")
    reference.init_hyperparam(torch.zeros(1, 1, 1, 1))
    upright = set()
    placed = square.bumps(norm, (1, side, 3), torch.float64, "cpu")
    for seed in range(8):
        torch.manual_seed(seed)
        bump = reference.eta(side)
        turned = reference.turns[-1] > 0.5
        upright.add(bool(turned))
        corner, which = torch.tensor([2]), torch.tensor([1])
        whole = placed.place(corner, corner - 1, which, turned, side + 4, side + 1)
        inside = whole[0, 0, 2 : 2 + side, 1 : 1 + side]
        torch.testing.assert_close(inside, bump, rtol=0, atol=1e-12)
        assert float(whole.abs().sum()) == pytest.approx(float(inside.abs().sum())), "zero elsewhere"
    assert upright == {True, False}
