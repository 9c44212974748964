"""The command line: list, show, check, table, and what errors look like."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import robustbench_vit
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import FOLDERS, builtin_layer
from robustbench_vit.cli import main
from robustbench_vit.models.catalogue import model_catalogue

CARD = """version: 1
about: Three steps.
reference: none
algorithm: pgd
loss: ce
steps: 3
step_size: 0.5
random_start: false
restarts: 1
"""


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


Rbvit = Callable[..., Ran]


@pytest.fixture
def rbvit(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rbvit:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return Ran(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's workspace with one attack."""
    folder = tmp_path / "mine"
    (folder / "attacks").mkdir(parents=True)
    (folder / "attacks" / "pgd-3.yaml").write_text(CARD, encoding="utf-8")
    return folder


def test_version(rbvit: Rbvit) -> None:
    assert rbvit("--version") == Ran(0, f"robustbench_vit {robustbench_vit.__version__}\n", "")


def test_without_a_command_it_explains_itself(rbvit: Rbvit) -> None:
    ran = rbvit()
    assert ran.code in (0, 2)
    assert "Commands" in ran.out + ran.err


@pytest.mark.parametrize("kind", ["models", "attacks", "defenses", "datasets", "boards"])
def test_list(rbvit: Rbvit, kind: str) -> None:
    ran = rbvit("list", kind, "--json")
    listed = json.loads(ran.out)
    assert ran.code == 0
    assert listed
    assert all(line["name"] and line["about"] for line in listed)
    plain = rbvit("list", kind).out
    assert all(f"{line['name']} " in plain and line["about"] in plain for line in listed)
    assert rbvit("list", kind.removesuffix("s"), "--json").out == ran.out


def test_list_mentions_what_else_can_be_named(rbvit: Rbvit) -> None:
    assert rbvit("list", "models").out.endswith(
        "Any timm classifier can be named too, for example vit_tiny_patch16_224.\n"
    )
    assert rbvit("list", "datasets").out.endswith("A path to an .npz file with arrays x and y can be named too.\n")


def test_list_lays_a_workspace_over_the_built_in_cards(
    rbvit: Rbvit, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "pgd-3 " not in rbvit("list", "attacks").out
    assert "pgd-3 " in rbvit("--workspace", str(mine), "list", "attacks").out
    monkeypatch.chdir(mine)
    assert "pgd-3 " in rbvit("list", "attacks").out


def test_list_shows_the_good_cards_and_fails_for_the_broken_ones(rbvit: Rbvit, mine: Path) -> None:
    (mine / "attacks" / "broken.yaml").write_text("steps: 3\n", encoding="utf-8")
    ran = rbvit("--workspace", str(mine), "list", "attacks")
    assert ran.code == 2
    assert "pgd-3 " in ran.out
    assert ran.err == "error: attacks/broken.yaml: missing field 'algorithm' (or 'lanes', for a cascade)\n"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in FOLDERS for name in Workspace((builtin_layer(),)).names(kind)]
    + [("model", name) for name in model_catalogue()]
    + [("dataset", "digits")],
)
def test_show_tells_where_it_stands_and_what_it_says(rbvit: Rbvit, kind: str, name: str) -> None:
    ran = rbvit("show", f"{kind}s", name)
    assert ran.code == 0
    first, second, *rest = ran.out.splitlines()
    assert first == f"{kind} {name}"
    assert Path(second.removeprefix("file: ")).is_file()
    assert len(rest) > 1
    assert rbvit("show", kind, name).out == ran.out


def test_show_fills_in_what_a_card_extends(rbvit: Rbvit) -> None:
    shown = rbvit("show", "attack", "apgd-t").out
    assert "step_size: 2\n" in shown
    assert "loss: dlr-targeted\n" in shown
    assert "reference: Croce and Hein 2020" in shown


