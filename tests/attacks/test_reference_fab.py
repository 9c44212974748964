"""Every step of FAB equals the authors' (pyautoattack) when it begins at the state that theirs has, in float64."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.fab import FABState
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.projection import onto_hyperplane
from robustbench_vit.attacks.rows import Oracles, Start
from robustbench_vit.engine.oracle import Oracle

pytest.importorskip("pyautoattack", reason="the extra 'reference' is not installed")
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT

REFERENCE_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.1, "l2": 0.6, "l1": 4.0}
STEPS = 20
NONE_YET = 1e10
"""What the reference's distance is until it finds something."""

pytestmark = pytest.mark.usefixtures("reference_in_float64")
norms = pytest.mark.parametrize("norm", sorted(REFERENCE_NORM))


@dataclasses.dataclass
class Seen:
    """The reference's variables at the beginning of an iteration."""

    x: Tensor  # (row, c, h, w)
    adversarial: Tensor  # (row, c, h, w)
    distance: Tensor  # (row,)

    def __post_init__(self) -> None:
        self.x, self.adversarial = self.x.clone(), self.adversarial.clone()
        self.distance = torch.where(self.distance == NONE_YET, torch.inf, self.distance)


class Watched(FABAttack_PT):
    """The reference, noting its variables whenever it asks for gradients."""

    def __init__(self, net: nn.Module, norm: str) -> None:
        super().__init__(net, norm=REFERENCE_NORM[norm], n_iter=STEPS, eps=EPS[norm], device="cpu")
        self.seen: list[Seen] = []
        self.classes: set[int] = set()

    def get_diff_logits_grads_batch(self, imgs: Tensor, la: Tensor) -> tuple[Tensor, Tensor]:
        self.note(sys._getframe(1).f_locals)
        df, dg = super().get_diff_logits_grads_batch(imgs, la)
        self.classes |= set(_nearest(df, dg, self.norm).tolist())
        return df, dg

    def get_diff_logits_grads_batch_targeted(self, imgs: Tensor, la: Tensor, la_target: Tensor) -> Any:
        self.note(sys._getframe(1).f_locals)
        return super().get_diff_logits_grads_batch_targeted(imgs, la, la_target)

    def note(self, variables: dict[str, Any]) -> None:
        self.seen.append(Seen(variables["x1"], variables["adv"], variables["res2"]))


def _nearest(df: Tensor, dg: Tensor, norm: str) -> Tensor:
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    return (df.abs() / (1e-12 + torch.linalg.vector_norm(dg.flatten(2), order, dim=2))).argmin(1)


