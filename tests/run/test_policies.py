"""From intake to the attack that runs and to what is said of the number: honest, random, non-differentiable models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.boards.summary import summary, summary_lines
from robustbench_vit.errors import ModelError
from robustbench_vit.records import Evidence, Record


class Net(nn.Module):
    """Untrained; small answers, so that few samples are far from a boundary."""

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 32), nn.ReLU())
        self.head = nn.Linear(32, classes)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Rounded(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.round(x * 8) / 8)


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = Net()(X).argmax(1)


def evaluate(model: nn.Module, **over: object) -> Record:
    return rbv.evaluate(model.eval(), X, Y, "autoattack", "linf", 0.02, **over)  # type: ignore[arg-type]


def test_a_random_model_that_is_not_declared_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Declare what is random \(randomness='…' in evaluate") as caught:
        evaluate(Noisy())
    assert [f.check for f in caught.value.findings if f.level == "refuse"] == ["randomness"]


def test_a_declared_random_model_is_attacked_by_the_rand_version() -> None:
    record = evaluate(Noisy(), randomness="noise on the input")
    assert (record.policy, record.ran_as("autoattack")) == ("B", "autoattack-rand")
    assert record.lanes("autoattack") == ["apgd-ce-rand", "apgd-dlr-rand"]
    lines = summary_lines(record, "autoattack")
    assert "autoattack-rand ran in the place of autoattack" in lines
    assert any(line.startswith("  by majority of draws") for line in lines)
    assert summary(record, "autoattack")["curve"][0]["by_majority"] >= record.robust_accuracy


def test_a_model_without_a_gradient_is_attacked_by_scores_and_decisions_and_flagged() -> None:
    record = evaluate(Rounded())
    assert (record.policy, record.lanes("autoattack")) == ("C", ["square", "rays"])
    assert sum(o.backwards for o in record.outcomes) == 0
    assert record.reliability is not None
    assert record.reliability.evidence is Evidence.STRONG
    lines = summary_lines(record, "autoattack")
    assert "black-box ran in the place of autoattack" in lines
    assert any(line.startswith("    advice: ") for line in lines)


def test_an_honest_model_is_attacked_by_the_card_itself_and_judged() -> None:
    record = evaluate(Net())
    assert (record.policy, record.ran_as("autoattack")) == ("A", "autoattack")
    assert record.reliability is not None
    assert record.reliability.evidence is Evidence.NONE
    assert {f.check for f in record.findings if f.level == "pass"} >= {"randomness", "rows", "gradients"}


def test_reliability_can_be_left_out() -> None:
    record = rbv.evaluate(Net().eval(), X, Y, "fgsm", "linf", 0.02, reliability=False)
    assert record.reliability is None


def test_what_transfers_from_a_surrogate_is_tried() -> None:
    record = rbv.evaluate(Net().eval(), X, Y, "fgsm", "linf", 0.02, surrogate=Net().eval())
    assert record.reliability is not None
    assert "transfer" in {reason.check for reason in record.reliability.reasons}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("shape", "classes", "n"),
    [((1, 8, 8), 2, 1), ((1, 6, 9), 3, 3), ((3, 12, 7), 4, 2), ((1, 8, 8), 7, 3), ((3, 8, 8), 1000, 1)],
)
@pytest.mark.parametrize("attack", ["autoattack", "autoattack-plus"])
def test_few_and_many_classes_and_any_shape_work(attack: str, shape: tuple, classes: int, n: int, norm: str) -> None:
    if classes == 1000 and attack == "autoattack-plus":
        pytest.skip("untargeted FAB asks for 999 gradients a step; tests/attacks/test_fab.py covers it")
    model = Net(shape, classes).eval()
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(2))
    record = rbv.evaluate(
        model, x, model(x).argmax(1), attack, norm, {"linf": 0.6, "l2": 4.0, "l1": 25.0}[norm], smoke=True
    )
    assert record.verdicts.count("robust") < n
    assert record.clean_accuracy == 1


def test_a_smoke_profile_is_not_called_autoattack() -> None:
    record = rbv.evaluate(Net().eval(), X, Y, "autoattack", "linf", 0.02, smoke=True)
    assert record.custom("autoattack")
