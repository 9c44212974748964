"""Losses, schedules, optimisers, augmentation and the weight average, each against what it states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_vit.attacks.noise import row_key
from robustbench_vit.attacks.registry import build_attack
from robustbench_vit.attacks.rows import Access, Oracles, Start
from robustbench_vit.defenses.augment import Shift
from robustbench_vit.defenses.losses import CrossEntropy, PGDAdversarialTraining, perturb
from robustbench_vit.defenses.optimisers import SGD, AdamW
from robustbench_vit.defenses.registry import Batch
from robustbench_vit.defenses.schedules import Cosine, Step
from robustbench_vit.defenses.weight_average import WeightAverage
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.models.build import build_model
from tests.defenses.conftest import PGD_AT


def batch(rows: int = 6, epochs_done: float = 5.0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    keys = torch.tensor([row_key(0, str(i), "train", 0, 0) for i in range(rows)])
    x = torch.rand((rows, 1, 8, 8), generator=generator)
    return Batch(x, torch.arange(rows) % 10, lambda: keys, epochs_done)


def settings(**changes) -> PGDAdversarialTraining:
    return PGDAdversarialTraining(**{**{k: v for k, v in PGD_AT.items() if k != "name"}, **changes})


def model(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(build_model("digits_cnn"), nn.Dropout(dropout)).train()


def test_cross_entropy_is_the_usual_one_and_counts_what_is_right():
    net, seen = model(), batch()
    value = CrossEntropy(label_smoothing=0.1)(net, seen)
    logits = net(seen.x)
    assert value.loss.item() == pytest.approx(F.cross_entropy(logits, seen.y, label_smoothing=0.1).item())
    assert value.clean_correct == int((logits.argmax(1) == seen.y).sum())
    assert value.robust_correct is None


def test_the_inner_attack_stays_in_the_ball_and_the_box_and_raises_the_loss(workspace):
    net, seen = model().eval(), batch()
    attack = build_attack(workspace.attack("pgd-10-train"), "linf")
    x = perturb(attack, net, seen, 0.1)
    assert (x - seen.x).abs().max() <= 0.1 + 1e-6
    assert x.min() >= 0
    assert x.max() <= 1
    assert F.cross_entropy(net(x), seen.y) > F.cross_entropy(net(seen.x), seen.y)
    assert not x.requires_grad


def test_the_inner_attack_does_not_depend_on_the_global_generator_or_the_batch(workspace):
    net, seen = model().eval(), batch(16)
    attack = build_attack(workspace.attack("pgd-10-train"), "linf")
    whole = perturb(attack, net, seen, 0.1)
    torch.rand(3)
    assert torch.equal(perturb(attack, net, seen, 0.1), whole)
    half = Batch(seen.x[:8], seen.y[:8], lambda: seen.noise.keys[:8], 0.0)
    assert torch.equal(perturb(attack, net, half, 0.1), whole[:8])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_inner_attack_is_the_one_that_evaluations_run(workspace, norm):
    net, seen = model().eval(), batch(8)
    attack = build_attack(workspace.attack("pgd-10-train"), norm)
    oracle = Oracle(net)
    oracle.count(8)
    untargeted, first = torch.full_like(seen.y, -1), torch.zeros_like(seen.y)
    state = attack.init(Start(seen.x, seen.y, untargeted, torch.full((8,), 0.3), first), seen.noise)
    for _ in range(attack.steps):
        state = attack.step(state, Oracles(oracle.view(Access.GRADIENT)), seen.noise)
    assert torch.equal(perturb(attack, net, seen, 0.3), state.x)


def test_keys_are_hashed_for_losses_that_draw_only(workspace):
    asked = []
    seen = batch()
    watched = Batch(seen.x, seen.y, lambda: asked.append(1) or seen.keys(), 0.0)
    CrossEntropy(label_smoothing=0.0)(model(), watched)
    assert asked == []
    settings().bind(workspace, "card")(model(), watched)
    assert asked == [1]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_is_attacked_in_the_stated_mode_and_trained_in_train_mode(workspace, mode):
    net, modes = model(), []
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    settings(mode=mode).bind(workspace, "card")(net, batch())
    attacked, clean, trained = modes[:10], modes[10], modes[11:]
    assert attacked == [mode == "train"] * 10
    assert clean is False
    assert trained == [True]
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_the_adversarial_loss_is_that_of_the_last_point(workspace):
    net, seen = model(), batch()
    loss = settings().bind(workspace, "card")
    value = loss(net, seen)
    x = perturb(loss.inner.attack, net.eval(), seen, 0.1)
    assert value.loss.item() == pytest.approx(F.cross_entropy(net(x), seen.y).item(), abs=1e-6)
    value.loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_eps_grows_linearly():
    loss = settings(eps=0.2, eps_warmup_epochs=10)
    assert [loss.radius(t) for t in (0, 5, 10, 20)] == [0, 0.1, 0.2, 0.2]
    assert settings(eps=0.2, eps_warmup_epochs=0).radius(0) == 0.2


def test_schedules():
    cosine = Cosine(warmup_epochs=2, final_factor=0.1)
    assert [cosine.at(t, 12) for t in (1, 2, 7, 12)] == pytest.approx([0.5, 1, 0.55, 0.1])
    step = Step(warmup_epochs=1, milestones=[3, 5], factor=0.1)
    assert [step.at(t, 6) for t in (0.5, 1, 2.9, 3, 5.5)] == pytest.approx([0.5, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    "optimiser",
    [
        SGD(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5),
        AdamW(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5),
    ],
    ids=["sgd", "adamw"],
)
def test_weight_decay_leaves_biases_alone(optimiser):
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.fill_(1.0)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.build(layer).step()
    assert torch.allclose(layer.weight, torch.full((2, 2), 0.95))
    assert torch.equal(layer.bias, torch.ones(2))


def test_shifts_move_whole_images_and_bring_in_zeros():
    x = torch.rand((200, 2, 5, 4), generator=torch.Generator().manual_seed(0)) + 0.1
    y = Shift(pixels=1)(x, torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    padded = F.pad(x, [1] * 4)
    moves = []
    for before, after in zip(padded, y, strict=True):
        hits = [(r, c) for r in range(3) for c in range(3) if torch.equal(before[:, r : r + 5, c : c + 4], after)]
        assert len(hits) == 1
        moves += hits
    assert len(set(moves)) == 9
    assert torch.equal(Shift(pixels=1)(x, torch.Generator().manual_seed(1)), y)


def test_the_weight_average_starts_quickly_and_then_decays():
    net = nn.BatchNorm1d(1)
    average = WeightAverage(net, 0.9)
    with torch.no_grad():
        net.weight.fill_(2.0), net.num_batches_tracked.fill_(7)
    average.update(net, 1)
    assert average.model.weight.item() == pytest.approx(1 + 9 / 11)
    assert average.model.num_batches_tracked.item() == 7
    average.update(net, 10_000)
    assert average.model.weight.item() == pytest.approx(2 - 0.9 * 2 / 11)
    assert not average.model.training
