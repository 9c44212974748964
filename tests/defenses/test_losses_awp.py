"""Adversarial weight perturbation: where it moves weights to, and that it leaves them where they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_vit.cards import Component
from robustbench_vit.defenses.losses.awp import Moved, worse_weights
from robustbench_vit.defenses.registry import LossValue, build_part, started
from robustbench_vit.errors import CardError
from tests.defenses.tiny import INNER, LOSSES, batch, tiny

AWP = {"gamma": 0.05, "from_epoch": 0}


def awp(workspace, name: str, **changes):
    """The loss `name` at perturbed weights."""
    of = {"name": name, **LOSSES[name]}
    component = Component.model_validate({"name": "awp", **AWP, "of": of, **changes})
    return build_part("loss", component, "card", ("loss",)).bind(workspace, "card")


@pytest.mark.parametrize("name", LOSSES)
def test_around_any_loss_the_gradient_is_that_at_the_moved_weights(workspace, name):
    """By hand, on a copy: attack, move each weight by γ‖w‖ along the gradient, take the gradient there."""
    model, seen, loss = tiny(), batch(), awp(workspace, name)
    rest = loss.of.prepare(model, seen)
    by_hand = tiny()
    rest(by_hand).loss.backward()
    plain = {key: p.grad.clone() for key, p in by_hand.named_parameters()}
    with torch.no_grad():
        for key, p in by_hand.named_parameters():
            if key.endswith("weight"):
                p.add_(0.05 * p.norm() * p.grad / p.grad.norm())
    by_hand.zero_grad()
    expected = rest(by_hand)
    expected.loss.backward()

    before = [p.clone() for p in model.parameters()]
    value = loss(model, seen)
    value.loss.backward()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    torch.testing.assert_close(value.loss, expected.loss)
    assert value.loss.item() > rest(model).loss.item()
    for (key, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        assert not torch.allclose(p.grad, plain[key])


def test_before_its_epoch_it_is_the_loss_alone(workspace):
    model, seen = tiny(), batch()  # five epochs are done
    alone = awp(workspace, "pgd-at", from_epoch=5.1)
    assert alone(model, seen).loss.item() == alone.of(model, seen).loss.item()
    assert awp(workspace, "pgd-at", from_epoch=5)(model, seen).loss.item() != alone.of(model, seen).loss.item()


def test_only_matrices_and_kernels_move():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double().train()
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 4, 4, dtype=torch.float64)))
    seen = batch()

    def rest(moved):
        return LossValue(nn.functional.cross_entropy(moved(seen.x), seen.y), torch.tensor(0), None)

    steps = worse_weights(rest, model, 0.01)
    assert set(steps) == {"0.weight", "3.weight"}
    for name, step in steps.items():
        assert step.norm().item() == pytest.approx(0.01 * model.get_parameter(name).norm().item())


def test_batch_statistics_see_a_batch_once(workspace):
    def net():
        return nn.Sequential(nn.BatchNorm2d(1), *tiny()).double().train()

    once, model, seen = net(), net(), batch()
    loss = awp(workspace, "cross-entropy")
    loss.of(once, seen)
    loss(model, seen)
    assert model[0].num_batches_tracked == once[0].num_batches_tracked == 1
    assert torch.equal(model[0].running_mean, once[0].running_mean)
    assert torch.equal(model[0].running_var, once[0].running_var)


def test_a_moved_model_without_steps_is_the_model():
    model, x = tiny(), batch().x
    assert torch.equal(Moved(model, {})(x), model(x))


def test_it_remembers_what_its_loss_remembers(workspace):
    model, seen = tiny(), batch()
    running = started(awp(workspace, "fast-at"), model, seen.x[:1])
    running(model, seen)
    assert running.state()["steps"] == 1
    again = started(awp(workspace, "fast-at"), model, seen.x[:1])
    again.restore(running.state())
    assert again.state() == running.state()


FAULTS = [
    ({"gamma": 0}, ["card: field 'loss.gamma': should be greater than 0"]),
    (
        {"of": {"name": "awp", **AWP, "of": {"name": "pgd-at"}}},
        ["card: field 'loss.of.name': awp goes around another loss, not around itself"],
    ),
    (
        {"of": {"name": "pgd-at", **INNER, "attack": "pgd-10-trian"}},
        ["card: field 'loss.of.attack': unknown attack 'pgd-10-trian'; did you mean 'pgd-10-train'?"],
    ),
    (
        {"of": {"name": "trades", **INNER, "objective": "kl", "bta": 6}},
        [
            "card: missing field 'loss.of.beta'; a card states every setting",
            "card: unknown field 'loss.of.bta'; did you mean 'beta'?",
        ],
    ),
    (
        {"of": {"name": "pgd-at", **INNER, "eps": 8}},
        ["card: field 'loss.of.eps': 8 is larger than the whole range of a pixel in [0, 1]; did you mean 8/255?"],
    ),
]


@pytest.mark.parametrize(("changes", "faults"), FAULTS)
def test_faults_name_the_inner_field(workspace, changes, faults):
    with pytest.raises(CardError) as caught:
        awp(workspace, "pgd-at", **changes)
    assert caught.value.faults == faults
