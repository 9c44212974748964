"""The user's model after an evaluation is the one before it, whatever happened in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.cards import open_workspace
from robustbench_vit.errors import ModelError


class Mine(nn.Module):
    """A model with everything that could be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 36, 10)
        self.calls = 0
        self.fail_at: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of luck")
        return self.head(self.features(x).flatten(1))


@pytest.fixture
def model() -> Mine:
    torch.manual_seed(0)
    made = Mine().eval()
    made.features[0].requires_grad_(False)
    made.head.bias.requires_grad_(False)
    made.head.weight.grad = torch.ones_like(made.head.weight)
    made.head.register_forward_hook(lambda module, args, output: None)
    made.features.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    made.features[1].register_forward_pre_hook(lambda module, args: None)
    return made


def snapshot(model: Mine) -> dict[str, Any]:
    """All there is to see of a model, and of torch's global state."""
    return {
        "mode": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "identity": {name: id(p) for name, p in model.named_parameters()},
        "device": {name: (p.device, p.dtype, p.is_leaf) for name, p in model.named_parameters()},
        "bits": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "grad": {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in model.named_parameters()},
        "hooks": {name: hooks(module) for name, module in model.named_modules()},
        "generator": torch.get_rng_state().numpy().tobytes(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    }


def hooks(module: nn.Module) -> list[list[int]]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [list(getattr(module, kind)) for kind in kinds]


Evaluate = Callable[..., Any]


@pytest.fixture
def evaluate(model: Mine, cards: Path) -> Evaluate:
    """Evaluates the model under the shortened cascade, on samples of which some are classified correctly."""
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::6] = (y[::6] + 1) % 10
    model.calls = 0

    def run(**named: Any) -> Any:
        return rbv.evaluate(model, x, y, "short", eps=0.05, workspace=open_workspace(cards), **named)

    return run


def test_the_snapshot_sees_what_could_change(model: Mine) -> None:
    before = snapshot(model)
    changes: dict[str, Callable[[], Any]] = {
        "mode": lambda: model.features[3].train(),
        "requires_grad": lambda: model.head.requires_grad_(True),
        "bits": lambda: model.features[1].get_buffer("running_mean").add_(1),
        "grad": lambda: model.zero_grad(),
        "hooks": lambda: model.head.register_forward_hook(lambda *_: None),
        "generator": lambda: torch.rand(1),
    }
    for what, change in changes.items():
        change()
        assert [key for key, value in snapshot(model).items() if value != before[key]] == [what]
        before = snapshot(model)


def test_after_an_evaluation(model: Mine, evaluate: Evaluate) -> None:
    before = snapshot(model)
    record = evaluate()
    assert {"misclassified", "robust"} < {*record.verdicts}
    assert model.calls > 100
    assert snapshot(model) == before


def test_after_a_resumed_evaluation(model: Mine, evaluate: Evaluate, tmp_path: Path) -> None:
    before = snapshot(model)
    first = evaluate(out=tmp_path)
    model.calls = 0
    again = evaluate(out=tmp_path)
    assert 0 < model.calls < 40, "only intake asks"
    assert again.outcomes == first.outcomes
    assert snapshot(model) == before


@pytest.mark.parametrize("call", [1, 2, 10, 60])
def test_when_the_model_fails(model: Mine, evaluate: Evaluate, call: int) -> None:
    """The exception, and with it every frame of the evaluation, is alive while the model is looked at."""
    before = snapshot(model)
    model.fail_at = call
    with pytest.raises((RuntimeError, ModelError), match="out of luck") as caught:
        evaluate()
    assert caught.value is not None
    assert model.calls == call
    assert snapshot(model) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_when_the_watcher_fails(model: Mine, evaluate: Evaluate, error: type[BaseException]) -> None:
    before = snapshot(model)
    batches = []

    def watch(batch: Any, progress: Any) -> None:
        batches.append(batch)
        if len(batches) == 5:
            raise error("stop")

    with pytest.raises(error) as caught:
        evaluate(watch=watch)
    assert caught.value is not None
    assert model.calls > 3
    assert snapshot(model) == before


def test_when_intake_refuses(model: Mine, evaluate: Evaluate) -> None:
    model.features[3].train()
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"^the model is in train mode \(features\.3: Dropout\)"):
        evaluate()
    assert snapshot(model) == before


def test_other_numbers_in_the_normalisation_are_another_model(cards: Path, tmp_path: Path) -> None:
    """Mean and std are in no checkpoint, and still a journal must not mix their rows up."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = inner(x).argmax(1)

    def evaluated(std: float, out: Path | None) -> tuple[Any, ...]:
        model = rbv.normalised(inner, [0.2], [std])
        record = rbv.evaluate(model, x, y, "short-apgd", eps=0.05, workspace=open_workspace(cards), out=out)
        return record.outcomes

    assert evaluated(0.3, None) != evaluated(0.9, None)
    assert evaluated(0.3, tmp_path) == evaluated(0.3, None)
    assert evaluated(0.9, tmp_path) == evaluated(0.9, None)
