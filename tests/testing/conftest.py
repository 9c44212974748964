"""A small project with a board, and ways to run its tests: in this process, or as a program in a clean folder."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustbench_vit.cards import open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.records import Record
from robustbench_vit.testing.evaluating import Evaluations

# A run of pytest in this process forgets what it imported, and torch and its like can't be imported a second time.
_KEPT = ("sklearn.datasets", "scipy.special", "timm", "pandas", "xdist", "robustbench_vit.models.digits")
for _name in (*_KEPT, "robustbench_vit.testing.models"):
    importlib.import_module(_name)

PLUGIN = "-p robustbench_vit.testing.plugin -p xdist"

ROOT = Path(__file__).parents[2]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
WEIGHTS = builtin_layer() / "leaderboards" / "digits-linf" / "weights"
SAMPLES = 20

_HEAD = "version: 1\nabout: Shortened for tests.\nreference: none\n"
_ATTACKS = {"quick": "extends: pgd-40\nsteps: 10\nrestarts: 1\n", "quicker": "extends: fgsm\n"}
_BOARD = f"""{_HEAD}data: {{name: digits, split: test, samples: {SAMPLES}}}
norm: linf
eps: EPS
attacks: [quicker, quick]
precision: fp32
seed: 0
confidence: 0.95
interval: wilson
alpha: 0.05
columns: [entry, clean, quicker, 'quick:interval']
entries:
  - {{name: strong, model: digits_cnn, defense: pgd-at, weights: strong.safetensors}}
  - {{name: weak, model: digits_cnn, defense: standard, weights: weak.safetensors}}
