"""Random models, rows that interact, missing gradients, canaries; and that intake leaves no trace."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_vit.engine.intake import CLEAN, Declared, Intake, intake
from robustbench_vit.engine.intake.accuracy import at_chance, mcnemar
from robustbench_vit.engine.intake.asking import reseed, spread_out
from robustbench_vit.errors import InputError, ModelError
from robustbench_vit.models.ic_layer import IC
from robustbench_vit.records import Finding

NOISE = Declared(randomness="gaussian noise on the logits")


def small_net(channels: int = 1, pixels: int = 20, classes: int = 3, *inside: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        last = nn.Linear(12, classes)
        model = nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels, 12), *inside, nn.ReLU(), last).eval()
        with torch.no_grad():
            last.weight *= 5
            last.bias -= model(torch.rand(200, channels * pixels)).mean(0)
        return model


NET = small_net()
X = torch.rand(40, 1, 4, 5, generator=torch.Generator().manual_seed(0))
Y = NET(X).argmax(1)


def levels(seen: Intake) -> dict[str, str]:
    return {f.check: f.level for f in seen.findings if f.level != "pass"}


def finding(seen: Intake | ModelError, check: str) -> Finding:
    return next(f for f in seen.findings if f.check == check)


def refused(model: Any, declared: Declared | None = None, x: Tensor = X, y: Tensor = Y) -> list[Finding]:
    with pytest.raises(ModelError) as caught:
        intake(model, x, y, declared)
    return [f for f in caught.value.findings if f.level == "refuse"]


def noisy(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: NET(x) + scale * torch.randn(len(x), 3)


def test_the_example_decides_for_every_class():
    assert Y.bincount().min() >= 5


def own_generator() -> Callable[[Tensor], Tensor]:
    own = torch.Generator().manual_seed(1)
    return lambda x: NET(x) + 0.1 * torch.randn(len(x), 3, generator=own)


@pytest.mark.parametrize(
    "model",
    [
        noisy(0.1),
        own_generator(),
        lambda x: NET(x) + np.random.normal(),
        lambda x: NET((x + torch.rand_like(x)).clamp(0, 1)),
    ],
)
def test_undeclared_randomness_is_refused(model):
    (found,) = refused(model)
    assert found.check == "randomness"
    assert "the model answers at random: 3 calls for the same 16 images gave logits up to" in found.message
    assert "randomness='…' in evaluate, `randomness:` on the card" in found.message


def test_declared_randomness_gives_policy_b():
    seen = intake(noisy(0.1), X, Y, NOISE)
    assert (levels(seen), seen.policy) == ({}, "B")
    assert finding(seen, "randomness").message.startswith("declared random (gaussian noise on the logits): 5 calls")
    seen = intake(own_generator(), X, Y, NOISE)
    assert (levels(seen), seen.policy) == ({"rows": "warn"}, "B")


def test_randomness_that_is_declared_and_never_seen():
    seen = intake(NET, X, Y, NOISE)
    assert (levels(seen), seen.policy) == ({"randomness": "warn"}, "B")
    assert "is that part switched off? else drop `randomness`" in finding(seen, "randomness").message


def test_rounding_of_kernels_is_no_randomness():
    seen = intake(noisy(1e-7), X, Y)
    assert (levels(seen), seen.policy) == ({"randomness": "warn"}, "A")
    assert "rounding of non-deterministic kernels" in finding(seen, "randomness").message


@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: NET(x - x.mean(0)),
        lambda x: NET(x) / NET(x).std(),
        lambda x: NET(x) + 0.01 * NET(x).roll(1, 0),
        lambda x: NET(x) + 0.01 * NET(x).sort(0).values,
    ],
    ids=["mean", "deviation", "neighbour", "order"],
)
def test_rows_that_interact_are_refused(model, n):
    (found,) = refused(model, x=X[:n], y=Y[:n])
    assert found.check == "rows"
    assert "rows interact: with other images in its batch the logits of an image move by up to" in found.message


def test_rows_that_interact_are_told_from_randomness():
    assert intake(lambda x: noisy(0.1)(x) + torch.randn(3), X, Y, NOISE).policy == "B"
    (found,) = refused(lambda x: noisy(0.1)(x - x.mean(0)), NOISE)
    assert found.check == "rows"


def test_batch_statistics_in_eval_mode_are_found_by_structure_and_behaviour():
    (found,) = refused(small_net(1, 20, 3, nn.BatchNorm1d(12, track_running_stats=False)))
    assert "(2: BatchNorm without running statistics)" in found.message
    functional = lambda x: NET(nn.functional.batch_norm(x, None, None, training=True))  # noqa: E731
    assert [f.check for f in refused(functional)] == ["rows"]
    unused = small_net()
    unused.register_module("unused", nn.BatchNorm1d(3, track_running_stats=False))
    unused.eval().forward = lambda x: NET(x)  # type: ignore[method-assign]
    assert levels(intake(unused, X, Y)) == {"rows": "warn"}


def test_running_statistics_and_normalisation_of_single_images_are_fine():
    for layer in (nn.BatchNorm1d(12), nn.LayerNorm(12), nn.Dropout(0.5), IC(12, 0.5)):
        model = small_net(1, 20, 3, layer)
        assert levels(intake(model, X, model(X).argmax(1))) == {}
    instances = lambda x: NET(nn.functional.instance_norm(x))  # noqa: E731
    assert levels(intake(instances, X, instances(X).argmax(1))) == {}


@pytest.mark.parametrize(("layer", "named"), [(IC(12, 0.1), "2: IC"), (nn.Dropout(0.1), "2: Dropout")])
def test_layers_in_train_mode_are_named(layer, named):
    model = small_net(1, 20, 3, layer).eval()
    layer.train()
    (found,) = refused(model)
    assert found.message.startswith(f"the model is in train mode ({named}): dropout and batch statistics would be on")


def test_a_model_that_writes_into_its_input():
    (found,) = refused(lambda x: NET(x.mul_(0.5)))
    assert found.check == "input-untouched"
    assert "changes its input in place (16 of 16 images by up to" in found.message


def test_a_model_that_counts():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("asked", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("asked").add_(len(x))
            return NET(x)

    seen = intake(Counting().eval(), X, Y)
    assert levels(seen) == {"stateless": "warn"}
    assert "the model's own tensors (asked)" in finding(seen, "stateless").message


def hard(x: Tensor) -> Tensor:
    with torch.no_grad():
        return NET(x)


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()


BLIND = {
    "detached": (lambda x: NET(x.detach()), "no gradient reaches the input"),
    "no_grad": (hard, "no gradient reaches the input"),
    "numpy": (lambda x: NET(torch.from_numpy(x.numpy().copy())), "autograd fails on the model (Can't call numpy()"),
    "no backward": (lambda x: NET(NoBackward.apply(x)), "autograd fails on the model (You must implement"),
    "quantised": (lambda x: NET((x * 15).round() / 15), "the gradient is exactly 0 on 16 and not finite on 0 of 16"),
    "NaN": (lambda x: NET((x - x.detach()).sqrt() + x), "the gradient is exactly 0 on 0 and not finite on 16 of 16"),
}


@pytest.mark.parametrize("case", BLIND)
def test_models_without_a_useful_gradient_get_policy_c(case):
    model, message = BLIND[case]
    y = model(X).argmax(1)
    for declared in (None, NOISE):
        seen = intake(model, X, y, declared)
        assert finding(seen, "gradients").level == "warn"
        assert finding(seen, "gradients").message.startswith(message)
        assert "Attacks by scores and decisions run instead (policy C)" in finding(seen, "gradients").message
        assert seen.policy == "C"


def test_some_images_without_a_gradient_are_a_warning():
    def model(x: Tensor) -> Tensor:
        dark = (x.mean((1, 2, 3)) < X.mean((1, 2, 3)).median()).view(-1, 1, 1, 1)
        return NET(torch.where(dark, x.detach(), x))

    seen = intake(model, X, Y)
    assert (levels(seen), seen.policy) == ({"gradients": "warn"}, "A")
    assert "gradient attacks are blind there" in finding(seen, "gradients").message


def test_saturated_logits_have_a_gradient():
    """Of the margin; the cross-entropy's is 0 in float32."""
    assert levels(intake(lambda x: 1e6 * NET(x), X, Y)) == {}