def test_show_spells_out_the_lanes_of_a_cascade(rbvit: Rbvit) -> None:
    shown = rbvit("show", "attack", "autoattack").out
    assert all(f"\n    {lane}:\n" in shown for lane in ("apgd-ce", "apgd-t", "fab-t", "square", "apgd-ce-l1"))
    assert "      queries: 5000" in shown
    assert "\n  square:\n" in rbvit("show", "attack", "black-box").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "atacks"], "error: unknown kind 'atacks'; did you mean 'attacks'?\n"),
        (["show", "attack", "autoatack"], "error: unknown attack 'autoatack'; did you mean 'autoattack'?\n"),
        (["show", "board", "digits-lin"], "error: unknown board 'digits-lin'; did you mean 'digits-linf'?\n"),
        (["show", "dataset", "digit"], "error: unknown dataset 'digit'; did you mean 'digits'?\n"),
        (
            ["show", "model", "digits_vitt"],
            "error: unknown model 'digits_vitt'; did you mean 'digits_vit'? "
            "(timm's classifiers can be evaluated by name, but are documented by timm)\n",
        ),
        (["table", "digits-lin"], "error: unknown board 'digits-lin'; did you mean 'digits-linf'?\n"),
        (["table", "digits-linf", "--records", "none"], "error: no folder with records at none\n"),
        (["table", "digits-linf", "--write", "--check"], "error: --write and --check exclude each other\n"),
        (
            ["--workspace", "none", "list", "attacks"],
            "error: none is no workspace: it has none of the folders attacks, defenses, leaderboards\n",
        ),
        (
            ["check", "none"],
            "error: none is no workspace: it has none of the folders attacks, defenses, leaderboards\n",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(rbvit: Rbvit, arguments: list[str], message: str) -> None:
    assert rbvit(*arguments) == Ran(2, "", message)


@pytest.mark.parametrize("arguments", [["lst"], ["list"], ["table", "digits-linf", "--format", "xml"], ["--nothing"]])
def test_bad_usage_exits_with_2(rbvit: Rbvit, arguments: list[str]) -> None:
    ran = rbvit(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage" in ran.err


def test_verbose_shows_where_an_error_came_from(rbvit: Rbvit) -> None:
    ran = rbvit("-v", "show", "attack", "nothing-like-it")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert "\nerror: unknown attack 'nothing-like-it'" in ran.err


def test_check_counts_valid_cards(rbvit: Rbvit, mine: Path) -> None:
    count = sum(len(Workspace((builtin_layer(),)).names(kind)) for kind in FOLDERS)
    assert rbvit("check") == Ran(0, f"{count} cards are valid\n", "")
    assert rbvit("check", str(mine)) == Ran(0, f"{count + 1} cards are valid\n", "")


def test_check_names_every_fault(rbvit: Rbvit, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_vit.check._entry_faults", lambda *_: [])
    (mine / "attacks" / "one.yaml").write_text(CARD.replace("steps", "step"), encoding="utf-8")
    (mine / "attacks" / "two.yaml").write_text(CARD + "steps: 4\n", encoding="utf-8")
    assert rbvit("check", str(mine)) == Ran(
        2,
        "",
        "error: 3 faults\n"
        "       attacks/two.yaml, line 10: field 'steps' is written twice; keep one\n"
        "       attacks/one.yaml: missing field 'steps'; a card states every setting\n"
        "       attacks/one.yaml: unknown field 'step'; did you mean 'steps'?\n",
    )


def test_table_prints_each_format(rbvit: Rbvit) -> None:
    entries = {entry.name for entry in Workspace((builtin_layer(),)).board("digits-linf").card.entries}
    assert all(name in rbvit("table", "digits-linf").out for name in entries)
    assert {
        row["entry"] for row in json.loads(rbvit("table", "digits-linf", "--format", "json").out)["rows"]
    } == entries
    read = csv.DictReader(io.StringIO(rbvit("table", "digits-linf", "--format", "csv").out))
    assert {row["entry"] for row in read} == entries


def test_table_check_says_what_to_run(rbvit: Rbvit, mine: Path) -> None:
    built_in = (builtin_layer() / "leaderboards" / "digits-linf.yaml").read_text(encoding="utf-8")
    (mine / "leaderboards").mkdir()
    (mine / "leaderboards" / "copy.yaml").write_text(built_in, encoding="utf-8")
    where = ["--workspace", str(mine)]
    ran = rbvit(*where, "table", "copy", "--check")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("stale; run: rbvit table copy --write\n")
    assert rbvit(*where, "table", "copy", "--write").out.count("wrote ") == 5
    assert rbvit(*where, "table", "copy", "--write").out == "everything is fresh\n"
    assert rbvit(*where, "table", "copy", "--check") == Ran(0, "everything is fresh\n", "")
    (mine / "leaderboards" / "copy" / "table.csv").unlink()
    assert "table.csv: does not exist\n" in rbvit(*where, "table", "copy", "--check").err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list", "attacks"],
        ["list", "models"],
        ["list", "datasets"],
        ["show", "board", "digits-linf"],
        ["table", "digits-linf"],
    ],
)
def test_quick_commands_import_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, robustbench_vit.cli\n"
        "try:\n    robustbench_vit.cli.main(sys.argv[1:])\n"
        "except SystemExit as left:\n    code = left.code\n"
        "heavy = [name for name in ('torch', 'timm', 'sklearn', 'pandas') if name in sys.modules]\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    root = str(Path(robustbench_vit.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(robustbench_vit.__file__).parents[1])}
    command = [sys.executable, "-m", "robustbench_vit", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
