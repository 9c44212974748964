"""Every step of APGD equals the authors' (pyautoattack), started from the reference's own state, in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Oracles, Start
from robustbench_vit.engine.oracle import Oracle

pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted, L1_projection

from tests.attacks.stepwise_apgd import Seen, Watched, state, state_l1

REFERENCE_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.2, "l2": 0.8, "l1": 4.0}
LOSSES = {"ce": "apgd-ce", "dlr": "apgd-dlr", "dlr-targeted": "apgd-t"}
CLASSES, ROWS = 6, 16
STEPS = 60
NOT_BEFORE = ("x_best", "grad_best", "loss_best")
"""Without meaning before the first point of a stage."""

losses = pytest.mark.parametrize("loss", sorted(LOSSES))


class Normals:
    """Stands in for Noise and hands out given draws."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    def uniform(self, *_: Any) -> Tensor:
        return self.draws

    normal = uniform


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, the reference's projection on the l1 ball too, which casts to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Conv2d(2, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def start(net: nn.Module) -> Start:
    """Images with the net's own decisions as labels and its third choices as targets; the radius is not set."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(ROWS, 2, 6, 6, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    ranking = net(x).argsort(dim=1, descending=True)
    y = ranking[:, 0].clone()
    return Start(x, y, ranking[:, 2].clone(), torch.zeros(ROWS), torch.zeros_like(y))


def reference(model: nn.Module, norm: str, loss: str, start: Start) -> Any:
    settings = {"n_iter": STEPS, "norm": REFERENCE_NORM[norm], "eps": EPS[norm], "device": "cpu"}
    if loss != "dlr-targeted":
        chosen = APGDAttack(model, loss=loss, **settings)
    else:
        chosen = APGDAttack_targeted(model, **settings)
        chosen.y_target = start.target
    chosen.init_hyperparam(start.x0)
    return chosen


def one_step(attack: Any, net: nn.Module, before: Any) -> Any:
    oracle = Oracle(net)
    oracle.count(len(before.y))
    return attack.step(before, Oracles(oracle.view(attack.access)), Normals(torch.zeros(0)))


def assert_same(ours: Any, theirs: Any, besides: tuple[str, ...] = ()) -> None:
    for field in dataclasses.fields(ours):
        if field.name not in besides:
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, n=field.name: f"{n}: {m}")


@losses
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_step_from_the_reference_s_state_ends_in_its_next_state(build, net, start, norm, loss):
    start = dataclasses.replace(start, eps=torch.full((ROWS,), EPS[norm]))
    watched = Watched(net)
    torch.manual_seed(0)
    x_best, robust, loss_best, _ = reference(watched, norm, loss, start).attack_single_run(start.x0, start.y)
    assert len(watched.seen) == STEPS + 1

    torch.manual_seed(0)
    attack = build(LOSSES[loss], norm, steps=STEPS)
    draws = (torch.rand if norm == "linf" else torch.randn)(start.x0.shape)
    ours = attack.init(start, Normals(draws))
    torch.testing.assert_close(ours.x, watched.seen[0].x_adv, rtol=0, atol=1e-12)
    halvings = 0
    for seen in watched.seen[1:]:
        ours, theirs = one_step(attack, net, ours), state(seen, start)
        assert_same(ours, theirs)
        ours = theirs
        halvings += int(seen.reduced_last_check.sum()) * (seen.counter3 == 0)
    assert halvings > 5, "the comparison needs steps that are halved"
    end = one_step(attack, net, ours)
    torch.testing.assert_close((end.x_best, end.loss_best), (x_best, loss_best), rtol=0, atol=1e-10)
    assert end.found.tolist() == (~robust).tolist()
    assert bool(attack.finished(end).all())
    assert 0 < int(robust.sum()) < ROWS


def run_l1(net: nn.Module, loss: str, start: Start, enlarged: bool) -> tuple[list[Seen], Tensor, Any]:
    """The reference's run: what was seen, the draws of its start, and what it returns."""
    watched = Watched(net)
    chosen = reference(watched, "l1", loss, start)
    torch.manual_seed(0)
    draws = torch.randn(start.x0.shape)
    torch.manual_seed(0)
    if not enlarged:
        return watched.seen, draws, chosen.attack_single_run(start.x0, start.y)
    steps = [math.ceil(0.3 * STEPS)] * 2
    radii = [r * EPS["l1"] for r in (3.0, 2.0, 1.0)]
    return watched.seen, draws, chosen.decr_eps_pgd(start.x0, start.y, radii, [*steps, STEPS - sum(steps)])