def test_an_error_that_is_not_about_gradients_comes_through():
    def model(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return NET(x)

    with pytest.raises(RuntimeError, match="out of memory"):
        intake(model, X, Y)


def test_a_model_at_chance_is_legal():
    seen = intake(NET, X, (Y + 1) % 3)
    assert levels(seen)["clean-accuracy"] == "warn"
    assert (
        "0 of 40 clean samples are classified correctly (0.0%; guessing among 3 classes gives 33.3%)"
        in finding(seen, "clean-accuracy").message
    )
    assert "clean-accuracy" in levels(intake(lambda x: NET(x) * 0, X, Y))


def test_canaries():
    y = Y.clone()
    y[:4] = (y[:4] + 1) % 3  # 90 % of 40
    for stated, whole, level in [(0.9, 40, "pass"), (0.92, 40, "pass"), (0.94, 40, "refuse"), (0.94, None, "pass")]:
        declared = Declared(clean_accuracy=stated, clean_samples=whole)
        if level == "refuse":
            (found,) = refused(NET, declared, y=y)
            assert found.message == (
                "clean accuracy is 90.00% on 40 samples, stated is 94.00% (tolerance 3.00%): are these the weights and"
                " the preprocessing it was stated for?"
            )
        else:
            assert finding(intake(NET, X, y, declared), "canary").level == level
    (found,) = refused(NET, Declared(clean_accuracy=0.5), y=y)
    assert found.message.endswith("are these other samples (easier ones, or from training), or other weights?")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"clean_accuracy": 71.0}, "clean_accuracy is a share in [0, 1], got 71; write 0.71 for 71 %"),
        ({"clean_accuracy": float("nan")}, "clean_accuracy is a share in [0, 1], got nan; write 0.71 for 71 %"),
        ({"clean_samples": 0}, "clean_samples is at least 1, got 0"),
        ({"randomness": " "}, "randomness is empty; say in words what in the model is random, or leave it out"),
    ],
)
def test_declarations_that_cannot_be(said, message):
    with pytest.raises(InputError) as caught:
        Declared(**said)
    assert str(caught.value) == message


