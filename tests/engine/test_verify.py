"""The recheck: what lies outside the budget or the box, is not finite or not misclassified never counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field, StrictInt
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.attacks.registry import NormName, algorithms, settings
from robustbench_vit.attacks.rows import Access, Candidates, Cost, Oracles, Start
from robustbench_vit.cards import AlgorithmCard
from robustbench_vit.engine.verify import BATCH, TOLERANCE, Verifier
from robustbench_vit.errors import AttackError
from robustbench_vit.records import Record

CLEAN, EPS = 0.9, 0.2
LIES = {
    "outside the budget": 0.1,  # in the box and misclassified
    "outside the box": 1.05,  # in the budget and misclassified
    "not finite": float("nan"),
    "infinite": float("inf"),
    "not misclassified": 0.8,
    "the clean image": CLEAN,
    "where the model says NaN": 0.75,
}


class Band(nn.Module):
    """Class 0 for images whose mean lies in [0.3, 1.0], class 1 for others, NaN in place of class 1 around 0.75."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        inside = 0.35 - (mean - 0.65).abs()
        outside = torch.where((mean - 0.75).abs() < 0.01, torch.nan, torch.zeros_like(inside))
        return torch.stack([inside, outside], dim=1)


@dataclass(frozen=True)
class LiarState:
    x0: Tensor
    steps_taken: Tensor


Lie = Literal[
    "outside the budget",
    "outside the box",
    "not finite",
    "infinite",
    "not misclassified",
    "the clean image",
    "where the model says NaN",
]


@settings
class Liar:
    """A row attack that claims a success in every step, `honest_at` truly (an image of grey 0.25)."""

    lane: ClassVar[Literal["rows"]] = "rows"
    access: ClassVar[Access] = Access.SCORES
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    algorithm_version: ClassVar[int] = 1
    stop: ClassVar[Literal["first", "exhausted"]] = "first"

    norm: NormName
    lie: Lie
    steps: Annotated[StrictInt, Field(ge=1)]
    honest_at: StrictInt  # the step; 0 for never

    def restarts(self) -> int:
        return 1

    def targets(self, num_classes: int) -> int:
        return 0

    def cost(self, num_classes: int) -> Cost:
        return Cost(self.steps, 0)

    def init(self, start: Start, noise: Any) -> LiarState:
        return LiarState(start.x0, torch.zeros_like(start.y))

    def step(self, state: LiarState, oracles: Oracles, noise: Any) -> LiarState:
        oracles.target.scores(state.x0)
        return LiarState(state.x0, state.steps_taken + 1)

    def finished(self, state: LiarState) -> Tensor:
        return state.steps_taken >= self.steps

    def best(self, state: LiarState) -> Candidates:
        honest = (state.steps_taken == self.honest_at).view(-1, 1, 1, 1)
        x = torch.where(honest, torch.full_like(state.x0, 0.25), torch.full_like(state.x0, LIES[self.lie]))
        return Candidates(x, torch.ones(len(x), dtype=torch.bool))


@settings
class BatchLiar:
    """A whole-batch attack that hands in a wrong image for every second sample and a true one for the others."""

    lane: ClassVar[Literal["batch"]] = "batch"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    algorithm_version: ClassVar[int] = 1

    norm: NormName
    lie: Lie
    chunk: StrictInt

    def cost(self, num_classes: int) -> Cost:
        return Cost(1, 0)

    def run(self, model: Any, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        answer = torch.full_like(x, 0.25)
        answer[::2] = LIES[self.lie]
        return answer


@settings
class WrongShape(BatchLiar):
    """A whole-batch attack that loses a sample."""

    def run(self, model: Any, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
        return x[1:]


@pytest.fixture(autouse=True)
def liars() -> Iterator[None]:
    """The broken attacks, known while a test runs."""
    made = {"liar": Liar, "batch-liar": BatchLiar, "wrong-shape": WrongShape}
    for name, attack in made.items():
        algorithms.register(name, attack)
    yield
    for name in made:
        del algorithms._values[name]


def evaluate(algorithm: str, eps: float = EPS, **fields: Any) -> Record:
    card = AlgorithmCard(version=1, about="a broken attack", reference="none", algorithm=algorithm, **fields)
    x = torch.full((6, 1, 3, 3), CLEAN)
    return rbv.evaluate(Band().eval(), x, torch.zeros(6, dtype=torch.int64), attack=card, eps=eps, width=4)


@pytest.mark.parametrize("lie", LIES)
def test_a_broken_row_attack_is_caught_and_its_rows_run_to_their_end(lie):
    record = evaluate("liar", lie=lie, steps=3, honest_at=0)
    assert record.verdicts == ["robust"] * 6
    assert record.robust_accuracy == 1
    rechecks = 3 if lie == "not finite" else 1  # what is not a number is never known to be the same image again
    assert {o.forwards for o in record.outcomes} == {1 + 3 + rechecks}, "a clean answer, three steps, the rechecks"
    assert {o.distance for o in record.outcomes} == {None}
    assert torch.equal(record.adversarials, torch.full((6, 1, 3, 3), CLEAN))


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "outside the budget"])
def test_a_row_that_lied_can_still_succeed(lie):
    record = evaluate("liar", eps=0.7, lie=lie, steps=5, honest_at=3)
    assert record.verdicts == ["liar"] * 6
    rechecks = 3 if lie == "not finite" else 2  # the first lie, and the truth
    assert {o.forwards for o in record.outcomes} == {1 + 3 + rechecks}
    assert record.adversarials.unique().tolist() == [0.25]
    assert {round(o.distance or 0, 5) for o in record.outcomes} == {0.65}


