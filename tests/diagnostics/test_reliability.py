"""Offenders are found out by the right check, honest models are left in peace."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.side_by_side import entry_names, load_entry
from robustbench_vit.attacks.rows import Access
from robustbench_vit.data import load_dataset
from robustbench_vit.diagnostics.reliability import LaneAccess, assess
from robustbench_vit.diagnostics.reliability.checks import CHECKS, MOST_PROBES, affordable
from robustbench_vit.diagnostics.reliability.lanes import NAME as SCORES_BEAT_GRADIENTS
from robustbench_vit.diagnostics.reliability.probes import choose
from robustbench_vit.diagnostics.reliability.randomness import agreement_of_means
from robustbench_vit.errors import InputError, UnknownNameError
from robustbench_vit.records import Outcome, Status
from robustbench_vit.records.reliability import Evidence, Reliability

LANES = [LaneAccess("apgd-ce", Access.GRADIENT), LaneAccess("square", Access.SCORES)]
NORMS = [("linf", 0.1), ("l2", 0.6), ("l1", 3.0)]


class Changed(nn.Module):
    """A model with something before and after it."""

    def __init__(self, model: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: x, after: Any = lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class KWinners(nn.Module):
    """Keeps the largest tenth of the activations (arXiv:1905.10510)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        smallest = flat.topk(max(flat.shape[1] // 10, 1), dim=1).values[:, -1:]
        return (flat * (flat >= smallest)).view_as(x)


def straight_through(x: Tensor) -> Tensor:
    return x + ((x * 4).round() / 4 - x).detach()


def half_detached(z: Tensor) -> Tensor:
    return 0.3 * z + 0.7 * z.detach()


def network(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        activation(),
        nn.Conv2d(16, 32, 3, 2, 1),
        activation(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def smooth() -> nn.Module:
    return network(nn.GELU)


def rectified() -> nn.Module:
    return network(nn.ReLU)


def winners() -> nn.Module:
    return network(KWinners)


@lru_cache
def trained(build: Callable[[], nn.Module], epochs: int) -> nn.Module:
    """A model trained on the digits by Adam."""
    data = load_dataset("digits", "train")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for at in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(x[at]), y[at]).backward()
                optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return trained(rectified, 8)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits")
    return torch.from_numpy(data.x[:200]), torch.from_numpy(data.y[:200])


def survivors(model: Any, x: Tensor, y: Tensor, norm: str = "linf", eps: float = 0.1) -> list[Outcome]:
    """Outcomes as if every correctly classified sample had survived a thorough attack."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        right = (model(x).argmax(1) == y).tolist()
    status = {True: Status.SURVIVED, False: Status.MISCLASSIFIED}
    return [
        Outcome(f"digits:{i}", "a", norm, eps, "untargeted", status[yes], forwards=900, backwards=900)
        for i, yes in enumerate(right)
    ]


def judge(model: Any, data: tuple[Tensor, Tensor], norm: str = "linf", eps: float = 0.1, **options: Any) -> Reliability:
    """The verdict when all correct samples had survived."""
    return assess(model, *data, norm, eps, 0, survivors(model, *data, norm, eps), LANES, **options)


def grades(verdict: Reliability) -> dict[str, Evidence | None]:
    return {reason.check: reason.evidence for reason in verdict.reasons}


@pytest.mark.parametrize("name", entry_names())
def test_entries_of_the_board_are_honest(name):
    model, data = load_entry(name)
    verdict = judge(model, (torch.from_numpy(data.x), torch.from_numpy(data.y)), eps=0.2)
    assert verdict.flag == "", verdict.against
    assert [c for c, e in grades(verdict).items() if e is None] == ["eot-changes", "transfer"]


@pytest.mark.parametrize(("norm", "eps"), NORMS)
@pytest.mark.parametrize("build", [linear, smooth])
def test_linear_and_smooth_models_are_honest(build, digits, norm, eps):
    assert judge(trained(build, 8), digits, norm, eps).flag == ""


@pytest.mark.parametrize("change", [lambda z: z / 1000, lambda z: z.log_softmax(1), lambda z: 5 + 2 * z])
def test_what_changes_no_decision_and_no_gradient_s_use_is_honest(honest, digits, change):
    assert judge(Changed(honest, after=change), digits).flag == ""


@pytest.mark.parametrize(("norm", "eps"), NORMS)
@pytest.mark.parametrize(
    ("before", "after", "checks"),
    [
        (lambda x: (x * 8).round() / 8, lambda z: z, {"vanishing-gradients", "loss-rises", "large-eps"}),
        (lambda x: (x * 8).round() / 8, lambda z: z, {"noise-as-strong", "gradient-mismatch"}),
        (lambda x: x, lambda z: 1e4 * z, {"saturated-logits", "vanishing-gradients", "loss-rises", "large-eps"}),
        (lambda x: x, lambda z: z + 1e6, {"saturated-logits"}),
        (straight_through, lambda z: z, {"gradient-mismatch"}),
        (lambda x: x, half_detached, {"gradient-mismatch"}),
        (lambda x: x.detach(), lambda z: z, {"usable-gradient"}),
    ],
    ids=["rounded", "rounded, by steps", "saturated", "shifted", "straight-through", "half detached", "detached"],
)
def test_offenders_are_found_out(honest, digits, norm, eps, before, after, checks):
    verdict = judge(Changed(honest, before, after), digits, norm, eps)
    found = grades(verdict)
    assert {check for check in checks if found[check] is not Evidence.STRONG} == set()
    assert verdict.evidence is Evidence.STRONG
    assert all(reason.advice for reason in verdict.against)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_k_winners_take_all_is_found_out(digits, norm, eps):
    model = trained(winners, 12)
    verdict = judge(model, digits, norm, eps)
    assert grades(verdict)["gradient-mismatch"] is Evidence.STRONG


def test_a_few_times_the_logits_is_weak(honest, digits):
    """Margins are then beyond what softmax holds in float32, but gradients still get through."""
    found = grades(judge(Changed(honest, after=lambda z: 6 * z), digits))
    assert found["saturated-logits"] is Evidence.WEAK
    assert found["gradient-mismatch"] is Evidence.NONE


def random_gradient(x: Tensor) -> Tensor:
    """x, with a sign drawn for each pixel's gradient."""
    return x.detach() + (x - x.detach()) * torch.randn_like(x).sign()


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (lambda x: x + 0.005 * torch.randn_like(x), Evidence.NONE),
        (lambda x: x + 0.3 * torch.randn_like(x), Evidence.WEAK),
        (random_gradient, Evidence.STRONG),
    ],
    ids=["little noise", "noise", "random gradient"],
)
def test_random_models_are_judged_by_what_averaging_changes(honest, digits, before, expected):
    noisy = Changed(honest, before)
    state = torch.get_rng_state()
    verdict = judge(noisy, digits, randomness="noise", policy="B")
    assert grades(verdict)["eot-changes"] is expected
    assert verdict.evidence is expected
    assert torch.equal(torch.get_rng_state(), state)
    again = judge(noisy, digits, randomness="noise", policy="B")
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(verdict, seconds=0)


def test_agreement_of_means_has_its_limits():
    assert agreement_of_means(1.0, 20) == 1
    assert agreement_of_means(-0.2, 20) == 0
    assert agreement_of_means(0.3, 1) == pytest.approx(0.3)


def test_images_of_a_surrogate_break_a_model_that_hides_its_gradients(honest, digits):
    rounded = Changed(honest, lambda x: (x * 8).round() / 8)
    reason = next(r for r in judge(rounded, digits, surrogate=honest).reasons if r.check == "transfer")
    assert reason.evidence is Evidence.STRONG
    assert reason.values["broken"] >= 10


def test_images_of_a_surrogate_prove_nothing_about_an_honest_model(honest, digits):
    """Everything that falls to another model's images falls to its own gradients as well."""
    other = trained(rectified, 4)
    assert grades(judge(honest, digits, surrogate=other))["transfer"] is Evidence.NONE


def test_given_images_are_tried_inside_the_budget(honest, digits):
    blind = Changed(honest, lambda x: x.detach())
    grey = torch.full_like(digits[0], 0.5)
    assert grades(judge(blind, digits, images=grey, eps=0.01))["transfer"] is Evidence.NONE
    assert grades(judge(blind, digits, images=grey, eps=0.5))["transfer"] is Evidence.STRONG
    with pytest.raises(InputError, match=r"shape \(3, 1, 8, 8\); expected \(200, 1, 8, 8\)"):
        judge(blind, digits, images=grey[:3])


def test_policy_c_says_that_there_is_no_gradient(digits):
    def decisions(x: Tensor) -> Tensor:
        return F.one_hot((9 * x.flatten(1).mean(1)).long().clamp(0, 9), 10).float()

    verdict = judge(decisions, digits, policy="C")
    assert verdict.flag == "strong: usable-gradient"
    assert set(grades(verdict).values()) == {Evidence.STRONG, Evidence.NONE, None}
    assert verdict.passes == {"forwards": 0, "backwards": 0}


def test_a_model_of_one_class_has_no_witness(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.mul_(0.01)
        model[1].bias.copy_(9.0 * F.one_hot(torch.tensor(3), 10))
    verdict = judge(model.eval(), digits)
    assert grades(verdict)["large-eps"] is None
    assert verdict.flag == ""


def test_a_constant_model_gives_finite_numbers(honest, digits):
    verdict = judge(Changed(honest, after=lambda z: 0 * z), digits)
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert grades(verdict)["vanishing-gradients"] is Evidence.STRONG


def test_other_errors_of_the_model_pass_through(digits):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("out of memory")
            return x.flatten(1)[:, :10] * 0 + F.one_hot(torch.tensor(0), 10)

    with pytest.raises(RuntimeError, match="out of memory"):
        judge(Broken().eval(), digits)


def test_one_sample_is_looked_at_but_never_graded(honest, digits):
    x, y = digits
    rounded = Changed(honest, lambda x: (x * 8).round() / 8)
    verdict = judge(rounded, (x[:1], y[:1]))
    assert verdict.passes["backwards"] > 0
    assert verdict.flag == ""


def test_without_a_correct_sample_nothing_is_looked_at(honest, digits):
    x = digits[0]
    verdict = judge(honest, (x, (honest(x).argmax(1) + 1) % 10))
    assert {reason.evidence for reason in verdict.reasons[1:]} == {None}
    assert "no sample is classified correctly" in verdict.reasons[1].message


def test_large_images_come_in_small_batches(digits):
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(len(x))
        return F.adaptive_avg_pool2d(x, (2, 5)).flatten(1)

    x = torch.rand(40, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    judge(model, (x, model(x).argmax(1)), allowance_forwards=24 * 40)
    assert set(seen[2:]) == {8}


def test_the_model_is_left_as_it_was(honest, digits):
    before = [p.requires_grad for p in honest.parameters()]
    judge(honest, digits)
    assert [p.requires_grad for p in honest.parameters()] == before
    assert all(p.grad is None for p in honest.parameters())


def test_verdicts_repeat_and_do_not_depend_on_the_allowance_s_leftovers(honest, digits):
    first, second = (judge(honest, digits, allowance_forwards=n) for n in (6000, 6001))
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)


@pytest.mark.parametrize("allowance", [0, 100, 300, 1200, 5000, 50_000, None])
def test_the_allowance_is_kept(honest, digits, allowance):
    verdict = judge(honest, digits, surrogate=honest, randomness="none really", allowance_forwards=allowance)
    spent = verdict.passes["forwards"] + 2 * verdict.passes["backwards"]
    assert allowance is None or spent <= allowance
    assert len(verdict.reasons) == 1 + len(CHECKS)
    assert (spent == 0) is (allowance == 0)


def test_a_small_allowance_drops_the_dearest_checks_first():
    def bought(allowance: int | None, available: int = 500) -> tuple[list[str], int]:
        result = affordable(CHECKS, allowance, available)
        return [check.name for check in result.checks], result.probes

    assert bought(None) == ([check.name for check in CHECKS], MOST_PROBES)
    assert bought(10**9)[1] == MOST_PROBES
    assert bought(8 * 10) == (["usable-gradient", "vanishing-gradients", "saturated-logits"], 8)
    assert bought(8 * 5) == (["usable-gradient"], 8)
    assert bought(8 * 3 - 1) == ([], 0)
    assert bought(None, 3)[1] == 3
    assert bought(None, 0) == ([], 0)


def test_survivors_are_looked_at_first_and_evenly():
    def outcome(i: int, status: Status) -> Outcome:
        return Outcome(f"s{i}", "a", "linf", 0.1, "untargeted", status)

    pattern = [Status.MISCLASSIFIED, Status.BROKEN, Status.SURVIVED, Status.BROKEN, Status.NOT_RUN]
    outcomes = [outcome(i, pattern[i % 5]) for i in range(100)]
    assert choose(outcomes, 4) == [2, 27, 52, 77]
    assert choose(outcomes, 20)[:3] == [2, 7, 12]
    assert len(choose(outcomes, 30)) == 30
    assert {i % 5 for i in choose(outcomes, 1000)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("norm", "eps", "n", "error", "match"),
    [
        ("linff", 0.1, 200, UnknownNameError, "linf"),
        ("linf", 0.0, 200, InputError, "eps must be positive"),
        ("linf", float("nan"), 200, InputError, "eps must be positive"),
        ("linf", 0.1, 199, InputError, "200 images, 200 labels and 199 outcomes"),
    ],
)
def test_bad_input_is_refused(honest, digits, norm, eps, n, error, match):
    outcomes = survivors(honest, *digits)[:n]
    with pytest.raises(error, match=match):
        assess(honest, *digits, norm, eps, 0, outcomes, LANES)


def test_the_page_on_reliability_names_every_check_with_its_cost_and_advice():
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    costs = {row[1].strip(" `"): row[5].strip() for row in rows if len(row) == 8}
    assert costs == {SCORES_BEAT_GRADIENTS: "0"} | {check.name: str(check.cost) for check in CHECKS}
    assert {row[1].strip(" `") for row in rows if len(row) == 4} == set(costs)