def test_all_samples_are_asked_about_only_for_a_canary():
    x = torch.rand(CLEAN + 100, 1, 4, 5, generator=torch.Generator().manual_seed(3))
    y, asked = NET(x).argmax(1), []

    def model(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return NET(batch)

    intake(model, x, y)
    few = sum(asked)
    assert few <= 16 * 10 + CLEAN, "a model without a mistake leaves no room for other readings"
    seen = intake(model, x, y, Declared(clean_accuracy=1.0))
    assert sum(asked) - few >= few + len(x)
    assert "clean accuracy is 100.00% on 356 samples" in finding(seen, "canary").message


@pytest.mark.parametrize("n", [1, 2, 15, 17])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 4, 5), (3, 7, 2), (4, 1, 1)])
def test_few_samples_and_odd_shapes(n, channels, height, width):
    model = small_net(channels, height * width, 2)
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(n))
    for kind in (torch.float32, torch.float64):
        seen = intake(copy.deepcopy(model).to(kind), x.to(kind), model(x).argmax(1))
        assert (levels(seen), seen.policy, seen.clean_correct) == ({}, "A", n)
    assert "clean-accuracy" in levels(intake(model, x, 1 - model(x).argmax(1)))


def test_nothing_is_left_behind():
    model = small_net(1, 20, 3, nn.BatchNorm1d(12), nn.Dropout(0.5))
    model[1].bias.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    x = X.clone()
    torch.set_grad_enabled(True)

    def snapshot() -> tuple[Any, ...]:
        return (
            [module.training for module in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [p.grad for p in model.parameters()],
            [value.numpy().tobytes() for value in model.state_dict().values()],
            list(model._forward_hooks),
            torch.get_rng_state().numpy().tobytes(),
            pickle.dumps((np.random.get_state(), random.getstate())),
            torch.is_grad_enabled(),
            x.numpy().tobytes(),
            torch.backends.cuda.matmul.allow_tf32,
        )

    before = snapshot()
    intake(model, x, Y, Declared(clean_accuracy=float((model(x).argmax(1) == Y).float().mean())))
    assert snapshot() == before
    for random_model in (noisy(1.0), lambda b: NET(b) + np.random.normal() + random.random()):
        with pytest.raises(ModelError) as caught:
            intake(random_model, x, Y)
        assert caught.value is not None
        assert snapshot() == before


def test_findings_survive_the_way_between_processes():
    with pytest.raises(ModelError) as caught:
        intake(small_net().train(), X, Y)
    back = pickle.loads(pickle.dumps(caught.value))
    assert (str(back), back.findings) == (str(caught.value), caught.value.findings)


def test_mcnemar_and_chance():
    assert mcnemar(10, 0) == pytest.approx(2**-10)
    assert mcnemar(9, 1) == pytest.approx(11 * 2**-10)
    assert mcnemar(0, 0) == 1
    assert at_chance(4, 16, 10)
    assert not at_chance(5, 16, 10)
    assert not at_chance(0, 7, 10)


def test_samples_asked_about_are_spread_over_all():
    assert spread_out(1000, 4).tolist() == [0, 250, 500, 750]
    assert spread_out(3, 16).tolist() == [0, 1, 2]


def test_the_draws_of_probes_repeat_without_reaching_other_devices():
    with torch.random.fork_rng():
        reseed(torch.device("cpu"))
        first = torch.rand(3), np.random.rand(), random.random()
        reseed(torch.device("cpu"))
        again = torch.rand(3), np.random.rand(), random.random()
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
