"""A small project with a board, and ways to run its tests: in this process, or as a program in a clean folder."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.cards import open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.records import Record
from robustbench_vit.testing.evaluating import Evaluations

# A run of pytest in this process forgets what it imported, and torch and its like can't be imported a second time.
_KEPT = ("sklearn.datasets", "scipy.special", "timm", "pandas", "xdist", "robustbench_vit.models.digits")
for _name in (*_KEPT, "robustbench_vit.testing.models"):
    importlib.import_module(_name)

PLUGIN = "-p robustbench_vit.testing.plugin -p xdist"

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