"""


def write_project(folder: Path) -> None:
    """Attacks `quicker` and `quick`, and the boards `small` and `curve` (two eps), both with trained weights."""
    for kind in ("attacks", "leaderboards"):
        (folder / kind).mkdir(parents=True)
    for name, text in _ATTACKS.items():
        (folder / "attacks" / f"{name}.yaml").write_text(_HEAD + text, encoding="utf-8")
    for board, eps in (("small", "0.2"), ("curve", "[0.2, 8/255]")):
        (folder / "leaderboards" / f"{board}.yaml").write_text(_BOARD.replace("EPS", eps), encoding="utf-8")
        (folder / "leaderboards" / board).mkdir()
        for name, trained in (("strong", "cnn-pgd-at"), ("weak", "cnn-standard")):
            shutil.copy(WEIGHTS / f"{trained}.safetensors", folder / "leaderboards" / board / f"{name}.safetensors")


@pytest.fixture(scope="session")
def journals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of test projects find what was evaluated already."""
    return tmp_path_factory.mktemp("journals")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, journals: Path) -> dict[str, Record]:
    """The records of the board `small`, by entry."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder / "mine")
    workspace = open_workspace(folder / "mine")
    board = workspace.board("small")
    evaluations = Evaluations(journals)
    return {entry.name: evaluations.record(board, entry.name, workspace) for entry in board.card.entries}


@pytest.fixture
def commit(made: dict[str, Record], project: Path) -> Callable[..., Path]:
    """Makes the record of an entry (`of`, by default the same) the board's record of an entry; returns its path."""

    def committed(entry: str, of: str | None = None, **changes: Any) -> Path:
        record = made[of or entry]
        record = replace(record, entry={**record.entry, "name": entry}, **changes)
        return record.save(project / "leaderboards" / "small" / "records" / f"{entry}.json")

    return committed


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, journals: Path) -> Path:
    """The project, which is the current folder; its tests know the plugin whether or not it is registered."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", f"{PLUGIN} --robustness-dir={journals}")
    write_project(pytester.path)
    return pytester.path


@pytest.fixture
def tested(pytester: pytest.Pytester, project: Path) -> Callable[..., pytest.RunResult]:
    """Runs pytest in this process on a test module with this text."""

    def run(text: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=f"import pytest\n\n{text}")
        return pytester.runpytest_inprocess(*options)

    return run


def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Ran:
    """What the action left behind."""

    code: int
    log: str  # stdout and stderr of all steps
    summary: str
    outputs: dict[str, str]
    installed: list[str] | None  # the arguments of pip, if it was called
    used: list[str]  # other actions


class Runner:
    """A runner's folders and programs: `python` that installs nothing, and this tree's `rbvit`."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self.programs, self.temporary = folder / "bin", folder / "temp"
        for made in (self.programs, self.temporary):
            made.mkdir(parents=True)
        self.pip = folder / "pip.txt"
        self.program(
            "python",
            f'if [[ "$1 $2" == "-m pip" ]]; then printf "%s\\n" "${{@:3}}" > "{self.pip}"; exit 0; fi\n'
            f'exec "{sys.executable}" "$@"',
        )
        self.program("rbvit", f'exec "{sys.executable}" -m robustbench_vit "$@"')

    def program(self, name: str, script: str) -> None:
        """Puts a program of this name first on the path."""
        path = self.programs / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def bash(self, script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Runs a step's script as `shell: bash` does."""
        file = self.temporary / "step.sh"
        file.write_text(script, encoding="utf-8")
        given = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "GITHUB"))},
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RUNNER_TEMP": str(self.temporary),
            "GITHUB_WORKSPACE": str(self.project),
            "GITHUB_STEP_SUMMARY": str(self.temporary / "summary.md"),
            "GITHUB_OUTPUT": str(self.temporary / "output.txt"),
            **environment,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.project, env=given, check=False)

    def action(self, **inputs: str) -> Ran:
        """Runs the action with these inputs ('_' for '-'), the others at their defaults."""
        declared = action()["inputs"]
        values = {name: str(one.get("default", "")) for name, one in declared.items()}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        assert values.keys() == declared.keys()
        known = {f"inputs.{name}": value for name, value in values.items()} | {"github.action_path": str(ROOT)}
        code, log, used = 0, "", []
        for step in action()["runs"]["steps"]:
            if code or not _wanted(step, values):
                continue
            if "uses" in step:
                used.append(step["uses"])
                continue
            assert step["shell"] == "bash"
            environment = {name: _filled(text, known) for name, text in step.get("env", {}).items()}
            done = self.bash(step["run"], environment)
            code, log = done.returncode, log + done.stdout + done.stderr
        return Ran(code, log, self._read("summary.md"), self._outputs(), self._installed(), used)

    def _read(self, name: str) -> str:
        path = self.temporary / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._read("output.txt").splitlines())

    def _installed(self) -> list[str] | None:
        return self.pip.read_text(encoding="utf-8").splitlines() if self.pip.is_file() else None


def _wanted(step: dict[str, Any], inputs: dict[str, str]) -> bool:
    """The only condition that steps have: an input that isn't empty."""
    if "if" not in step:
        return True
    found = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) != '' \}\}", step["if"])
    assert found is not None, step["if"]
    return inputs[found.group(1)] != ""


def _filled(text: str, known: dict[str, str]) -> str:
    return EXPRESSION.sub(lambda found: known[found.group(1)], text)


@pytest.fixture
def runner(project: Path, commit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner in a checkout of the project, with the entries' records committed."""
    commit("strong")
    commit("weak")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Baseline"]):
        subprocess.run([*git, *command], cwd=project, check=True)
    return Runner(tmp_path_factory.mktemp("runner"), project)


@pytest.fixture
def recorder(runner: Runner) -> Runner:
    """A runner whose `rbvit` only writes down its arguments and the reports."""
    runner.program(
        "rbvit",
        'printf "%s\\n" "$@" > rbvit.txt\n'
        'for word in "$@"; do case "$word" in\n'
        '  --junit=*) echo "<a><property name=\\"conclusion\\" value=\\"undecided\\"/></a>" > "${word#*=}" ;;\n'
        '  --markdown=*) echo "### Said" > "${word#*=}" ;;\n'
        "esac; done",
    )
    return runner
