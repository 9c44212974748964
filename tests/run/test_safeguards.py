"""What must not happen: rows of another model reused, verdicts lost, errors that do not travel, endless plans."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit import errors
from robustbench_vit.cards import open_workspace
from robustbench_vit.check import check_workspace
from robustbench_vit.errors import CardError, InputError, ModelError, UnknownNameError
from robustbench_vit.subject import fingerprint

X = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Linear, with a plain setting that decides answers."""

    def __init__(self, sharpness: float = 1.0, classes: int = 3) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.head = nn.Linear(36, classes)
        self.head.weight.data = torch.randn(classes, 36, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.sharpness * self.head(x.flatten(1))


class Blind(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class BlindNoisy(Blind):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.05 * torch.randn_like(x))


Y = Net()(X).argmax(1)


def evaluate(model: nn.Module, attack: str = "fgsm", **over: object) -> rbv.Record:
    return rbv.evaluate(model.eval(), X, Y, attack, "linf", over.pop("eps", 0.05), **over)  # type: ignore[arg-type]


def test_a_plain_setting_makes_another_model() -> None:
    torch.manual_seed(0)
    one, other = Net(1.0), Net(2.0)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one.eval()) == fingerprint(one.train())


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("entry", "a", ["b"], "x.yaml"),
        CardError(["one", "two"]),
        ModelError("no", ()),
        InputError("no"),
        errors.StorageError("full"),
    ],
)
def test_errors_travel_from_workers(error: errors.RobustbenchError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.exit_code) == (type(error), str(error), error.exit_code)
    assert getattr(back, "faults", None) == getattr(error, "faults", None)


def test_a_surrogate_that_cannot_be_used_is_refused_before_any_work() -> None:
    for surrogate, message in (
        (Net(classes=2).eval(), "the surrogate cannot be used: the model has 2 classes"),
        (Net().train(), "the surrogate cannot be used: the model is in train mode"),
        (Blind().eval(), "the surrogate cannot be used: it has no useful gradient"),
    ):
        if "train mode" in message:
            surrogate.add_module("drop", nn.Dropout(0.5))
        with pytest.raises(ModelError, match=message):
            evaluate(Net(), surrogate=surrogate, watch=lambda *_: pytest.fail("work was done"))


def test_a_failing_check_costs_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr("robustbench_vit.diagnostics.reliability.assess", broken)
    record = evaluate(Net())
    assert record.reliability is not None
    (reason,) = record.reliability.reasons
    assert (reason.evidence, reason.message) == (None, "RuntimeError: out of luck")


def test_another_surrogate_has_the_number_judged_anew(tmp_path: Path) -> None:
    first = evaluate(Net(), out=tmp_path)
    again = evaluate(Net(), out=tmp_path, surrogate=Net(2.0).eval())
    assert first.outcomes == again.outcomes
    said = [
        {r.check: r.message for r in record.reliability.reasons}["transfer"]
        for record in (first, again)
        if record.reliability
    ]
    assert "no surrogate" in said[0]
    assert "no surrogate" not in said[1]


def test_attacks_that_need_a_gradient_are_refused_where_there_is_none() -> None:
    with pytest.raises(
        InputError, match=r"no useful gradient \(policy C\), and attack 'apgd-ce' needs one \(apgd-ce\)"
    ):
        evaluate(Blind(), "apgd-ce")


def test_a_random_model_without_gradient_is_judged_by_many_draws(tmp_path: Path) -> None:
    card = "extends: square\nversion: 1\nabout: x\nreference: x\nqueries: 30\n"
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "few.yaml").write_text(card)
    over = {"workspace": open_workspace(tmp_path), "randomness": "noise on the input", "reliability": False}
    record = evaluate(BlindNoisy(), "few", **over)
    assert (record.policy, record.criteria) == ("C", ["untargeted", "majority"])
    assert evaluate(BlindNoisy(), "few", **over).outcomes == record.outcomes


@pytest.mark.parametrize("eps", [[0.05, 0.05], [0.1, 0.05, 0.1]])
def test_a_repeated_eps_is_refused(eps: list[float]) -> None:
    with pytest.raises(InputError, match=r"is named twice; name each once"):
        evaluate(Net(), eps=eps)


def written(folder: Path, **cards: str) -> Path:
    (folder / "attacks").mkdir()
    for name, fields in cards.items():
        text = f"version: 1\nabout: x\nreference: x\n{fields}\n"
        (folder / "attacks" / f"{name.replace('_', '-')}.yaml").write_text(text)
    return folder


def test_stand_ins_that_name_each_other_are_no_circle(tmp_path: Path) -> None:
    cards = {"one": "lanes: [fgsm]\nstand_ins: {B: two}", "two": "lanes: [pgd-20]\nstand_ins: {B: one}"}
    workspace = open_workspace(written(tmp_path, **cards))
    record = evaluate(Net(), "one", workspace=workspace, reliability=False)
    assert record.protocol["attacks"]["one"]["stand_ins"]["B"]["name"] == "two"


def test_faults_of_stand_ins_are_found_by_check_and_name_their_card(tmp_path: Path) -> None:
    fields = "lanes: [square]\nstand_ins: {C: nope}"
    partial = "lanes: {linf: [square], l1: [square]}\nstand_ins: {C: only-linf}"
    folder = written(tmp_path, bad=fields, partial=partial, only_linf="lanes: {linf: [square]}")
    workspace = open_workspace(folder)
    with pytest.raises(UnknownNameError, match=r"^attacks/bad\.yaml: unknown attack 'nope'"):
        evaluate(Net(), "bad", workspace=workspace)
    faults = check_workspace(workspace)[1]
    assert any(fault.startswith("attacks/bad.yaml: unknown attack 'nope'") for fault in faults)
    assert "attacks/only-linf.yaml: has lanes for linf, not for l1" in faults


def test_a_borrowed_name_is_found_out_whatever_its_case_or_stand_ins(tmp_path: Path) -> None:
    lanes = "lanes: [apgd-ce, apgd-t, fab-t, square]"
    folder = written(
        tmp_path, **{"AutoAttack-fast": "lanes: [fgsm]", "autoattack-mine": f"{lanes}\nstand_ins: {{B: fgsm}}"}
    )
    workspace = open_workspace(folder)
    assert evaluate(Net(), "AutoAttack-fast", workspace=workspace, reliability=False).custom("AutoAttack-fast")
    record = evaluate(Net(), "autoattack-mine", workspace=workspace, reliability=False)
    assert record.custom("autoattack-mine") == ["stand_ins.B: autoattack-rand in autoattack, fgsm here"]