def problem(shape: tuple[int, int, int] = (2, 5, 7), n: int = 6, classes: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A net, images and its own decisions on them; a fifth of the pixels lie on the walls of the box."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, *shape, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, x.round(), x)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        hidden = nn.Conv2d(shape[0], 6, 3, padding=1)
        net = nn.Sequential(hidden, nn.GELU(), nn.Flatten(), nn.Linear(6 * shape[1] * shape[2], classes)).eval()
    return net, x, net(x).detach().argmax(1)


def assert_equal_steps(attack: Any, net: nn.Module, start: Start, seen: list[Seen]) -> None:
    """One step of ours from each of the reference's states leads to its next one."""
    oracle, nothing = Oracle(net), torch.zeros_like(start.y)
    for before, after in itertools.pairwise(seen):
        oracle.count(len(start.y))
        state = FABState(
            start.x0, start.y, start.target, start.eps, before.x, nothing, before.adversarial, before.distance
        )
        ours = attack.step(state, Oracles(oracle.view(attack.access)), None)
        torch.testing.assert_close(ours.x, after.x, rtol=0, atol=1e-11)
        torch.testing.assert_close(ours.adversarial, after.adversarial, rtol=0, atol=1e-11)
        torch.testing.assert_close(ours.distance, after.distance, rtol=0, atol=1e-10)


def start_for(x: Tensor, y: Tensor, norm: str, target: Tensor | None = None, restart: int = 0) -> Start:
    eps = torch.full((len(x),), EPS[norm])
    return Start(x, y, torch.full_like(y, -1) if target is None else target, eps, torch.full_like(y, restart))


def assert_telling(seen: list[Seen], x: Tensor) -> None:
    """The comparison covers moves, successes, and successes that came nearer."""
    assert len(seen) == STEPS
    assert all(bool((a.x != b.x).any()) for a, b in itertools.pairwise(seen))
    distances = torch.stack([s.distance for s in seen])
    assert int(distances[-1].isfinite().sum()) >= len(x) // 2
    assert bool((distances[-1] < distances.masked_fill(distances.isinf(), -1).amax(0)).any())


@norms
@pytest.mark.parametrize("rank", [2, 4])
def test_a_targeted_step_equals_the_reference_s(build, norm, rank):
    net, x, y = problem()
    reference = Watched(net, norm)
    reference.target_class = rank
    reference.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
    assert_telling(reference.seen, x)
    target = net(x).sort(dim=1)[1][:, -rank]
    assert_equal_steps(build("fab-t", norm), net, start_for(x, y, norm, target), reference.seen)


@norms
@pytest.mark.parametrize(("shape", "classes"), [((2, 5, 7), 6), ((1, 9, 4), 2), ((3, 4, 4), 40)])
def test_an_untargeted_step_equals_the_reference_s(build, norm, shape, classes):
    net, x, y = problem(shape, classes=classes)
    reference = Watched(net, norm)
    reference.attack_single_run(x, y, use_rand_start=False, is_targeted=False)
    assert_telling(reference.seen, x)
    assert len(reference.classes) >= min(classes, 3)
    assert_equal_steps(build("fab", norm), net, start_for(x, y, norm), reference.seen)


@norms
def test_a_restart_begins_where_the_reference_s_does(build, norm):
    net, x, y = problem()
    reference = Watched(net, norm)
    torch.manual_seed(1)
    reference.attack_single_run(x, y, use_rand_start=True, is_targeted=False)
    torch.manual_seed(1)
    drawn = torch.rand(x.shape) if norm == "linf" else torch.randn(x.shape)
    attack = build("fab", norm)
    begun = attack.init(start_for(x, y, norm, restart=3), _Replay(drawn))
    torch.testing.assert_close(begun.x, reference.seen[0].x, rtol=0, atol=1e-12)
    assert_equal_steps(attack, net, start_for(x, y, norm, restart=3), reference.seen)
    assert torch.equal(attack.init(start_for(x, y, norm, restart=0), _Replay(drawn)).x, x)


class _Replay:
    """Stands in for Noise: always the same draws."""

    def __init__(self, drawn: Tensor) -> None:
        self._drawn = drawn

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        return self._drawn

    normal = uniform


@norms
def test_whole_runs_find_the_reference_s_distances(build, norm, drive: Callable[..., Any]):
    net, x, y = problem()
    for name in ("fab-t", "fab"):
        reference = Watched(net, norm)
        reference.target_class = 2
        found = reference.attack_single_run(x, y, use_rand_start=False, is_targeted=name == "fab-t")
        target = net(x).sort(dim=1)[1][:, -2] if name == "fab-t" else None
        state = drive(build(name, norm, steps=STEPS, restarts=1), net, start_for(x, y, norm, target))
        distance = torch.where(state.distance.isinf(), 0, state.distance)
        torch.testing.assert_close(distance, NORMS[norm].size(found - x), rtol=1e-6, atol=1e-8)


@norms
def test_projection_onto_hyperplane_equals_the_reference(norm):
    """Pixel counts just above a power of two: at one, the reference's bisection stops a place too early."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 40, generator=generator)
    x[:60] = x[:60].round()
    w = torch.randn(300, 40, generator=generator)
    w[100:150] *= torch.rand(50, 40, generator=generator) > 0.7
    b = (w * x).sum(1) + 4 * torch.randn(300, generator=generator)
    reference = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}[norm]
    ours = onto_hyperplane(x, w, b, norm)
    torch.testing.assert_close(ours, reference(x.clone(), w.clone(), b.clone()), rtol=0, atol=1e-10)
    reached = ((w * (x + ours)).sum(1) - b).abs() < 1e-9
    assert 0 < int(reached.sum()) < 300, "hyperplanes within and out of reach of the box"
