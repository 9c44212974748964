"""Gradients averaged over draws of a model that answers at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vit.attacks.rows import Gradient, Oracles, Start

NAMES = [("apgd-ce", "linf"), ("apgd-dlr", "l2"), ("apgd-ce-l1", "l1")]
RAND = [("apgd-ce-rand", "linf"), ("apgd-dlr-rand", "l2"), ("apgd-ce-l1-rand", "l1"), ("apgd-dlr-l1-rand", "l1")]


class Recorder:
    """A view that notes how it was asked; `draws` is None where a call does not say."""

    def __init__(self, y: Tensor) -> None:
        self.logits = torch.nn.functional.one_hot(y, 3).float()
        self.calls: list[int | None] = []

    def gradient(self, x: Tensor, objective: Any, rows: Tensor | None = None, **said: int) -> Gradient:
        self.calls.append(said.get("draws"))
        return Gradient(self.logits, objective(self.logits, torch.arange(len(x))), torch.ones_like(x))


def asked(attack: Any, noise: Any) -> Recorder:
    """How a whole run asks the model."""
    x, y = torch.full((3, 1, 3, 3), 0.5), torch.tensor([0, 1, 2])
    start, view = Start(x, y, (y + 1) % 3, torch.full((3,), 0.1), torch.zeros_like(y)), Recorder(y)
    state = attack.init(start, noise(3))
    while not bool(attack.finished(state).all()):
        state = attack.step(state, Oracles(view), noise(3))
    return view


@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_draws_are_asked_for_where_the_card_states_more_than_one(build, noise, name, norm):
    once, often = asked(build(name, norm), noise), asked(build(name, norm, draws=7), noise)
    assert set(once.calls) == {None}
    assert set(often.calls) == {7}
    assert len(often.calls) == len(once.calls)


@pytest.mark.parametrize(("name", "norm"), NAMES)
def test_every_draw_is_paid_for(build, name, norm):
    one, seven = build(name, norm).cost(5), build(name, norm, draws=7).cost(5)
    assert seven.backwards == 7 * one.backwards
    assert seven.forwards == 7 * one.forwards


@pytest.mark.parametrize(("name", "norm"), RAND)
def test_cards_for_random_models_average_twenty_draws_in_one_run(build, name, norm):
    attack = build(name, norm)
    assert (attack.draws, attack.restarts(), attack.targets(10)) == (20, 1, 0)
    assert attack.cost(10).backwards == 20 * 101