def test_an_honest_success_outside_the_budget_does_not_count():
    assert evaluate("liar", eps=0.64, lie="the clean image", steps=3, honest_at=2).verdicts == ["robust"] * 6


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "outside the budget"])
def test_a_broken_batch_attack_is_caught(lie):
    record = evaluate("batch-liar", eps=0.7, lie=lie, chunk=4)
    assert record.verdicts == ["robust", "batch-liar"] * 3
    assert [o.distance is None for o in record.outcomes] == [True, False] * 3


def test_a_batch_attack_cannot_leave_the_budget():
    assert evaluate("batch-liar", lie="outside the budget", chunk=4).verdicts == ["robust"] * 6


def test_a_batch_attack_that_loses_samples_is_an_error():
    with pytest.raises(AttackError, match=r"<card>: the attack returned torch.Size\(\[3, 1, 3, 3\]\), not torch.Size"):
        evaluate("wrong-shape", lie="infinite", chunk=4)


def checked(x: float, eps: float, norm: str = "linf", x0: float = 0.5) -> Any:
    shape = (1, 1, 3, 3)
    return Verifier(Always(), NORMS[norm]).check(
        torch.full(shape, x, dtype=torch.float64).float(),
        torch.full(shape, x0),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([eps]),
    )


class Always(nn.Module):
    """Class 1, whatever it sees; notes its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)


@pytest.mark.parametrize(("norm", "reach"), [("linf", 1), ("l2", 3)])
def test_the_budget_has_a_tolerance_for_rounding_and_no_more(norm, reach):
    eps = 0.1 * reach
    assert bool(checked(0.6, eps, norm).holds)
    assert bool(checked(0.6 + 0.5 * TOLERANCE / reach, eps, norm).holds)
    beyond = checked(0.6 + 5 * TOLERANCE / reach, eps, norm)
    assert not bool(beyond.in_budget)
    assert bool(beyond.finite & beyond.in_box & beyond.misclassified)
    assert float(beyond.distance) == pytest.approx(eps, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_fails_whatever_the_model_says(value):
    found = checked(value, 0.2)
    assert bool(found.misclassified)
    assert not bool(found.finite)
    assert not bool(found.holds)


def test_the_box_has_none():
    assert bool(checked(1.0, 0.2, x0=0.9).holds)
    assert not bool(checked(1.0 + 2e-7, 0.2, x0=0.9).in_box)
    assert not bool(checked(-1e-9, 0.2, x0=0.1).in_box)


def test_every_answer_comes_from_the_same_physical_batch():
    model = Always()
    assert Verifier(model, NORMS["linf"]).logits(torch.rand(2 * BATCH + 3, 1, 3, 3)).shape == (2 * BATCH + 3, 2)
    assert model.batches == [BATCH] * 3


def test_float32_means_float32_while_rechecking_and_settings_come_back():
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return x.flatten(1)

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        Verifier(model, NORMS["linf"]).logits(torch.rand(3, 1, 2, 2))
        assert seen == [(False, False)]
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
