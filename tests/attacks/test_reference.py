"""Whole runs equal the authors' AutoAttack (pyautoattack) when they are given the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.rows import Access, Oracles, Start
from robustbench_vit.cards import AlgorithmCard, Loaded, open_workspace
from robustbench_vit.engine.oracle import Oracle

pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack

REFERENCE_NORM = {"linf": "Linf", "l2": "L2"}
EPS = {"linf": 0.2, "l2": 0.6}
CLASSES = 6


class Draws:
    """Stands in for Noise: hands out given uniforms and normals, row by row."""

    def __init__(self, uniform: Any = None, normal: Any = None, signs: Any = None) -> None:
        self._uniform, self._normal, self._signs = uniform, normal, signs
        self.keys = torch.zeros(1, 2, dtype=torch.int64)

    def uniform(self, shape, stream, step=0):
        return self._uniform(shape, stream, step)

    def normal(self, shape, stream, step=0):
        return self._normal(shape, stream, step)

    def signs(self, shape, stream, step=0):
        return self._signs(shape, stream, step)

    def uniform_ahead(self, shape, stream, first, steps):
        return torch.stack([self.uniform(shape, stream, first + i) for i in range(steps)], dim=1)


def small_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    return net.to(dtype).eval()


def samples(net: nn.Module, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images with the net's own decisions as labels, a fifth of the pixels on the walls of the box."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 2, 6, 6, generator=generator, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    return x, net(x).argmax(1)


def attack(name: str, norm: str, **changes):
    card = open_workspace().attack(name).card
    return build_attack(Loaded(name, Path(name), name, AlgorithmCard(**{**card.model_dump(), **changes})), norm)


def run(chosen, net: nn.Module, start: Start, noise):
    """The state after every row is finished."""
    oracle = Oracle(net)
    oracles = Oracles(oracle.view(chosen.access))
    state = chosen.init(start, noise)
    while not bool(chosen.finished(state).all()):
        oracle.count(len(start.y))
        state = chosen.step(state, oracles, noise)
    return state


def start_for(x: Tensor, y: Tensor, norm: str, target: Tensor | None = None) -> Start:
    eps = torch.full((len(x),), EPS[norm], dtype=x.dtype)
    return Start(x, y, torch.full_like(y, -1) if target is None else target, eps, torch.zeros_like(y))


def replayed_start(x: Tensor, norm: str, seed: int) -> Draws:
    """The draws the reference makes for its start with this global seed."""
    torch.manual_seed(seed)
    if norm == "linf":
        u = torch.rand(x.shape, dtype=x.dtype)
        return Draws(uniform=lambda *_: u)
    g = torch.randn(x.shape, dtype=x.dtype)
    return Draws(normal=lambda *_: g)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_ends_where_the_reference_ends(float64, norm, loss):
    net = small_net(float64)
    x, y = samples(net, 12, float64)
    reference = APGDAttack(net, n_iter=60, norm=REFERENCE_NORM[norm], eps=EPS[norm], loss=loss, device="cpu")
    torch.manual_seed(0)
    reference.init_hyperparam(x)
    torch.manual_seed(0)
    x_best, acc, loss_best, x_adversarial = reference.attack_single_run(x, y)

    state = run(attack(f"apgd-{loss}", norm, steps=60), net, start_for(x, y, norm), replayed_start(x, norm, 0))
    torch.testing.assert_close(state.loss_best, loss_best, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state.x_best, x_best, rtol=0, atol=1e-9)
    assert state.found.tolist() == (~acc).tolist()
    torch.testing.assert_close(state.adversarial[~acc], x_adversarial[~acc], rtol=0, atol=1e-9)
    assert int(state.found.sum()) > 0, "the comparison needs rows that fall"
    assert (state.step_size < 2 * EPS[norm]).any(), "the comparison needs rows whose step was halved"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_apgd_ends_where_the_reference_ends(float64, norm):
    net = small_net(float64)
    x, y = samples(net, 12, float64)
    reference = APGDAttack_targeted(net, n_iter=60, norm=REFERENCE_NORM[norm], eps=EPS[norm], device="cpu")
    reference.init_hyperparam(x)
    reference.y_target = net(x).sort(dim=1)[1][:, -3]
    torch.manual_seed(0)
    x_best, _, loss_best, _ = reference.attack_single_run(x, y)

    start = start_for(x, y, norm, reference.y_target)
    state = run(attack("apgd-t", norm, steps=60), net, start, replayed_start(x, norm, 0))
    torch.testing.assert_close(state.loss_best, loss_best, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state.x_best, x_best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_square_follows_the_reference_on_one_image(float64, norm, seed):
    queries = 300
    net = small_net(float64)
    x, y = samples(net, 1, float64)
    eps = 0.4 * EPS[norm]  # too small to succeed, so that the whole search is compared
    reference = SquareAttack(
        net, norm=REFERENCE_NORM[norm], n_queries=queries, eps=eps, seed=seed, resc_schedule=False, device="cpu"
    )
    reference.init_hyperparam(x)
    drawn = _recorded(reference)
    torch.manual_seed(seed)
    _, x_reference = reference.attack_single_run(x, y)

    chosen = attack("square", norm, queries=queries)
    start = Start(x, y, torch.full_like(y, -1), torch.tensor([eps]), torch.zeros_like(y))
    state = run(chosen, net, start, _replay(drawn, norm, x.shape))
    assert chosen.access is Access.SCORES
    assert not bool(state.found.any())
    torch.testing.assert_close(state.x, x_reference, rtol=0, atol=1e-12)
    assert (state.x != x).any()


def _recorded(reference: SquareAttack) -> dict[str, list]:
    """Makes the reference note its draws: windows and turns as uniforms, signs as they are."""
    drawn: dict[str, list] = {"ints": [], "signs": [], "turns": []}
    choose, eta = reference.random_choice, reference.eta

    def random_int(low=0, high=1, shape=(1,)):
        u = torch.rand(shape)
        drawn["ints"].append(u)
        return (low + (high - low) * u).long()

    def random_choice(shape):
        drawn["signs"].append(choose(shape))
        return drawn["signs"][-1]

    def recorded_eta(s):
        state = torch.get_rng_state()
        bump = eta(s)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        drawn["turns"].append(torch.rand([1]))
        torch.set_rng_state(after)
        return bump

    reference.random_int, reference.random_choice, reference.eta = random_int, random_choice, recorded_eta
    return drawn


def _replay(drawn: dict[str, list], norm: str, shape: torch.Size) -> Draws:
    """The recorded draws in the order our attack asks for them."""
    c, w = shape[1], shape[3]
    if norm == "linf":
        start_signs, later_signs = drawn["signs"][0].view(1, c, 1, w), drawn["signs"][1:]

        def uniform(_, __, query):
            i = min(max(int(query) - 1, 0), len(later_signs) - 1)
            return torch.cat([*drawn["ints"][2 * i : 2 * i + 2], 0.5 + later_signs[i].flatten() / 4]).view(1, -1)

        return Draws(uniform=uniform, signs=lambda *_: start_signs)

    tiles = 36  # 6 × 6 tiles of side 1
    start_signs = torch.stack([s.flatten() for s in drawn["signs"][:tiles]]).view(1, 6, 6, c)
    turns = torch.cat(drawn["turns"][:tiles]).view(1, 6, 6)

    def uniform_l2(asked, _, query):
        if len(asked) == 2:
            return turns
        i = min(max(int(query) - 1, 0), len(drawn["ints"]) // 4 - 1)
        signs = 0.5 + drawn["signs"][tiles + i].flatten() / 4
        return torch.cat([*drawn["ints"][4 * i : 4 * i + 4], drawn["turns"][tiles + i], signs]).view(1, -1)

    return Draws(uniform=uniform_l2, signs=lambda *_: start_signs)
