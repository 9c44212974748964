"""`rbvit attack --pictures` and `rbvit pictures`."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vit.cli import main
from tests.pictures.conftest import WEIGHTS, Made

Rbvit = Callable[..., tuple[int, str, str]]
ATTACK = ["attack", "digits_vit", "--data", "digits", "--weights", str(WEIGHTS), "--attack", "fgsm", "--smoke"]


@pytest.fixture
def rbvit(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rbvit:
    """Runs a command in an empty folder; exit code, output, errors."""
    importlib.import_module("robustbench_vit.cli.pictures")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_an_attack_draws_and_its_record_draws_the_same(rbvit: Rbvit) -> None:
    code, out, err = rbvit(*ATTACK, "--eps", "0.15", "--pictures", "sheets", "--pictures-n", "3", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    (sheet,) = Path("sheets").iterdir()
    assert said["pictures"] == str(sheet)
    assert sheet.stem == Path(said["record"]).stem
    code, out, err = rbvit("pictures", said["record"], "-o", "again", "--n", "3", "--weights", str(WEIGHTS))
    assert (code, out, err) == (0, f"pictures: again/{sheet.name}\n", "")
    assert Path("again", sheet.name).read_bytes() == sheet.read_bytes()


def test_without_the_option_nothing_is_drawn(rbvit: Rbvit) -> None:
    code, out, _ = rbvit(*ATTACK)
    assert code == 0
    assert "pictures" not in out
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_a_folder_that_cannot_be_used_stops_before_the_attack(rbvit: Rbvit) -> None:
    Path("sheets").write_text("")
    code, out, err = rbvit(*ATTACK, "--pictures", "sheets")
    assert (code, out, err) == (2, "", "error: sheets is a file; give a folder for the pictures\n")
    assert not Path("runs").exists()
    assert rbvit(*ATTACK, "--pictures", "sheets", "--pictures-n", "0")[0] == 2


def test_records_without_images_and_other_weights_are_refused(rbvit: Rbvit, made: Made) -> None:
    record = shutil.copy(made.path, Path.cwd())
    code, _, err = rbvit("pictures", record, "-o", "sheets", "--weights", str(WEIGHTS))
    assert code == 2
    assert err.startswith("error: the record has no images beside it (NAME.images.safetensors)")
    shutil.copy(made.path.with_suffix(".images.safetensors"), Path.cwd())
    other = WEIGHTS.with_name("vit-standard.safetensors")
    code, _, err = rbvit("pictures", record, "-o", "sheets", "--weights", str(other))
    assert code == 2
    assert err.startswith("error: other weights than the record's")
    assert not list(Path("sheets").iterdir())
    assert rbvit("pictures", record, "-o", "sheets", "--weights", str(WEIGHTS), "--no-attention")[0] == 0
    assert [sheet.name for sheet in Path("sheets").iterdir()] == ["vit.png"]
