"""rbvit norms: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json

import pytest

from robustbench_vit.cli import main
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import save_weights


def run(*arguments: str) -> int:
    """The exit code of `rbvit norms`."""
    try:
        main(["norms", *arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture
def weights(tmp_path):
    """Two files of weights, of the same name in two folders."""
    paths = []
    for folder in ("a", "b"):
        paths.append(tmp_path / folder / "w.safetensors")
        save_weights(build_model("digits_cnn"), paths[-1])
    return [str(path) for path in paths]


def test_fresh_weights_are_the_same_each_time(capsys):
    assert run("digits_cnn", "--data", "digits", "--ord", "inf") == 0
    first = capsys.readouterr().out
    assert first.startswith("digits_cnn (fresh weights): 9 layers\nlayer              kind    input   linf\n")
    assert run("digits_cnn", "--input-size", "1,8,8", "--ord", "inf") == 0
    assert capsys.readouterr().out == first


def test_several_weights_are_compared_and_written(weights, tmp_path, capsys):
    table = tmp_path / "out" / "norms.csv"
    args = [word for path in weights for word in ("--weights", path)]
    assert run("digits_cnn", "--data", "digits", "--ord", "1,2", "--csv", str(table), *args) == 0
    out = capsys.readouterr().out
    assert "Linear and Conv layers\nmodel" in out
    assert f"wrote {table}" in out
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 18
    assert {row["model"] for row in rows} == {path.removesuffix(".safetensors") for path in weights}


def test_entries_of_a_board_as_json(capsys):
    entries = ("--entry", "ic-cnn-standard", "--entry", "cnn-standard")
    assert run("--board", "digits-linf", *entries, "--ord", "1", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in report["models"]] == ["cnn-standard", "ic-cnn-standard"]
    kinds = {layer["kind"] for each in report["models"] for layer in each["layers"]}
    assert kinds == {"Conv2d", "Linear", "BatchNorm1d"}


def test_a_defenses_architecture_is_built(capsys):
    assert run("digits_cnn", "--data", "digits", "--defense", "ic-layer", "--ord", "1", "--json") == 0
    layers = json.loads(capsys.readouterr().out)["models"][0]["layers"]
    assert sum(layer["kind"] == "BatchNorm1d" for layer in layers) == 7


def test_the_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "norms.png"
    assert run("digits_cnn", "--data", "digits", "--ord", "inf", "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a MODEL, or a board with --board NAME"),
        (["digits_cnn", "--board", "digits-linf"], "name a MODEL, or a board"),
        (["digits_cnn", "--entry", "cnn-standard"], "--entry names a row of a board: give --board, too"),
        (["--board", "digits-linf", "--defense", "ic-layer"], "a board says how its entries are built"),
        (["--board", "digits-linf", "--entry", "cnn-standrad"], "did you mean 'cnn-standard'?"),
        (["digits_cnn"], "no image size of its own; give --data NAME or --input-size C,H,W"),
        (["digits_cnn", "--input-size", "8,8"], "expected channels, height and width, such as 3,224,224, got '8,8'"),
        (["digits_cnn", "--data", "digits", "--ord", "1,3"], "layer norms are of order 1, 2 or inf, not '3'"),
        (["digits_cnn", "--data", "digits", "--weights", "nowhere.safetensors"], "no weights file at"),
        (["digits_cnn", "--data", "digits", "--plot", "norms.pdf"], "--plot writes a .png file, not 'norms.pdf'"),
        (["digits_cmm", "--data", "digits"], "unknown model 'digits_cmm'; did you mean"),
    ],
)
def test_refusals(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
