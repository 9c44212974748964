"""What the documents say exists and works."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import robustbench_vit
from robustbench_vit.boards.generated import block
from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.cli import app, main
from robustbench_vit.records import Outcome, Record, Status

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/architectures.md",
    "docs/architectures-speed.md",
    "docs/boards.md",
    "docs/records.md",
    "docs/datasets.md",
    "docs/digits-vit.md",
    "docs/intake.md",
    "docs/checks.md",
    "docs/ci.md",
    "docs/compare.md",
    "docs/gate.md",
    "docs/gate-evidence.md",
    "docs/norms.md",
    "docs/training.md",
    "docs/defenses.md",
    "docs/ground-truth.md",
    "docs/parity.md",
    "docs/performance.md",
    "docs/pictures.md",
    "docs/precision.md",
    "docs/retraining.md",
    "docs/reliability.md",
    "docs/sequential.md",
    "docs/statistics.md",
    "docs/verify.md",
    "docs/vit-recipe.md",
    "attacks/README.md",
    "defenses/README.md",
    "leaderboards/README.md",
]
COMMANDS: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(page: str) -> list[str]:
    """Every `rbvit …` command that stands in a code span or on an indented line, comments cut off."""
    text = text_of(page).replace("\\\n", " ")
    spans = re.findall(r"`(rbvit [^`]+)`", text)
    lines = [line.strip() for line in text.splitlines() if line.startswith("    rbvit ")]
    return [command.split(" #")[0].strip() for command in (*spans, *lines)]


NAMED = sorted({(page, command) for page in PAGES if (ROOT / page).is_file() for command in commands_in(page)})


@pytest.mark.parametrize(("page", "command"), NAMED)
def test_commands_in_documents_exist(page: str, command: str) -> None:
    words = [word for word in command.split()[1:] if word != "DIR"]
    names = [word for word in words if not word.startswith("-")]
    assert names[0] in COMMANDS
    inner = getattr(COMMANDS[names[0]], "commands", {})  # of a group
    named = inner.get(names[1]) if inner and len(names) > 1 else COMMANDS[names[0]]
    assert named is not None, names[1]
    options = {option for parameter in named.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_stands_in_the_readme(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert "Usage" in capsys.readouterr().out
    assert f"rbvit {name}" in text_of("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(page)):
        if "://" not in target and not target.endswith("/records"):  # records appear with the first committed run
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("name", Workspace((builtin_layer(),)).names("board"))
def test_the_readme_shows_every_board_or_where_its_table_is(name: str) -> None:
    text = text_of("README.md")
    assert block(name).search(text) or f"](leaderboards/{name}/table.md)" in text


def test_the_readmes_cards_load(tmp_path: Path) -> None:
    found = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", text_of("README.md"), re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    for name, content in found:
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(content, encoding="utf-8")
    workspace = open_workspace(tmp_path)
    assert workspace.attack("pgd-500").card.settings["restarts"] == 5
    assert workspace.board("mine").card.entries[0].name == "mine"


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```$", text_of("README.md"), re.DOTALL | re.MULTILINE)
    assert len(code) == 1
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 4, 4, generator=generator)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    with torch.no_grad():  # one class wins by very little, so that every sample falls at once
        net[1].weight.normal_(generator=generator)
        net[1].bias.zero_()
    model = robustbench_vit.normalised(net, [0.5] * 3, [0.5] * 3).eval()
    y = model(x).argmax(1)
    monkeypatch.setattr("builtins.print", lambda *_: None)
    names: dict[str, Any] = {"net": net, "x": x, "y": y}
    exec(code[0].replace("8 / 255", "0.5"), names)
    assert names["record"].clean_accuracy == 1
    assert names["record"].robust_accuracy == 0
    assert len(names["frame"]) == 4
    assert robustbench_vit.Record.load("my-model.json").verdicts == names["record"].verdicts


def test_the_page_on_records_names_every_field() -> None:
    page = text_of("docs/records.md")
    outcome = Outcome("a", "b", "linf", 0.1, "untargeted", Status.SURVIVED)
    top = Record({"name": "x"}, {}, (outcome,), (), {}).to_dict()
    fields = [*top, *(field.name for field in dataclasses.fields(Outcome)), *Status]
    assert [field for field in fields if f"`{field}`" not in page] == []


def test_versions_agree() -> None:
    version = robustbench_vit.__version__
    assert f"\n## {version}" in text_of("CHANGELOG.md")
    assert f"\nversion: {version}\n" in text_of("CITATION.cff")


def test_nothing_names_a_path_of_somebodys_machine() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(rb"(?<![\w.}])/(?:home|root|work|Users|mnt)/\w")
    found = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    assert found
    assert [name for name in found if private.search((ROOT / name).read_bytes())] == []
