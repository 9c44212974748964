"""Gradient attacks on models of few and many classes, on grey, narrow and single images, in every norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.rows import Start

NAMES = [
    *((name, norm) for name in ("apgd-ce", "apgd-dlr", "apgd-t") for norm in ("linf", "l2")),
    *((f"{name}-l1", "l1") for name in ("apgd-ce", "apgd-dlr", "apgd-t")),
    *((name, norm) for name in ("fgsm", "pgd-20") for norm in ("linf", "l2", "l1")),
]
EPS = {"linf": 0.4, "l2": 2.5, "l1": 8.0}
MODELS = [((1, 6, 6), 2, 6), ((3, 7, 4), 3, 6), ((2, 1, 9), 4, 1), ((1, 5, 8), 1000, 6), ((3, 5, 5), 10, 1)]
"""Image shape, classes, rows."""


def objective(model: Any, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(row,) the margin by which the target class (untargeted: the largest other one) leads."""
    z = model(x).detach()
    others = z.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    aimed = z.gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
    return torch.where(target < 0, others, aimed) - z.gather(1, y.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize(("shape", "classes", "rows"), MODELS)
@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_the_attack_raises_its_objective_within_the_budget(build, drive, bumpy, name, norm, shape, classes, rows):
    shorter = {"steps": 12} if name != "fgsm" else {}
    attack, model = build(name, norm, **shorter), bumpy(shape, classes)
    x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1))
    ranking = model(x).detach().argsort(dim=1, descending=True)
    y, targets = ranking[:, 0], attack.targets(classes)
    assert targets == (min(5 if norm == "l1" else 9, classes - 1) if name.startswith("apgd-t") else 0)
    target = ranking[:, targets] if targets else torch.full_like(y, -1)

    start = Start(x, y, target, torch.full((rows,), EPS[norm]), torch.zeros_like(y))
    state = drive(attack, model, start)
    best = attack.best(state)
    assert bool((NORMS[norm].size(best.x - start.x0) <= start.eps + 1e-6)[best.found].all())
    assert bool((model(best.x).argmax(1) != y)[best.found].all())
    assert float((objective(model, state.x, y, target) - objective(model, x, y, target)).mean()) > 0
    assert bool(torch.isfinite(state.x).all())


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 1000])
def test_every_target_is_another_class(build, classes):
    for name, norm, most in (("apgd-t", "linf", 9), ("apgd-t-l1", "l1", 5), ("apgd-t-l1-plus", "l1", 9)):
        attack = build(name, norm)
        assert attack.targets(classes) == min(most, classes - 1)
        points = 103 if name == "apgd-t-l1" else 101
        assert attack.cost(classes).backwards == attack.targets(classes) * points
