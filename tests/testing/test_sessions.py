"""Whole sessions, as programs in a clean folder: what is imported, two processes at once, the entry point."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from robustbench_vit.cards import open_workspace
from robustbench_vit.records import Record
from robustbench_vit.records.journal import open_journal
from robustbench_vit.testing.evaluating import Evaluations

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
TEST = """import pytest

@pytest.mark.robustness(board="small", entry="weak", min=0.9)
def test_{number}(): pass
"""


def program(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest as a program in `folder`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    one = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "120"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**inherited, **one, **environment}, check=False
    )


def test_a_session_without_marked_tests_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    assert 'robustbench_vit.testing.plugin' in sys.modules\n"
        "    heavy = ('torch', 'timm', 'sklearn', 'pandas', 'scipy', 'numpy', 'pydantic', 'yaml')\n"
        "    assert [name for name in heavy if name in sys.modules] == []\n",
        encoding="utf-8",
    )
    done = program(
        tmp_path, "-q", "-p", "robustbench_vit.testing.plugin", "--strict-markers", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_share_what_they_evaluate(project: Path) -> None:
    """Two of xdist's workers have a test each about one entry; one evaluates it, the other waits for its rows."""
    for number in (1, 2):
        (project / f"test_{number}.py").write_text(TEST.format(number=number), encoding="utf-8")
    options = ("-p", "robustbench_vit.testing.plugin", "-p", "xdist", "-n", "2", "--dist", "each", "-v")
    done = program(project, *options, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "4 failed" in done.stdout, "each test on each worker"
    assert "[gw0]" in done.stdout
    assert "[gw1]" in done.stdout
    _, _, summary = done.stdout.partition("= robust accuracy =")
    assert summary.count("weak (small): ") == 1
    (journal,) = (project / ".pytest_cache").rglob("journal.sqlite")
    with closing(sqlite3.connect(journal)) as rows:
        assert rows.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        assert rows.execute("SELECT count(*) FROM clean").fetchone() == (20,)
        assert rows.execute("SELECT count(*) FROM spent WHERE attack = 'quick'").fetchone() == (1,)


def test_an_entry_that_another_process_evaluates_is_waited_for(
    project: Path, made: dict[str, Record], tmp_path: Path
) -> None:
    workspace = open_workspace(project)
    folder = tmp_path / "journals"
    first = Evaluations(folder).record(workspace.board("small"), "strong", workspace)
    (journal,) = folder.rglob("journal.sqlite")
    found: list[Record] = []

    def second() -> None:
        found.append(Evaluations(folder).record(workspace.board("small"), "strong", workspace))

    waiting = threading.Thread(target=second)
    with open_journal(journal.parent):
        waiting.start()
        waiting.join(1.5)
        assert not found, "it must not read what another one is writing"
    waiting.join(60)
    assert found[0].outcomes == first.outcomes == made["strong"].outcomes


REGISTERED = [point for point in entry_points(group="pytest11") if point.name == "robustbench_vit"]


@pytest.mark.skipif(not REGISTERED, reason="this environment's robustbench_vit was installed before it had the plugin")
def test_the_plugin_is_found_by_itself(tmp_path: Path) -> None:
    done = program(tmp_path, "--markers")
    assert done.returncode == 0, done.stderr
    assert "@pytest.mark.robustness(board, entry, min=None, " in done.stdout
    assert {point.value for point in REGISTERED} == {"robustbench_vit.testing.plugin"}


def test_options_and_fixture_are_described(tmp_path: Path) -> None:
    asked = ("-p", "robustbench_vit.testing.plugin")
    said = program(tmp_path, *asked, "--help", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1").stdout
    assert [f"--robustness-{name}" in said for name in ("n", "skip", "strict", "dir", "device")] == [True] * 5
    assert "robustness_workspace (string):" in said
    said = program(tmp_path, *asked, "--fixtures", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1").stdout
    assert "robust_accuracy" in said


def test_models_that_a_conftest_registers_can_be_evaluated(
    pytester: pytest.Pytester, tested: Callable[..., pytest.RunResult], project: Path
) -> None:
    """Entries are evaluated in the process of the tests, which knows them."""
    pytester.makeconftest(
        "from timm.models import register_model\n"
        "from robustbench_vit.models.build import build_model\n\n"
        "@register_model\n"
        "def my_own_cnn(pretrained=False, **kwargs):\n"
        "    return build_model('digits_cnn')\n"
    )
    card = project / "leaderboards" / "small.yaml"
    card.write_text(
        card.read_text(encoding="utf-8").replace("model: digits_cnn", "model: my_own_cnn"), encoding="utf-8"
    )
    ran = tested("@pytest.mark.robustness(board='small', entry='strong', min=0.5)\ndef test_it(): pass")
    ran.assert_outcomes(passed=1)
