"""Models that answer at random: averaged gradients, rechecks by many draws, two criteria, runs that can be repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.attacks.norms import NORMS
from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.verify import Verifier
from robustbench_vit.records import Record, Status
from robustbench_vit.records.rows import MAJORITY, UNTARGETED

NOISE = "gaussian noise on the logits"


class Noisy(nn.Module):
    """Two classes by the mean pixel, with noise on the logits."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        logits = torch.stack([10 * (mean - 0.5), 10 * (0.5 - mean)], dim=1)
        return logits + self.scale * torch.randn_like(logits)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "short-rand.yaml").write_text(
        "extends: apgd-ce-rand\nversion: 1\nabout: x\nreference: x\nsteps: 8\ndraws: 4\n"
    )
    (tmp_path / "attacks" / "short.yaml").write_text("extends: apgd-ce\nversion: 1\nabout: x\nreference: x\nsteps: 8\n")
    (tmp_path / "attacks" / "cascade.yaml").write_text(
        "version: 1\nabout: x\nreference: x\nlanes: [short]\nstand_ins: {B: short-rand, C: black-box}\n"
    )
    return open_workspace(tmp_path)


def run(workspace: Workspace, scale: float = 1.0, eps: float = 0.1, **over: object) -> Record:
    x = torch.linspace(0.52, 0.9, 12).view(-1, 1, 1, 1).expand(12, 1, 4, 4).contiguous()
    y = torch.zeros(12, dtype=torch.int64)
    chosen = {"randomness": NOISE, "reliability": False, **over}
    return rbv.evaluate(Noisy(scale).eval(), x, y, "cascade", "linf", eps, workspace=workspace, **chosen)  # type: ignore[arg-type]


def test_a_declared_random_model_gets_policy_b_and_the_stand_in(workspace: Workspace) -> None:
    record = run(workspace)
    assert record.policy == "B"
    assert record.lanes("cascade") == ["short-rand"]
    assert record.entry["randomness"] == NOISE
    assert {o.by for o in record.outcomes} <= {None, "short-rand"}


def test_the_protocol_does_not_depend_on_the_policy_of_a_model(workspace: Workspace) -> None:
    x, y = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    ids = {
        rbv.evaluate(model.eval(), x, y, "cascade", workspace=workspace, reliability=False, **declared).protocol_id
        for model, declared in (
            (Noisy(1.0), {"randomness": NOISE}),
            (nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), {}),
        )
    }
    assert len(ids) == 1


def test_every_sample_is_judged_by_two_criteria(workspace: Workspace) -> None:
    record = run(workspace)
    assert record.criteria == [UNTARGETED, MAJORITY]
    assert len(record.outcomes) == 24
    by = {criterion: record.at(criterion=criterion) for criterion in record.criteria}
    for one, most in zip(by[UNTARGETED].outcomes, by[MAJORITY].outcomes, strict=True):
        assert one.sample == most.sample
        assert not one.robust or most.robust, "what no draw gets wrong, most draws don't"
        if most.status is Status.BROKEN:
            assert most.k_of_m is not None
            assert most.k_of_m[0] > 10
    assert by[UNTARGETED].robust_accuracy < by[MAJORITY].robust_accuracy
    assert record.robust_accuracy == by[UNTARGETED].robust_accuracy, "the headline is AutoAttack's own criterion"
    assert len(record.verdicts) == 12


def test_a_lucky_draw_says_in_how_many_draws_it_was_wrong(workspace: Workspace) -> None:
    lucky = [o for o in run(workspace).at(criterion=UNTARGETED).outcomes if o.k_of_m and 2 * o.k_of_m[0] <= o.k_of_m[1]]
    assert lucky
    assert all(o.k_of_m and o.k_of_m[0] >= 1 and o.k_of_m[1] == 20 for o in lucky)


def test_a_run_repeats_and_leaves_the_global_generator_alone(workspace: Workspace) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = run(workspace)
    assert torch.equal(torch.get_rng_state(), before)
    assert run(workspace).outcomes == first.outcomes


def test_a_declared_model_that_is_not_random_still_agrees_with_itself(workspace: Workspace) -> None:
    record = run(workspace, scale=0.0)
    for o in record.outcomes:
        assert o.k_of_m in (None, (20, 20))
    one, most = (record.at(criterion=c).robust_accuracy for c in record.criteria)
    assert one == most


def test_random_records_come_back_as_they_were_saved(workspace: Workspace, tmp_path: Path) -> None:
    record = run(workspace)
    assert dataclasses.replace(Record.load(record.save(tmp_path / "r.json")), images=None) == dataclasses.replace(
        record, images=None
    )


def test_an_interrupted_run_of_a_random_model_keeps_what_was_decided(workspace: Workspace, tmp_path: Path) -> None:
    whole = run(workspace, out=tmp_path / "run")
    assert run(workspace, out=tmp_path / "run").outcomes == whole.outcomes, "nothing is drawn again"


def test_the_gradient_is_averaged_over_draws_and_counted() -> None:
    torch.manual_seed(0)

    class Slope(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * (1 + torch.randn(()))).flatten(1)

    oracle, x = Oracle(Slope()), torch.rand(3, 1, 1, 2)
    oracle.count(3)
    answer = oracle.gradient(x, lambda z, at: z.sum(1), draws=4000)
    assert answer.grad.mean().item() == pytest.approx(1, abs=0.08)
    assert oracle.passes.forwards.tolist() == oracle.passes.backwards.tolist() == [4000] * 3


def test_the_recheck_counts_wrong_draws() -> None:
    torch.manual_seed(0)
    x, y = torch.full((40, 1, 2, 2), 0.5), torch.zeros(40, dtype=torch.int64)
    checked = Verifier(Noisy(1.0), NORMS["linf"], draws=20).check(x, x, y, torch.full((40,), 0.1))
    assert int(checked.wrong_draws.min()) > 0
    assert int(checked.wrong_draws.max()) < 20
    assert torch.equal(checked.misclassified, checked.wrong_draws > 10)
