"""Low-temperature distillation: the labels, the formulas, and a teacher that only answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_vit.cards import Component, Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.defenses.losses.inner import away_from_clean
from robustbench_vit.defenses.losses.ltd import soft_cross_entropy, soft_labels
from robustbench_vit.defenses.recipe import build_recipe, defense_faults
from robustbench_vit.defenses.registry import Batch, build_part, started
from robustbench_vit.defenses.train import train
from robustbench_vit.errors import CardError, InputError, WeightsError
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import save_weights
from tests.defenses.tiny import INNER, batch, kl, probabilities, tiny

CNN = {
    "model": "digits_cnn",
    "model_args": {},
    "defense": "standard",
    "weights": "leaderboards/digits-linf/weights/cnn-standard.safetensors",
}
LTD: dict[str, Any] = {"name": "ltd", **INNER, "objective": "card", "teacher": CNN, "temperature": 3}
TRADES: dict[str, Any] = {**LTD, "name": "ltd-trades", "objective": "kl", "beta": 6}


def bound(workspace: Workspace, fields: dict[str, Any], teacher: nn.Module | None = None) -> Any:
    """The loss, with `teacher` in the place of the one from the file."""
    loss = build_part("loss", Component.model_validate(fields), "card", ("loss",)).bind(workspace, "card")
    if teacher is not None:
        object.__setattr__(loss, "teacher", teacher.eval().requires_grad_(False))
    return loss


def other() -> nn.Module:
    """A teacher for tiny images."""
    model = tiny()
    with torch.no_grad():
        model[1].weight.neg_()
    return model


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(0.5, (0.866813, 0.117310, 0.015876)), (5, (0.401760, 0.328933, 0.269307))],
)
def test_the_worked_out_labels(temperature, expected):
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    labels = soft_labels(nn.Identity(), logits, temperature)
    torch.testing.assert_close(labels, torch.tensor([expected], dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_gradient_is_the_answer_minus_the_labels():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.randn(5, 4, generator=generator, dtype=torch.float64).softmax(1)
    (grad,) = torch.autograd.grad(soft_cross_entropy(z, q).sum(), z)
    torch.testing.assert_close(grad, z.detach().softmax(1) - q)


@pytest.mark.parametrize("objective", ["card", "soft-labels"])
def test_ltd_is_cross_entropy_with_soft_labels_at_the_attacked_images(workspace, objective):
    model, seen, teacher = tiny(), batch(), other()
    loss = bound(workspace, {**LTD, "objective": objective}, teacher)
    z = teacher(seen.x).detach().numpy() / 3
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    if objective == "card":
        attacked = loss.inner(model, seen)
    else:
        attacked = loss.inner(model, seen, lambda *_: lambda logits: -(torch.tensor(q) * logits.log_softmax(1)).sum(1))
        assert not torch.equal(attacked, loss.inner(model, seen))
    p = probabilities(model, attacked)
    assert loss(model, seen).loss.item() == pytest.approx(-np.mean((q * np.log(p)).sum(1)), rel=1e-9)


def test_the_trades_form_adds_the_kl(workspace):
    model, seen, teacher = tiny(), batch(), other()
    loss = bound(workspace, TRADES, teacher)
    labels = soft_labels(teacher, seen.x, 3).numpy()
    p = probabilities(model, seen.x)
    q = probabilities(model, loss.inner(model, seen, away_from_clean))
    expected = -np.mean((labels * np.log(p)).sum(1)) + 6 * kl(p, q).mean()
    assert loss(model, seen).loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fields", [LTD, TRADES], ids=["ltd", "ltd-trades"])
def test_the_teacher_only_answers(workspace, recipe, data, tmp_path: Path, fields):
    teacher = build_model("digits_ic_cnn", num_classes=2)
    digest = save_weights(teacher, tmp_path / "t.safetensors")
    named = {"model": "digits_ic_cnn", "model_args": {"num_classes": 2}, "defense": "standard"}
    card = recipe(loss={**fields, "teacher": {**named, "weights": str(tmp_path / "t.safetensors")}}, epochs=1)
    student = build_model("digits_cnn", num_classes=2)
    running = started(card.loss, student, torch.from_numpy(data.x[:1]))
    assert not running.teacher.training
    assert not any(p.requires_grad for p in running.teacher.parameters())
    before = {key: value.clone() for key, value in running.teacher.state_dict().items()}
    seen = batch()
    images = torch.from_numpy(data.x[:6])
    running(student.train(), Batch(images, seen.y % 2, seen.keys, 5.0)).loss.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in running.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in running.teacher.state_dict().items())  # statistics too
    assert card.relies_on == {"teacher_sha256": digest}
    train(card, student, data, None, tmp_path / "run", 0)


def test_the_teacher_s_weights_are_part_of_the_recipe_s_digest(recipe, tmp_path: Path):
    path = tmp_path / "t.safetensors"
    card = {"loss": {**LTD, "teacher": {**CNN, "weights": str(path)}}}
    digests = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_weights(build_model("digits_cnn"), path)
        digests.append(recipe(**card).digest)
        assert recipe(**card).relies_on == {"teacher_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert digests[0] != digests[1]


def test_loading_a_teacher_leaves_the_global_generator_alone(workspace):
    before = torch.get_rng_state()
    bound(workspace, LTD)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_class_count_is_refused_before_training(recipe, data, tmp_path: Path):
    card = recipe(loss=LTD)
    student = build_model("digits_cnn", num_classes=2).train()
    weights = [p.clone() for p in student.parameters()]
    with pytest.raises(InputError, match="the teacher tells 10 classes apart and the model 2; name a teacher that was"):
        train(card, student, data, None, tmp_path, 0)
    assert student.training
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), weights, strict=True))
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_teacher_for_other_images_is_refused(workspace):
    running = bound(workspace, LTD)
    with pytest.raises(InputError, match="DigitsCNN doesn't take images of shape 3×8×8"):
        started(running, nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), torch.zeros(1, 3, 8, 8))


def test_weights_of_another_model_are_refused(card, workspace):
    wrong = {**LTD, "teacher": {**CNN, "weights": "leaderboards/digits-linf/weights/vit-standard.safetensors"}}
    with pytest.raises(WeightsError, match="weights of another model than this DigitsCNN"):
        build_recipe(card(loss=wrong), workspace)


def test_a_user_s_teacher_comes_before_a_built_in_one(tmp_path: Path, card):
    path = tmp_path / CNN["weights"]
    path.parent.mkdir(parents=True)
    digest = save_weights(build_model("digits_cnn"), path)
    layered = Workspace((builtin_layer(), tmp_path))
    assert build_recipe(card(loss=LTD), layered).relies_on == {"teacher_sha256": digest}


FAULTS = [
    ({"temperature": 0}, "field 'loss.temperature': should be greater than 0"),
    ({"temperature": -1}, "field 'loss.temperature': should be greater than 0, got -1"),
    ({"temperature": None}, "missing field 'loss.temperature'; a card states every setting"),
    (
        {"teacher": {**CNN, "weights": "nowhere.safetensors"}},
        "field 'loss.teacher.weights': no weights file at nowhere.safetensors in the workspace;"
        " `rbvit train standard --model digits_cnn` makes one",
    ),
    (
        {"teacher": {**CNN, "model": "digits_cn"}},
        "field 'loss.teacher.model': unknown model 'digits_cn'; did you mean 'digits_cnn'?",
    ),
    (
        {"teacher": {**CNN, "defense": "standrad"}},
        "field 'loss.teacher.defense': unknown defense 'standrad'; did you mean 'standard'?",
    ),
    ({"objective": "kl"}, "field 'loss.objective': should be 'card' or 'soft-labels', got 'kl'"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTS)
def test_faults_are_named(card, workspace, changes, fault):
    fields = {key: value for key, value in {**LTD, **changes}.items() if value is not None}
    loaded = card(loss=fields)
    assert defense_faults(loaded, workspace) == [f"defenses/test.yaml: {fault}"]
    with pytest.raises(CardError):
        build_recipe(loaded, workspace)


@pytest.mark.parametrize("fields", [LTD, TRADES], ids=["ltd", "ltd-trades"])
def test_in_mixed_precision_a_loss_is_close_and_in_float32(workspace, fields):
    model, seen, loss = tiny().float(), batch(), bound(workspace, fields, other().float())
    seen = Batch(seen.x.float(), seen.y, seen.keys, seen.epochs_done)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(model, seen).loss
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(loss(model, seen).loss.item(), rel=0.05)
