"""What messages say of a number, without evaluating anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.comparing import Comparison
from robustbench_vit.comparing.judge import compare
from robustbench_vit.comparing.sources import Source
from robustbench_vit.records import Evidence, Judgement, Outcome, Record, Reliability, Status
from robustbench_vit.testing import report
from robustbench_vit.testing.accuracy import accuracy_of
from robustbench_vit.testing.demand import Demand, find_asked

PROTOCOL: dict[str, Any] = {
    "profile": "full",
    "criterion": "untargeted",
    "norm": "linf",
    "eps": [8 / 255],
    "precision": "fp32",
    "attacks": {"autoattack": {"version": 1, "lanes": [{"name": "apgd-ce"}, {"name": "square"}]}},
    "data": {"name": "x", "split": "test", "n": 40, "sample_ids_sha256": "0", "source_sha256": "0"},
}


def record(broken: dict[int, str], n: int = 40) -> Record:
    """A record whose samples are robust but for those in `broken`, which names what broke them."""
    outcomes = []
    for i in range(n):
        base = {"sample": f"s{i}", "attack": "autoattack", "norm": "linf", "eps": 8 / 255, "criterion": "untargeted"}
        by = broken.get(i)
        if by is None:
            outcomes.append(Outcome(**base, status=Status.SURVIVED))
        elif by == "misclassified":
            outcomes.append(Outcome(**base, status=Status.MISCLASSIFIED))
        else:
            outcomes.append(Outcome(**base, status=Status.BROKEN, by=by))
    return Record({"name": "mine"}, PROTOCOL, tuple(outcomes), (), {})


def compared(before: dict[int, str], after: dict[int, str]) -> Comparison:
    sources = (Source(name, Path(), {"mine": record(broken)}) for name, broken in (("a", before), ("b", after)))
    return compare(*sources)


def test_samples_that_flipped_are_named_by_what_broke_them() -> None:
    lost = {**dict.fromkeys(range(25), "square"), 30: "apgd-ce", 31: "misclassified"}
    (item,) = compared({38: "misclassified", 39: "square"}, lost).items
    first = ", ".join(f"s{i}" for i in range(20))
    assert report.flipped(item)[:6] == [
        "  committed  95.0 % on the same 40 samples; 29 flipped (27 lost, 2 gained)",
        f"    lost     broken by square: {first} and 5 more",
        "    lost     broken by apgd-ce: s30",
        "    lost     misclassified: s31",
        "    gained   was misclassified: s38",
        "    gained   was broken by square: s39",
    ]


@pytest.mark.parametrize(("evidence", "said"), [(Evidence.NONE, False), (Evidence.WEAK, True), (Evidence.STRONG, True)])
def test_the_summary_warns_of_masked_gradients(evidence: Evidence, said: bool) -> None:
    held = record({0: "square"})
    judged = Judgement("autoattack", 8 / 255, Reliability(evidence, (), {}, 0.0))
    line = report.summary_line("mine", accuracy_of(dataclasses.replace(held, judgements=(judged,))))
    assert line.startswith("mine: 97.5 % [87.1, 99.6] under autoattack, linf, eps 8/255, n = 40")
    assert (f"; {evidence} evidence of masked gradients, it may be too high" in line) == said


def test_how_to_repeat_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the board's name where commands find it, else by its file; with the workspace, unless commands find that."""
    monkeypatch.chdir(tmp_path)
    builtin = Workspace((builtin_layer(),))
    demand = Demand("digits-linf", "cnn-pgd-at")
    asked = find_asked(demand, builtin, tmp_path)
    assert report.reproduce(asked, builtin, None) == "  reproduce  rbvit run digits-linf --entry cnn-pgd-at"
    text = asked.board.path.read_text(encoding="utf-8")
    for folder in ("leaderboards", "my cards"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.yaml").write_text(text, encoding="utf-8")
    own = open_workspace(tmp_path)
    asked = find_asked(dataclasses.replace(demand, board="own"), own, tmp_path)
    assert report.reproduce(asked, own, 7) == "  reproduce  rbvit run own --entry cnn-pgd-at --n 7"
    asked = find_asked(dataclasses.replace(demand, board="my cards/own.yaml"), own, tmp_path)
    assert report.reproduce(asked, own, None) == (
        f"  reproduce  rbvit run '{tmp_path}/my cards/own.yaml' --entry cnn-pgd-at"
    )
    monkeypatch.chdir(tmp_path.parent)
    asked = find_asked(dataclasses.replace(demand, board="own"), own, tmp_path)
    assert report.reproduce(asked, own, None) == (
        f"  reproduce  rbvit --workspace {tmp_path} run own --entry cnn-pgd-at"
    )
