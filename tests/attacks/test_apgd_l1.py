"""Auto-PGD for l1: stages, sparsity, what counts as found, and faults of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vit.attacks.apgd_l1 import sparse_sign
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Gradient, Oracles, Start
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.errors import CardError

SHAPE = (2, 5, 4)
SIZE = NORMS["l1"].size


def rows(n: int, eps: float, classes: int = 3) -> Start:
    x = 0.2 + 0.6 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % classes
    return Start(x, y, (y + 1) % classes, torch.full((n,), eps), torch.zeros_like(y))


class Answers:
    """A model's view that is always right, or always wrong, with gradients that grow from pixel to pixel."""

    def __init__(self, y: Tensor, wrong: bool) -> None:
        self.logits = torch.nn.functional.one_hot((y + wrong) % 3, 3).float()
        self.asked: list[Tensor] = []

    def gradient(self, x: Tensor, objective: Any, rows: Tensor | None = None) -> Gradient:
        self.asked.append(x)
        grad = torch.arange(1.0, x[0].numel() + 1).view(1, *x.shape[1:]).expand_as(x)
        return Gradient(self.logits, objective(self.logits, torch.arange(len(x))), grad)


@pytest.mark.parametrize(
    ("steps", "expected"), [(100, [30, 30, 40]), (10, [3, 3, 4]), (25, [8, 8, 9]), (4, [2, 1, 1]), (3, [1, 1, 1])]
)
def test_stages_round_their_share_up_and_leave_a_step_for_the_last(build, steps, expected):
    assert build("apgd-ce-l1", "l1", steps=steps).stage_steps() == expected


def test_a_stage_starts_at_the_best_point_of_the_one_before_inside_its_own_ball(build, noise, bumpy):
    attack, model, start, draws = build("apgd-ce-l1", "l1", steps=20), bumpy(SHAPE, 3), rows(8, 0.7), noise(8)
    oracle, state, steps = Oracle(model), attack.init(start, draws), attack.stage_steps()
    for _ in range(20 + 3):
        stage = int(state.stage[0])
        assert state.stage.tolist() == [stage] * 8
        assert bool((SIZE(state.x - state.x0) <= (3 - stage) * start.eps).all())
        oracle.count(8)
        before, state = state, attack.step(state, Oracles(oracle.view(attack.access)), draws)
        if int(state.stage[0]) == stage:
            continue
        assert before.asked.tolist() == [steps[stage]] * 8
        assert state.asked.tolist() == [0] * 8
        nearer = NORMS["l1"].project(state.x_best, state.x0, (2 - stage) * start.eps)
        torch.testing.assert_close(state.x, nearer)
        torch.testing.assert_close(state.step_size, (2 - stage) * start.eps)
    assert bool(attack.finished(state).all())
    assert not bool(attack.finished(before).any())


@pytest.mark.parametrize("eps", [0.4, 100.0])
def test_what_larger_balls_show_counts_only_inside_the_budget(build, noise, eps):
    attack, start, draws = build("apgd-ce-l1", "l1", steps=10), rows(3, eps), noise(3)
    state, view = attack.init(start, draws), Answers(start.y, wrong=True)
    while not bool(attack.finished(state).all()):
        asked = state.x
        state = attack.step(state, Oracles(view), draws)
        inside = bool((SIZE(asked - start.x0) <= start.eps).all())
        best = attack.best(state)
        assert best.found.tolist() == [inside] * 3
        assert inside == (eps == 100.0 or len(view.asked) > 3 + 3 + 2)
        if inside:
            assert torch.equal(best.x, asked)
            assert bool((SIZE(best.x - start.x0) <= start.eps).all())
        else:
            assert torch.equal(best.x, start.x0)
    assert bool(attack.best(state).found.all())


@pytest.mark.parametrize(("share", "expected"), [(0.5, 10), (0.31, 7), (0.05, 1), (0.0, 1), (1.0, 20)])
def test_a_sparse_step_moves_its_share_of_the_largest_entries_equally(share, expected):
    grad = torch.randn(4, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    step = sparse_sign(grad, torch.full((4,), share))
    moved = step != 0
    assert moved.flatten(1).sum(1).tolist() == [expected] * 4
    torch.testing.assert_close(SIZE(step), torch.ones(4))
    assert bool((step.sign() == grad.sign())[moved].all())
    smallest_moved = grad.abs().masked_fill(~moved, torch.inf).flatten(1).amin(1)
    largest_left = grad.abs().masked_fill(moved, 0).flatten(1).amax(1)
    assert bool((smallest_moved > largest_left).all())
    assert bool((sparse_sign(torch.zeros_like(grad), torch.full((4,), share)) == 0).all())


def test_the_step_shrinks_at_every_check_down_to_its_floor_and_the_share_follows_the_best_point(build, noise):
    attack, start, draws = build("apgd-ce-l1-plus", "l1", steps=100), rows(2, 0.3), noise(2)
    state, view, sizes = attack.init(start, draws), Answers(start.y, wrong=False), []
    assert state.share.tolist() == pytest.approx([0.2, 0.2])
    for _ in range(60):
        state = attack.step(state, Oracles(view), draws)
        if int(state.since[0]) == 0 and int(state.asked[0]) > 1:
            sizes.append(float(state.step_size[0]) / 0.3)
            moved = (state.x_best != state.x0).flatten(1).sum(1)
            assert state.moved.tolist() == moved.tolist()
            torch.testing.assert_close(state.share, moved / 40 / 1.5)
    # The start, the best point throughout, moved fewer than all pixels: the first check calls that sparser.
    assert sizes[:3] == pytest.approx([1, 1 / 1.5, 1 / 1.5**2])
    assert sizes[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"radii": [3, 2]}, "the last of the radii has to be 1, the budget itself, got [3.0, 2.0]"),
        ({"stage_shares": [0.5, 0.5]}, "stage_shares have to be 3 numbers with sum 1, got [0.5, 0.5]"),
        ({"stage_shares": [0.5, 0.5, 0.5]}, "stage_shares have to be 3 numbers with sum 1, got [0.5, 0.5, 0.5]"),
        ({"steps": 2}, "3 stages need as many steps, got 2"),
        ({"targets": 3}, "loss 'ce' needs targets = 0"),
        ({"first_share": 2}, "field 'first_share': should be less than or equal to 1, got 2"),
        ({"radii": [0.5, 1]}, "field 'radii.0': should be greater than or equal to 1, got 0.5"),
        ({"momentum": 0.75}, "unknown field 'momentum'"),
        ({"draws": 0}, "field 'draws': should be greater than or equal to 1, got 0"),
    ],
)
def test_faults_of_the_card(build, changes, fault):
    with pytest.raises(CardError) as error:
        build("apgd-ce-l1", "l1", **changes)
    assert [line.removeprefix("apgd-ce-l1: ").partition("; ")[0] for line in error.value.faults] == [fault]


def test_each_form_of_apgd_names_its_norms(build):
    with pytest.raises(CardError, match=r"algorithm 'apgd' works in linf, l2, not in l1"):
        build("apgd-ce", "l1")
    with pytest.raises(CardError, match=r"algorithm 'apgd-l1' works in l1, not in linf"):
        build("apgd-ce-l1", "linf")
