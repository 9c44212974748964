"""Each training loss against its formula written out by hand, and where its gradients flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.attacks.losses import kl_divergence
from robustbench_vit.cards import Component
from robustbench_vit.defenses.losses.gaussian import inconsistency
from robustbench_vit.defenses.losses.inner import away_from_clean
from robustbench_vit.defenses.losses.mart import boosted_cross_entropy
from robustbench_vit.defenses.registry import Batch, build_part
from tests.defenses.tiny import LOSSES, batch, kl, probabilities, tiny


@pytest.fixture
def bound(workspace) -> Callable[..., Any]:
    """From a loss's name and changed settings to the loss."""

    def make(name: str, **changes: Any) -> Any:
        component = Component.model_validate({"name": name, **LOSSES[name], **changes})
        return build_part("loss", component, "card", ("loss",)).bind(workspace, "card")

    return make


def cross_entropy(p: np.ndarray, y: Tensor) -> float:
    return -float(np.mean([math.log(row[k]) for row, k in zip(p, y, strict=True)]))


def test_trades_is_cross_entropy_plus_beta_kl(bound):
    model, seen, loss = tiny(), batch(), bound("trades")
    value = loss(model, seen)
    attacked = loss.inner(model, seen, away_from_clean)
    p, q = probabilities(model, seen.x), probabilities(model, attacked)
    assert value.loss.item() == pytest.approx(cross_entropy(p, seen.y) + 6 * kl(p, q).mean(), rel=1e-9)
    assert value.clean_correct == (p.argmax(1) == seen.y.numpy()).sum()
    assert value.robust_correct == (q.argmax(1) == seen.y.numpy()).sum()


def test_the_inner_attack_of_trades_steps_along_the_kl_from_the_clean_answer(bound):
    model, seen = tiny(), batch()
    x = (seen.x + 0.2 * (2 * seen.noise.uniform((1, 2, 2), 0).double() - 1)).clamp(0, 1)
    p = model(seen.x).detach().softmax(1)
    for _ in range(10):
        at = x.requires_grad_()
        divergence = (p * (p.log() - model(at).log_softmax(1))).sum()
        stepped = (x + 0.05 * torch.autograd.grad(divergence, at)[0].sign()).detach()
        x = torch.minimum(torch.maximum(stepped, seen.x - 0.2), seen.x + 0.2).clamp(0, 1)
    torch.testing.assert_close(bound("trades").inner(model, seen, away_from_clean), x)


def test_trades_takes_the_attack_card_s_own_loss_by_name(bound):
    model, seen = tiny(), batch()
    attacked = bound("pgd-at").inner(model, seen)
    p, q = probabilities(model, seen.x), probabilities(model, attacked)
    named = bound("trades", objective="card")(model, seen).loss.item()
    assert named == pytest.approx(cross_entropy(p, seen.y) + 6 * kl(p, q).mean(), rel=1e-9)
    assert named != pytest.approx(bound("trades")(model, seen).loss.item(), rel=1e-3)


def test_mart_is_boosted_cross_entropy_plus_weighted_kl(bound):
    model, seen, loss = tiny(), batch(), bound("mart")
    attacked = loss.inner(model, seen)
    p, q = probabilities(model, seen.x), probabilities(model, attacked)
    expected = []
    for i, y in enumerate(seen.y.tolist()):
        rival = max(q[i, k] for k in range(3) if k != y)
        boosted = -math.log(q[i, y]) - math.log(1 - rival)
        expected.append(boosted + 5 * (1 - p[i, y]) * kl(p, q)[i])
    assert loss(model, seen).loss.item() == pytest.approx(np.mean(expected), rel=1e-9)


def test_boosted_cross_entropy_stays_finite_where_one_class_has_it_all():
    z = torch.tensor([[0.0, 200.0, 0.0], [200.0, 0.0, 0.0]], requires_grad=True)
    value = boosted_cross_entropy(z, torch.tensor([0, 0]))
    torch.testing.assert_close(value[0].item(), 400 - math.log(2))
    assert value[1].item() == pytest.approx(0, abs=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), z)
    assert bool(grad.isfinite().all())


def test_alp_is_half_of_both_cross_entropies_and_the_mean_squared_gap_of_logits(bound):
    model, seen, loss = tiny(), batch(), bound("alp")
    attacked = loss.inner(model, seen)
    p, q = probabilities(model, seen.x), probabilities(model, attacked)
    gap = (model(seen.x) - model(attacked)).detach().numpy()
    expected = 0.5 * cross_entropy(p, seen.y) + 0.5 * cross_entropy(q, seen.y) + 0.7 * np.mean(gap**2)
    assert loss(model, seen).loss.item() == pytest.approx(expected, rel=1e-9)


