"""The ready workflow and what docs/ci.md shows: they fit action.yml and the commands, and their scripts are sound."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from robustbench_vit.cards import open_workspace
from robustbench_vit.cli import app

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "examples" / "robustness.yml"

pytestmark = pytest.mark.skipif(not WORKFLOW.is_file(), reason="needs the repository")


def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def workflow() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))


def scripts() -> list[str]:
    """What the action and the workflow run."""
    steps = [*action()["runs"]["steps"], *workflow()["jobs"]["gate"]["steps"]]
    return [step["run"] for step in steps if "run" in step]


def test_scripts_are_bash_without_expressions_in_them() -> None:
    """An expression inside a script would let a branch's name run commands."""
    assert len(scripts()) == 4
    for script in scripts():
        assert "${{" not in script
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_workflow_passes_inputs_that_exist() -> None:
    (gate,) = [step for step in workflow()["jobs"]["gate"]["steps"] if "robustbench_vit@" in step.get("uses", "")]
    declared = action()["inputs"]
    assert set(gate["with"]) <= set(declared)
    assert {name for name, one in declared.items() if one.get("required")} <= set(gate["with"])
    used = set(re.findall(r"steps\.gate\.outputs\.(\w+)", WORKFLOW.read_text(encoding="utf-8")))
    assert used <= set(action()["outputs"])


def test_the_workflow_asks_for_no_more_rights_than_it_needs() -> None:
    said = workflow()
    assert said["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert set(said[True]) == {"pull_request", "push"}, "YAML reads the key 'on' as true"
    commenting = [step for step in said["jobs"]["gate"]["steps"] if "gh pr" in step.get("run", "")]
    assert len(commenting) == 1
    assert "github.event_name == 'pull_request'" in commenting[0]["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in commenting[0]["if"]


def test_the_workflow_comments_with_the_report(recorder: Any) -> None:
    recorder.program("gh", 'printf "%s\\n" "$@" > gh.txt')
    (step,) = [step for step in workflow()["jobs"]["gate"]["steps"] if "gh pr" in step.get("run", "")]
    done = recorder.bash(step["run"], {**step["env"], "NUMBER": "7", "MARKDOWN": "a report.md"})
    assert done.returncode == 0, done.stderr
    said = (recorder.project / "gh.txt").read_text(encoding="utf-8").splitlines()
    assert said == ["pr", "comment", "7", "--edit-last", "--create-if-none", "--body-file", "a report.md"]


def blocks(language: str) -> list[str]:
    """What stands in docs/ci.md in this language."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_pages_tests_run(tested: Callable[..., pytest.RunResult], commit: Callable[..., Path]) -> None:
    """On the project's board, whose attacks take less time than those of the board that the page names."""
    commit("strong")
    of_boards, of_models = blocks("python")
    entries = open_workspace().board("digits-linf").card.entries
    assert set(re.findall(r'entry="(.*?)"', of_boards)) <= {entry.name for entry in entries}
    text = re.sub(r'board="digits-linf", entry=".*?"', 'board="small", entry="strong"', of_boards)
    tested(text).assert_outcomes(passed=3, warnings=1)  # undecided
    compile(of_models, "docs/ci.md", "exec")


def test_the_pages_yaml_fits() -> None:
    step, gitlab = (yaml.safe_load(text) for text in blocks("yaml"))
    assert set(step[0]["with"]) <= set(action()["inputs"])
    (line,) = [line for line in gitlab["robustness"]["script"] if line.startswith("rbvit")]
    _, name, board, *words = shlex.split(line)
    command = getattr(typer.main.get_command(app), "commands", {})[name]
    made = command.make_context(name, [board, *words])
    assert (made.params["board"], made.params["max_drop"]) == ("mine", 0.02)
    assert str(made.params["junit"]) == gitlab["robustness"]["artifacts"]["reports"]["junit"]
    assert [str(made.params["markdown"])] == gitlab["robustness"]["artifacts"]["paths"]
