"""What installs, and what the two commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in found}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    found = [Requirement(one) for one in (*project["dependencies"], *extras)]
    return [one for one in found if one.name != "robustbench_vit"]


def test_every_constraint_is_one_version() -> None:
    for name, one in constraints().items():
        assert re.fullmatch(r"==[\w.]+", str(one.specifier)), name


@pytest.mark.parametrize("requirement", requirements(), ids=lambda one: one.name)
def test_the_constraints_fit_what_is_required(requirement: Requirement) -> None:
    version = str(constraints()[canonicalize_name(requirement.name)].specifier).removeprefix("==")
    assert version in requirement.specifier


def test_every_requirement_has_a_lower_bound() -> None:
    assert not [one.name for one in requirements() if not one.specifier]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("leaderboard", "rbvit run leaderboards/digits-linf.yaml"),
        ("test", "pytest"),
        ("bench", "-m benchmarks"),
        ("evidence", "-m benchmarks.evidence"),
    ],
)
def test_the_targets_of_the_makefile(target: str, runs: str) -> None:
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert runs in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_python_is_refused_with_a_message(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    command = ["make", "leaderboard", f"PYTHON={old}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert (
        f"robustbench_vit needs Python 3.11 or newer; '{old}' is Python 3.8.1. "
        "Name another one: make leaderboard PYTHON=python3.12\n"
    ) in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_ci_script_runs_every_command_and_stops_at_a_failure(tmp_path: Path) -> None:
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "run", script)
    assert os.access(script, os.X_OK)
    makefile = tmp_path / "Makefile"
    targets = "leaderboard:\n\t@echo racing\ngate:\n\t@echo gating\n"
    makefile.write_text(f"test:\n\t@echo testing\n{targets}", encoding="utf-8")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = [done.stdout.index(words) for words in ("testing", "racing", "gating", "everything passed")]
    assert said == sorted(said)
    makefile.write_text(f"test:\n\t@exit 1\n{targets}", encoding="utf-8")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED: make test" in done.stderr
    assert "racing" not in done.stdout
