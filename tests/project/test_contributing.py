"""CONTRIBUTING.md, followed literally: its files are put in place and its steps are taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

STEPS = """
import importlib.util, shutil, sys
from pathlib import Path
import torch
from robustbench_vit.cli import main
from robustbench_vit.data import load_dataset
from robustbench_vit.evaluation import evaluate
from robustbench_vit.cards import open_workspace
from robustbench_vit.check import check_workspace
from robustbench_vit.defenses.train import train_defense
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights

torch.set_num_threads(1)
here = Path.cwd()
for path in sorted(here.glob("robustbench_vit/*/*.py")):
    spec = importlib.util.spec_from_file_location(f"contributed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

workspace = open_workspace(here)
weights = train_defense("standard-constant", "digits_mlp", "digits", here / "trained", 0, "cpu", workspace, epochs=2)
board = here / "leaderboards" / "digits-corners"
board.mkdir()
shutil.copy(weights, board / "mlp.safetensors")
faults = [f for f in check_workspace(workspace)[1] if not f.startswith("leaderboards/digits-linf")]
assert faults == [], faults

model = build_model("digits_mlp")
sha256 = load_weights(model, board / "mlp.safetensors")
entry = {"name": "mlp", "model": "digits_mlp", "defense": "standard-constant", "weights_sha256": sha256}
data = load_dataset("digits").first(20)
record = evaluate(model, data, attack="random-corners-20", eps=0.1, workspace=workspace, entry=entry)
assert record.clean_accuracy > 0.5, record.clean_accuracy
assert {o.forwards for o in record.outcomes if o.robust} <= {21, 22}, record.outcomes
assert all(o.backwards == 0 for o in record.outcomes)
record.save(board / "records" / "mlp.json")
for arguments in (["--write"], ["--check"], []):
    try:
        main(["table", "digits-corners", *arguments])
    except SystemExit as left:
        assert not left.code, arguments
"""


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


def test_every_kind_of_contribution_has_its_file(files: dict[str, str]) -> None:
    folders = {Path(name).parent.as_posix() for name in files}
    modules = {f"robustbench_vit/{part}" for part in ("models", "attacks", "defenses")}
    assert folders == {*modules, "attacks", "defenses", "leaderboards"}
    assert not [name for name in files if (ROOT / name).exists()]


def test_the_steps_work(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "steps.py").write_text(STEPS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "steps.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 samples of digits/test, linf, eps 0.1" in done.stdout
    assert "| mlp " in done.stdout


def test_the_python_files_are_well_formed(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        if name.endswith(".py"):
            path = tmp_path / Path(name).name
            path.write_text(text, encoding="utf-8")
            command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
