"""What is refused before any attack, with its message."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.engine.intake import check_samples, intake
from robustbench_vit.errors import InputError, ModelError

X, Y = torch.rand(20, 1, 4, 4), torch.arange(20) % 3


def net(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, outputs)).eval()


def with_pixel(value: float) -> Tensor:
    x = X.clone()
    x[3, 0, 2, 1] = value
    return x


SAMPLES = {
    "not tensors": (X.numpy(), Y, "x and y are torch tensors, got ndarray and Tensor"),
    "labels in a list": (X, Y.tolist(), "x and y are torch tensors, got Tensor and list"),
    "integers": (
        (X * 255).byte(),
        Y,
        "x has type torch.uint8; expected floats in [0, 1] (for uint8 images: x.float() / 255)",
    ),
    "no channels": (X[:, 0], Y, "x has shape (20, 4, 4); expected (n, channels, height, width) with n ≥ 1"),
    "no images": (X[:0], Y[:0], "x has shape (0, 1, 4, 4); expected (n, channels, height, width) with n ≥ 1"),
    "too few labels": (X, Y[:5], "y has shape (5,); expected one label for each of the 20 images"),
    "one-hot labels": (X, torch.eye(3)[Y], "y has shape (20, 3); expected one label for each of the 20 images"),
    "floating-point labels": (X, Y.float(), "y has type torch.float32; expected integer class numbers (int64)"),
    "truth values": (X, Y > 0, "y has type torch.bool; expected integer class numbers (int64)"),
    "NaN": (with_pixel(float("nan")), Y, "x holds NaN or infinite pixels"),
    "infinite": (with_pixel(float("inf")), Y, "x holds NaN or infinite pixels"),
    "0 to 255": (with_pixel(255.0), Y, "expected pixels in [0, 1] (divide by 255?)"),
    "normalised": (
        with_pixel(-1.5),
        Y,
        "x ranges from -1.5 to 1; expected pixels in [0, 1] (undo the normalisation and use rbv.normalised(model,"
        " mean, std))",
    ),
    "negative label": (X, Y - 1, "y holds the label -1; classes are numbered from 0"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_cannot_be_evaluated(case):
    x, y, message = SAMPLES[case]
    if case == "normalised":
        x[0, 0, 0, 0] = 1.0
    with pytest.raises(InputError) as caught:
        check_samples(x, y)
    assert message in str(caught.value)
    with pytest.raises(InputError) as caught:
        rbv.evaluate(net(), x, y, attack="fgsm")
    assert message in str(caught.value)


@dataclass
class Answer:
    """What Hugging Face models return."""

    logits: Tensor


NET = net()


def probabilities(x: Tensor) -> Tensor:
    return NET(x).softmax(1)


def nan(x: Tensor) -> Tensor:
    return NET(x) / 0


MODELS = {
    "probabilities": (
        probabilities,
        "the model returns probabilities; gradients of saturated ones vanish. Return logits: drop the softmax",
    ),
    "NaN": (nan, "the model returns NaN or infinite logits on clean images"),
    "a tuple": (
        lambda x: (net()(x), x),
        "the model returns a tuple; expected logits (n, classes). Wrap it: lambda x: model(x)[0]",
    ),
    "a dict": (lambda x: {"logit": net()(x)}, "the model returns a dict; expected logits (n, classes)."),
    "nothing": (lambda x: None, "the model returns NoneType for 16 images; expected logits of shape (16, classes)"),
    "one number each": (
        lambda x: net(1)(x)[:, 0],
        "the model returns (16,) for 16 images; expected logits of shape (16, classes)",
    ),
    "rows lost": (
        lambda x: net()(x)[:-1],
        "the model returns (15, 3) for 16 images; expected logits of shape (16, classes)",
    ),
    "decisions": (
        lambda x: net()(x).argmax(1, keepdim=True).expand(-1, 3),
        "the model returns torch.int64; expected floating-point logits, not decisions",
    ),
    "one class": (net(1), "the model has one output; expected logits for at least two classes"),
    "too few classes": (
        net(2),
        "the model has 2 classes, but the labels go up to 2: wrong model or wrong data",
    ),
    "other channels": (
        nn.Conv2d(3, 8, 3).eval(),
        "the model cannot take images of shape (1, 4, 4) (channels, height, width): ",
    ),
    "another size": (
        nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).eval(),
        "the model cannot take images of shape (1, 4, 4) (channels, height, width): ",
    ),
    "train mode": (
        net().train(),
        "the model is in train mode (Sequential, 0, 1): dropout and batch statistics would be on; call model.eval()",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_are_refused(case):
    model, message = MODELS[case]
    with pytest.raises(ModelError) as caught:
        intake(model, X, Y)
    assert message in str(caught.value)
    with pytest.raises(ModelError) as caught:
        rbv.evaluate(model, X, Y, attack="fgsm")
    assert message in str(caught.value)


def test_one_module_left_in_train_mode_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 3)).eval()
    model[1].train()
    with pytest.raises(ModelError, match=r"in train mode \(1: Dropout\)"):
        intake(model, X, Y)


def test_labels_are_looked_at_beyond_the_first_images():
    y = Y.clone()
    y[-1] = 7
    with pytest.raises(ModelError, match="the labels go up to 7"):
        intake(net(), X, y)


def test_a_nan_beyond_the_first_images_stops_the_evaluation():
    """Otherwise an image of class 0 whose logits are all NaN would count as correct, and as robust ever after."""

    def model(x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :3]
        return torch.where((x[:, :1, 3, 3] == 0.123), torch.nan, logits)

    x = X.clone()
    x[18, 0, 3, 3] = 0.123
    with pytest.raises(ModelError, match="returns NaN or infinite logits on clean images"):
        rbv.evaluate(model, x, torch.zeros_like(Y), attack="fgsm")


CHECKS = [
    "eval-mode",
    "logits",
    "finite",
    "classes",
    "not-probabilities",
    "input-untouched",
    "stateless",
    "randomness",
    "rows",
    "gradients",
    "clean-accuracy",
    "labels",
    "normalisation",
    "canary",
]
X_EASY = torch.rand(48, 1, 4, 4, generator=torch.Generator().manual_seed(5))
Y_EASY = NET(X_EASY).argmax(1)


@pytest.mark.parametrize(
    "model", [NET, lambda x: Answer(NET(x)), lambda x: 1000 * NET(x), lambda x: NET(x).log_softmax(1)]
)
def test_models_that_pass(model):
    seen = intake(model, X_EASY, Y_EASY)
    assert [f.check for f in seen.findings] == CHECKS
    assert {f.level for f in seen.findings} == {"pass"}
    assert (seen.policy, seen.clean_correct, seen.clean_asked) == ("A", 48, 48)


def test_a_refusal_carries_all_findings_and_names_every_refusal():
    y = Y_EASY.clone()
    y[0] = 3
    with pytest.raises(ModelError) as caught:
        intake(probabilities, X_EASY, y)
    assert [f.check for f in caught.value.findings if f.level == "refuse"] == ["classes", "not-probabilities"]
    assert [f.check for f in caught.value.findings] == CHECKS[:7]
    assert str(caught.value).splitlines() == [f.message for f in caught.value.findings if f.level == "refuse"]


def test_the_model_is_left_as_it_was():
    model = net()
    model[1].bias.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = len(model._forward_hooks)
    rbv.evaluate(model, X, Y, attack="fgsm", eps=0.1)
    assert not model.training
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert len(model._forward_hooks) == hooks
