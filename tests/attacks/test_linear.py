"""Every row attack on linear models, where the nearest adversarial example is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks import algorithms
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Start
from robustbench_vit.cards import AlgorithmCard, Workspace
from robustbench_vit.cards.workspace import builtin_layer

CARDS = [
    loaded
    for loaded in Workspace((builtin_layer(),)).load_all("attack")[0]
    if isinstance(loaded.card, AlgorithmCard) and algorithms.get(loaded.card.algorithm).lane == "rows"
]
CASES = [(loaded.name, norm) for loaded in CARDS for norm in algorithms.get(loaded.card.algorithm).norms]
ALGORITHM = {loaded.name: loaded.card.algorithm for loaded in CARDS}

SLACK = {
    ("apgd-l1", "l1"): 1.55,
    ("square", "linf"): 2.4,
    ("square", "l2"): 3.2,
    ("square", "l1"): 6.0,
    ("rays", "l2"): 1.4,
    ("rays", "l1"): 4.5,
}
"""Radius, in units of the optimum, at which an attack must succeed; the others need 3 % more than the optimum, but
windows of equal sign cannot follow weights of random sign, and never reach the last row and column alone, and a
direction of signs is about √(π/2) times too long in l2 and pixels · max|w| / ‖w‖₁ times in l1.
APGD for l1 ends on a few pixels, never on the best one alone."""
TOO_SHORT = {"fgsm-rs-train": 1.6}
"""Cards whose one step from a random start doesn't end at the corner of the ball, with the same."""
SHORTER = {"queries": 1500, "draws": 2}
DISTANCE = {"linf": 0.06, "l2": 0.25, "l1": 0.15}
"""About how far the nearest adversarial example is."""


def linear(
    shape: tuple[int, int, int], classes: int, norm: str, walls: bool = False
) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, eight images and their labels; class 1 is the only one within reach of class 0 and back.

    Without `walls` the images are grey enough that the box plays no part; with them a third of the pixels touch it.
    """
    generator = torch.Generator().manual_seed(7)
    pixels = shape[0] * shape[1] * shape[2]
    weight = torch.randn(classes, pixels, generator=generator)
    x = 0.45 + 0.1 * torch.rand(8, *shape, generator=generator)
    if walls:
        x = torch.where(torch.rand(x.shape, generator=generator) < 1 / 3, x.round(), x)
    flat = x.flatten(1)
    toward = weight[1] - weight[0]
    wanted = DISTANCE[norm] * NORMS[norm].dual(toward.view(1, *shape))
    bias = torch.full((classes,), -100.0)
    bias[0], bias[1] = 0, -(flat @ toward).max() - wanted
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(bias)
    return model, x, torch.zeros(8, dtype=torch.int64)


def optimum(model: nn.Sequential, x: Tensor, norm: str) -> Tensor:
    """(row,) distance to class 1 when the box is out of the way: margin / dual norm."""
    toward = (model[1].weight[1] - model[1].weight[0]).detach().view(1, *x.shape[1:])
    logits = model(x).detach()
    return (logits[:, 0] - logits[:, 1]) / NORMS[norm].dual(toward)


def optimum_in_box(model: nn.Sequential, x: Tensor) -> Tensor:
    """(row,) linf distance to class 1 within the box: where Σ |w| min(eps, room) reaches the margin, by bisection."""
    toward = (model[1].weight[1] - model[1].weight[0]).detach()
    logits = model(x).detach()
    margin = logits[:, 0] - logits[:, 1]
    room = torch.where(toward > 0, 1 - x.flatten(1), x.flatten(1))
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(50):
        middle = (low + high) / 2
        reached = (toward.abs() * room.minimum(middle.unsqueeze(1))).sum(1) >= margin
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


def start(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor, attack: Any) -> Start:
    logits = model(x).detach()
    target = torch.ones_like(y) if attack.targets(logits.shape[1]) else torch.full_like(y, -1)
    return Start(x, y, target, eps, torch.zeros_like(y))


def broken(attack: Any, model: nn.Module, begin: Start, drive: Any) -> Tensor:
    """bool (row,): the attack found an image that is misclassified indeed, inside the box and the budget."""
    found = attack.best(drive(attack, model, begin))
    wrong = model(found.x).argmax(1) != begin.y
    inside = NORMS[attack.norm].size(found.x - begin.x0) <= begin.eps + 1e-6
    in_box = ((found.x >= 0) & (found.x <= 1)).flatten(1).all(1)
    assert bool((wrong & inside & in_box)[found.found].all()), "a claim that does not hold"
    return found.found


def test_every_row_algorithm_has_a_card():
    rows = {name for name in algorithms.names() if algorithms.get(name).lane == "rows"}
    assert rows == set(ALGORITHM.values())


@pytest.mark.parametrize(("shape", "rows", "classes"), [((1, 6, 6), 8, 2), ((3, 5, 8), 3, 5), ((2, 9, 4), 1, 3)])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_an_attack_succeeds_just_beyond_the_optimum_and_never_before(build, drive, name, norm, shape, rows, classes):
    card = next(loaded.card for loaded in CARDS if loaded.name == name)
    changes = {k: min(v, card.settings[k]) for k, v in SHORTER.items() if k in card.settings}
    attack = build(name, norm, **changes)
    model, x, y = linear(shape, classes, norm)
    x, y = x[:rows], y[:rows]
    nearest = optimum(model, x, norm)
    assert bool((model(x).argmax(1) == y).all())
    assert float(nearest.max()) < 0.44, "the box must not interfere"

    slack = TOO_SHORT.get(name) or SLACK.get((ALGORITHM[name], norm), 1.03)
    assert broken(attack, model, start(model, x, y, slack * nearest, attack), drive).tolist() == [True] * rows
    few = build(name, norm, **{k: min(v, 50) for k, v in changes.items()})  # it cannot succeed however long it runs
    assert broken(few, model, start(model, x, y, 0.98 * nearest, few), drive).tolist() == [False] * rows


@pytest.mark.parametrize("name", [name for name, norm in CASES if norm == "linf" and ALGORITHM[name] != "square"])
def test_pixels_at_the_walls_of_the_box_move_one_way_only(build, drive, name):
    attack = build(name, "linf")
    model, x, y = linear((2, 5, 6), 3, "linf", walls=True)
    nearest = optimum_in_box(model, x)
    assert float((nearest / optimum(model, x, "linf")).min()) > 1.1, "the walls must matter"
    beyond = TOO_SHORT.get(name, 1.03) * nearest
    assert bool(broken(attack, model, start(model, x, y, beyond, attack), drive).all())
    assert not bool(broken(attack, model, start(model, x, y, 0.98 * nearest, attack), drive).any())


@pytest.mark.parametrize(("norm", "walls"), [("linf", False), ("linf", True), ("l2", False)])
@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHM.items() if algorithm == "fab"])
def test_a_minimum_norm_attack_finds_the_distance_itself(build, drive, name, norm, walls):
    attack = build(name, norm)
    model, x, y = linear((2, 5, 6), 3, norm, walls)
    nearest = optimum_in_box(model, x) if walls else optimum(model, x, norm)
    found = attack.best(drive(attack, model, start(model, x, y, 5 * nearest, attack)))
    assert bool(found.found.all())
    assert bool((found.distance >= nearest * (1 - 1e-4)).all())
    assert bool((found.distance <= 1.02 * nearest).all())