def test_fast_at_is_cross_entropy_after_one_random_step_of_one_and_a_quarter_eps(bound):
    model, seen, loss = tiny(), batch(), bound("fast-at")
    start = (seen.x + 0.2 * (2 * seen.noise.uniform((1, 2, 2), 0).double() - 1)).clamp(0, 1).requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(start), seen.y), start)
    stepped = (start + 0.25 * grad.sign()).detach()
    attacked = torch.minimum(torch.maximum(stepped, seen.x - 0.2), seen.x + 0.2).clamp(0, 1)
    expected = cross_entropy(probabilities(model, attacked), seen.y)
    assert loss(model, seen).loss.item() == pytest.approx(expected, rel=1e-9)


def test_gaussian_augmentation_is_cross_entropy_under_noise_that_leaves_the_box(bound):
    model, seen, loss = tiny(), batch(600), bound("gaussian-augment")
    noisy = loss.noisy(seen, 0)
    noise = (noisy - seen.x) / 0.25
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert float(noisy.min()) < 0
    assert float(noisy.max()) > 1
    value = loss(model, seen)
    p = probabilities(model, noisy)
    assert value.loss.item() == pytest.approx(cross_entropy(p, seen.y), rel=1e-9)
    assert value.clean_correct == (p.argmax(1) == seen.y.numpy()).sum()
    assert value.robust_correct is None


def test_consistency_adds_the_divergence_of_the_copies_and_the_mean_answer_s_entropy(bound):
    model, seen, loss = tiny(), batch(), bound("consistency")
    copies = [loss.noisy(seen, i) for i in range(3)]
    assert len({float(copy.sum()) for copy in copies}) == 3
    ps = [probabilities(model, copy) for copy in copies]
    mean = np.mean(ps, axis=0)
    expected = (
        np.mean([cross_entropy(p, seen.y) for p in ps])
        + 2 * np.mean([kl(mean, p).mean() for p in ps])
        + 0.5 * np.mean(-(mean * np.log(mean)).sum(1))
    )
    assert loss(model, seen).loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_worked_out_consistency_term():
    logits = torch.tensor([[[2.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]]], dtype=torch.float64)
    assert inconsistency(logits, 2, 0.5).item() == pytest.approx(0.997670, abs=1e-6)


def test_kl_divergence_is_that_from_the_clean_answer():
    z, clean = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.3, -1.0, 2.0]])
    p, q = (v.double().softmax(1).numpy() for v in (clean, z))
    assert kl_divergence(z, clean).item() == pytest.approx(kl(p, q)[0], rel=1e-5)
    assert kl_divergence(z, z).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_detached_but_the_attack(bound, name):
    """The gradient is that of the whole formula at fixed images: a detached branch would be missing from it."""
    model, seen = tiny(), batch()
    rest = bound(name).prepare(model, seen)
    rest(model).loss.backward()
    for weight in (model[1].weight, model[3].bias):
        flat, grad = weight.data.view(-1), weight.grad.view(-1)
        for i in range(0, flat.numel(), 3):
            kept, values = flat[i].item(), []
            for step in (1e-5, -1e-5):
                flat[i] = kept + step
                values.append(rest(model).loss.item())
            flat[i] = kept
            assert grad[i].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7), (name, i)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_leaves_the_mode_and_the_wish_for_gradients_as_they_were(bound, name):
    model, seen = tiny().train(), batch()
    bound(name)(model, seen)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["trades", "mart", "alp"])
def test_clean_and_attacked_images_are_seen_in_train_mode_by_the_loss_and_in_eval_mode_by_the_attack(bound, name):
    model, modes = tiny().train(), []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    bound(name)(model, batch())
    assert modes[-2:] == [True, True]
    assert not any(modes[:-2])
    assert len(modes) == (13 if name == "trades" else 12)


@pytest.mark.parametrize("name", LOSSES)
def test_in_mixed_precision_a_loss_is_close_and_in_float32(bound, name):
    model, seen = tiny().float(), batch()
    seen = Batch(seen.x.float(), seen.y, seen.keys, seen.epochs_done)
    rest = bound(name).prepare(model, seen)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = rest(model).loss
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(rest(model).loss.item(), rel=0.05)
    mixed.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
