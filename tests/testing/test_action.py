"""action.yml, interpreted as GitHub's runner would, on a small project."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"

pytestmark = pytest.mark.skipif(not ACTION.is_file(), reason="needs the repository")


def failures(ran: Any) -> list[str]:
    """Entries that the JUnit report calls failed."""
    cases = xml.etree.ElementTree.parse(ran.outputs["junit"]).iter("testcase")
    return [str(case.get("classname")) for case in cases if case.find("failure") is not None]


def test_equal_weights_pass_without_an_evaluation(runner: Any) -> None:
    ran = runner.action(board="small", max_drop="0.3")
    assert ran.code == 0, ran.log
    assert ran.outputs["conclusion"] == "not worse"
    assert failures(ran) == []
    assert "equal weights" in ran.summary
    assert ran.summary == Path(ran.outputs["markdown"]).read_text(encoding="utf-8")
    assert "::error" not in ran.log


def test_worse_weights_fail(runner: Any) -> None:
    board = runner.project / "leaderboards" / "small"
    shutil.copy(board / "weak.safetensors", board / "strong.safetensors")
    ran = runner.action(board="small", entries="strong", max_drop="0.3", comment_file="comment.md")
    assert ran.code == 1, ran.log
    assert ran.outputs["conclusion"] == "worse"
    assert failures(ran) == ["strong"]
    assert ran.outputs["markdown"] == "comment.md"
    assert (runner.project / "comment.md").read_text(encoding="utf-8") == ran.summary
    assert re.search(r"\| strong \| .*worse", ran.summary)
    assert "::error title=Robustness gate::worse; the summary of this job says which entries" in ran.log


def test_bad_input_exits_with_2_and_says_so(runner: Any) -> None:
    ran = runner.action(board="smal")
    assert ran.code == 2, ran.log
    assert "error: unknown board 'smal'; did you mean 'small'?" in ran.log
    assert "::error title=Robustness gate::the gate could not run, see its message above (exit code 2)" in ran.log
    assert (ran.summary, ran.outputs) == ("", {})


@pytest.mark.parametrize("text", ["--help", "$(touch owned)`touch owned`; touch owned #", "\"'; touch owned; echo '"])
def test_inputs_are_never_run(recorder: Any, text: str) -> None:
    ran = recorder.action(board=text, entries=text, workspace=text, max_drop=text, baseline=text)
    assert ran.code == 0, ran.log
    said = (recorder.project / "rbvit.txt").read_text(encoding="utf-8").splitlines()
    assert said[-2:] == ["--", text]
    assert {f"--entry={text}", f"--workspace={text}", f"--max-drop={text}", f"--baseline={text}"} <= set(said)
    assert not (recorder.project / "owned").exists()


@pytest.mark.parametrize("inputs", [{"strict": "yes"}, {"always": "\n::set-output name=conclusion::not worse"}])
def test_switches_are_true_or_false(recorder: Any, inputs: dict[str, str]) -> None:
    ran = recorder.action(board="small", **inputs)
    assert (ran.code, ran.outputs) == (2, {})
    assert ran.log == "::error title=Robustness gate::the inputs 'strict' and 'always' are 'true' or 'false'\n"


def test_every_input_reaches_the_gate(recorder: Any) -> None:
    ran = recorder.action(
        board="my board",
        baseline="main's records",
        entries="\n  strong one\nweak\n\n",
        max_drop="0.1",
        alpha="0.01",
        strict="true",
        always="true",
        workspace="some where",
        device="cuda:1",
        comment_file="a comment.md",
    )
    assert ran.code == 0, ran.log
    said = (recorder.project / "rbvit.txt").read_text(encoding="utf-8").splitlines()
    assert said == [
        "--workspace=some where",
        "gate",
        "--max-drop=0.1",
        "--alpha=0.01",
        "--device=cuda:1",
        f"--junit={ran.outputs['junit']}",
        "--markdown=a comment.md",
        "--baseline=main's records",
        "--strict",
        "--always",
        "--entry=strong one",
        "--entry=weak",
        "--",
        "my board",
    ]
    assert ran.outputs["conclusion"] == "undecided"
    assert ran.summary == "### Said\n"


def test_the_gates_exit_code_is_the_actions(recorder: Any) -> None:
    program = (recorder.programs / "rbvit").read_text(encoding="utf-8")
    recorder.program("rbvit", f"{program}\nexit 1")
    ran = recorder.action(board="small")
    assert (ran.code, ran.outputs["conclusion"]) == (1, "undecided")
    recorder.program("rbvit", "exit 130")
    assert recorder.action(board="small").code == 130


@pytest.mark.parametrize(
    ("install", "installed"),
    [
        ("", [str(ROOT)]),
        ("none", None),
        (" robustbench_vit>=0.1\n  ./mine[test] ", ["robustbench_vit>=0.1", "./mine[test]"]),
        ("x; touch owned", ["x;", "touch", "owned"]),
    ],
)
def test_what_is_installed(recorder: Any, install: str, installed: list[str] | None) -> None:
    ran = recorder.action(board="small", install=install)
    assert ran.code == 0, ran.log
    given = None if installed is None else ["install", "--disable-pip-version-check", *installed]
    assert ran.installed == given
    assert not (recorder.project / "owned").exists()


def test_python_is_set_up_when_asked_for(recorder: Any) -> None:
    assert recorder.action(board="small").used == []
    assert recorder.action(board="small", python="3.12").used == ["actions/setup-python@v5"]


def test_inputs_and_outputs_are_declared_and_used() -> None:
    text = ACTION.read_text(encoding="utf-8")
    said = yaml.safe_load(text)
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(said["inputs"])
    assert all(one.get("required") or "default" in one for one in said["inputs"].values())
    written = set(re.findall(r'echo "(\w+)=', text))
    assert {f"${{{{ steps.gate.outputs.{name} }}}}" for name in written} == {
        one["value"] for one in said["outputs"].values()
    }
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    assert [name for name in (*said["inputs"], *said["outputs"]) if f"`{name}`" not in page] == []
