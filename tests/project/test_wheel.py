"""The built wheel holds the cards, and works from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from robustbench_vit.cards.workspace import FOLDERS

ROOT = Path(__file__).parents[2]
CARD = "extends: pgd-40\nversion: 1\nabout: Three steps.\nreference: none\nsteps: 3\n"

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the repository")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """What a Python that finds only the installed package prints."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_card_and_nothing_else_from_outside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS.values():
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"robustbench_vit/_workspace/{folder}/{path.name}" in names
        for path in (ROOT / folder).glob("*/reported/*.json"):
            assert f"robustbench_vit/_workspace/{path.relative_to(ROOT).as_posix()}" in names
    assert "robustbench_vit/boards/references.bib" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"robustbench_vit"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_cards_are_found_inside_the_package(installed: Path, tmp_path: Path) -> None:
    code = (
        "from robustbench_vit.cards import open_workspace; w = open_workspace();"
        "print(w.layers[0]); print(w.attack('autoattack').path); print(len(w.layers))"
    )
    layer, card, layers = run(installed, tmp_path, "-c", code).splitlines()
    assert Path(layer) == installed.resolve() / "robustbench_vit" / "_workspace"
    assert Path(card).is_relative_to(layer)
    assert layers == "1"


def test_the_command_works_and_a_users_workspace_lies_over_it(installed: Path, tmp_path: Path) -> None:
    assert "autoattack " in run(installed, tmp_path, "-m", "robustbench_vit", "list", "attacks")
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "pgd-3.yaml").write_text(CARD, encoding="utf-8")
    listed = run(installed, tmp_path, "-m", "robustbench_vit", "list", "attacks")
    assert "pgd-3 " in listed
    assert "autoattack " in listed
    assert "steps: 3\n" in run(installed, tmp_path, "-m", "robustbench_vit", "show", "attack", "pgd-3")


def test_the_entry_points_are_installed(installed: Path) -> None:
    found = [point for one in distributions(path=[str(installed)]) for point in one.entry_points]
    assert sorted((point.name, point.value) for point in found) == [
        ("rbvit", "robustbench_vit.cli:main"),
        ("robustbench_vit", "robustbench_vit.testing.plugin"),
    ]