@losses
@pytest.mark.parametrize("enlarged", [True, False])
def test_in_l1_every_step_and_stage_starts_where_the_reference_s_does(build, net, start, loss, enlarged):
    start = dataclasses.replace(start, eps=torch.full((ROWS,), EPS["l1"]))
    seen, draws, (x_best, robust, loss_best, _) = run_l1(net, loss, start, enlarged)
    stages, first_share = (3, None) if enlarged else (1, 0.2)
    assert len(seen) == STEPS + stages

    attack = build(f"{LOSSES[loss]}-l1{'' if enlarged else '-plus'}", "l1", steps=STEPS)
    theirs = state_l1(seen[0], start, stages, first_share)
    ours = attack.init(start, Normals(draws))
    assert_same(ours, theirs, (*NOT_BEFORE, "share", "moved"))
    # The reference projects its start twice, which takes some rows' residues of rounding away.
    assert int((ours.moved == theirs.moved).sum()) >= 0.9 * ROWS
    sparser = set()
    for call in seen[1:]:
        ours, theirs = one_step(attack, net, theirs), state_l1(call, start, stages, first_share)
        assert_same(ours, theirs, NOT_BEFORE if call.asked == 0 else ())
        if call.values.get("i", 0) > 0 and call.counter3 == 0:
            sparser |= set(call.fl_redtopk.tolist())
    assert sparser == {True, False}, "the comparison needs both decisions"
    end = one_step(attack, net, theirs)
    torch.testing.assert_close((end.x_best, end.loss_best), (x_best, loss_best), rtol=0, atol=1e-10)
    assert end.found.tolist() == (~robust).tolist()
    assert bool(attack.finished(end).all())
    assert 0 < int(robust.sum()) < ROWS


class Fickle(nn.Module):
    """A model whose answer depends on how often it was asked, as a random one's does, but can be repeated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x * (1 + 0.2 * math.sin(self.calls)) + 0.1 * math.cos(7 * self.calls))


@pytest.mark.parametrize(
    ("name", "norm"), [("apgd-ce-rand", "linf"), ("apgd-dlr-rand", "l2"), ("apgd-ce-l1-rand", "l1")]
)
def test_a_gradient_over_draws_and_what_is_judged_on_the_last_are_the_reference_s(build, net, start, name, norm):
    draws = 3
    start = dataclasses.replace(start, eps=torch.full((ROWS,), EPS[norm]))
    watched = Watched(Fickle(net))
    chosen = reference(watched, norm, "dlr" if "dlr" in name else "ce", start)
    chosen.eot_iter = draws
    torch.manual_seed(0)
    _, robust, *_ = chosen.attack_single_run(start.x0, start.y)
    seen = watched.seen[::draws]
    assert len(seen) == STEPS + 1

    def theirs(call: Seen) -> Any:
        return state_l1(call, start, 1, 0.2) if norm == "l1" else state(call, start)

    attack = build(name, norm, steps=STEPS, draws=draws)
    for point, (call, following) in enumerate(pairwise(seen[1:]), start=1):
        fickle = Fickle(net)
        fickle.calls = point * draws
        assert_same(one_step(attack, fickle, theirs(call)), theirs(following))
        assert fickle.calls == (point + 1) * draws
    assert 0 < int(robust.sum()) < ROWS


@pytest.mark.parametrize("far", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("eps", [0.1, 1.0, 12.0])
def test_the_projection_on_the_l1_ball_equals_the_reference_s(far, eps):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(100, 3, 8, 5, generator=generator)
    x0 = torch.where(torch.rand(x0.shape, generator=generator) < 0.3, x0.round(), x0)
    x = x0 + far * torch.randn(x0.shape, generator=generator)
    theirs = x + L1_projection(x0, x - x0, eps)
    torch.testing.assert_close(NORMS["l1"].project(x, x0, torch.full((100,), eps)), theirs, rtol=0, atol=1e-11)
