"""`--precision`, `--compile` and `--channels-last` from the command line to the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.records import Record

Rbvit = Callable[..., Any]
CNN = "leaderboards/small/weights/cnn-pgd-at.safetensors"
ATTACK = ["attack", "digits_cnn", "--data", "samples.npz", "--weights", CNN, "--attack", "fgsm", "--eps", "0.1"]


def admit(folder: Path, precisions: str) -> None:
    """Lets the board's card name these precisions."""
    card = folder / "leaderboards" / "small.yaml"
    text = card.read_text(encoding="utf-8")
    assert "precision: fp32\n" in text
    card.write_text(text.replace("precision: fp32\n", f"precision: {precisions}\n"), encoding="utf-8")


def record(folder: Path, entry: str) -> Record:
    return Record.load(folder / "runs" / "small-smoke" / "records" / f"{entry}.json")


def test_an_attack_says_its_precision(rbvit: Rbvit, folder: Path) -> None:
    ran = rbvit(*ATTACK, "--n", "16", "--precision", "bf16", "--channels-last")
    assert (ran.code, ran.err) == (0, "")
    assert "\nsearched in bf16, every success rechecked in IEEE float32\n" in ran.out
    made = Record.load(ran.out.splitlines()[-1].removeprefix("record: "))
    assert made.protocol["precision"] == "bf16"
    assert (made.provenance["compiled"], made.provenance["channels_last"]) == (False, True)
    assert "searched in" not in rbvit(*ATTACK, "--n", "8").out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "bf61"], "unknown precision 'bf61'; did you mean 'bf16'?"),
        (["--precision", "float16"], "unknown precision 'float16'"),
        (["--precision", "tf32"], "precision tf32 exists on CUDA devices only, not on 'cpu'; use fp32 or bf16"),
        (["--compile"], "--compile (compiled=True) needs a C++ compiler, and there is no 'no-such-compiler';"),
    ],
)
def test_what_cannot_be_is_bad_input(
    rbvit: Rbvit, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    admit(folder, "[fp32, tf32, bf16]")
    for command in (ATTACK, ["run", "small"], ["plan", "small"]):
        ran = rbvit(*command, *options)
        assert (ran.code, ran.out) == (2, "")
        assert said in " ".join(ran.err.split())
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_board_admits_precisions(rbvit: Rbvit, folder: Path, command: str) -> None:
    ran = rbvit(command, "small", "--precision", "bf16")
    assert (ran.code, ran.out) == (2, "")
    assert " ".join(ran.err.split()).endswith(
        "leaderboards/small.yaml admits precision fp32, not bf16: its rows would not be comparable."
        " To let them share its table all the same, say `precision: [fp32, bf16]` on the card"
    )
    assert not (folder / "runs").exists()


def test_rows_of_admitted_precisions_share_a_table(rbvit: Rbvit, folder: Path, given: list[str]) -> None:
    admit(folder, "[bf16, fp32]")
    assert rbvit("run", "small", "--smoke", "--entry", "cnn").code == 0
    assert record(folder, "cnn").protocol["precision"] == "bf16"  # the card's first
    assert rbvit("run", "small", "--smoke", "--entry", "vit", "--precision", "fp32").code == 0
    assert record(folder, "vit").protocol["precision"] == "fp32"
    ran = rbvit("table", "small", "--records", "runs/small-smoke/records", "--format", "csv")
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split(",")[:2] for line in ran.out.splitlines()]
    assert (rows[0], sorted(rows[1:])) == (["entry", "precision"], [["cnn", "bf16"], ["vit", "fp32"]])


def test_rows_of_another_precision_are_computed_anew(rbvit: Rbvit, folder: Path, given: list[str]) -> None:
    admit(folder, "[fp32, bf16]")
    command = ["run", "small", "--smoke", "--entry", "cnn"]
    rbvit(*command)
    assert "cnn: already complete, nothing computed" not in rbvit(*command, "--precision", "bf16").out
    assert "cnn: already complete, nothing computed" in rbvit(*command, "--channels-last").out  # roundings only
    assert record(folder, "cnn").protocol["precision"] == "fp32"


def test_a_plan_measures_what_would_run(rbvit: Rbvit, folder: Path) -> None:
    admit(folder, "[fp32, bf16]")
    ran = rbvit("plan", "small", "--entry", "cnn", "--precision", "bf16", "--channels-last", "--width", "16")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[2] == "searched in bf16, channels last; successes are rechecked in IEEE float32"
    plain = rbvit("plan", "small", "--entry", "cnn", "--width", "16").out.splitlines()
    assert plain[1].split()[:2] != ran.out.splitlines()[1].split()[:2]  # another protocol
    assert not any(line.startswith("searched") for line in plain)
