"""`rbvit run --smoke`, `plan`, `attack` and `train` from end to end, on small things."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.records import Record
from robustbench_vit.running.workers import Message, run_tasks

Rbvit = Callable[..., Any]
CNN = "leaderboards/small/weights/cnn-pgd-at.safetensors"
ATTACK = ["attack", "digits_cnn", "--data", "samples.npz", "--weights", CNN, "--attack", "short"]
QUICK = """version: 1
about: One epoch that gets somewhere.
reference: none
extends: standard
schedule: {name: cosine, warmup_epochs: 0, final_factor: 0.1}
batch_size: 16
"""


def test_a_run_prints_the_table_and_keeps_records(finished: Any) -> None:
    out = finished.ran.out
    for name, outcomes in finished.outcomes.items():
        short = [o for o in outcomes if o.attack == "short"]
        robust = 100 * sum(o.robust for o in short) / len(short)
        (row,) = (line for line in out.splitlines() if line.startswith(f"| {name}"))
        assert f" {robust:.1f} [" in row
    assert "\nrecords: runs/small/records\n" in out
    assert out.endswith("\nvit: no committed record\ncnn: no committed record\n")
    assert "nothing computed" not in out
    record = Record.load(finished.run / "records" / "cnn.json")
    assert {f.level for f in record.findings} == {"pass"}
    assert record.provenance["workers"] == 2
    assert record.provenance["seconds"].keys() == {"fgsm", "short"}


def test_smoke_runs_and_claims_nothing(rbvit: Rbvit, folder: Path, given: list[str]) -> None:
    ran = rbvit("run", "small", "--smoke")
    assert (ran.code, ran.err, given) == (0, "", ["vit", "cnn"])
    assert ran.out.startswith("Smoke profile: 32 samples and shortened attacks; these numbers mean nothing.\n")
    assert "robust accuracy" not in ran.out.lower()
    assert "committed record" not in ran.out
    record = Record.load(folder / "runs" / "small-smoke" / "records" / "cnn.json")
    assert (record.n, record.protocol["profile"]) == (32, "smoke")
    assert max(o.backwards for o in record.outcomes) <= 4 * 4 * 2
    assert not (folder / "runs" / "small").exists()


def test_smoke_of_the_built_in_board(rbvit: Rbvit, folder: Path, given: list[str]) -> None:
    """The reference's whole cascade, shortened; a full run of it takes minutes."""
    ran = rbvit("run", "digits-linf", "--smoke", "--entry", "cnn-standard", "--entry", "vit-pgd-at")
    assert (ran.code, ran.err, given) == (0, "", ["vit-pgd-at", "cnn-standard"])
    assert "robust accuracy" not in ran.out.lower()
    assert [path.name for path in folder.glob("runs/*/records/*.json")] != []


def test_a_smoke_attack_claims_nothing(rbvit: Rbvit, folder: Path) -> None:
    ran = rbvit(*ATTACK, "--eps", "0.1", "--smoke")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("smoke profile: it runs; ")
    assert "which means nothing\n" in ran.out
    as_json = rbvit(*ATTACK, "--eps", "0.1", "--smoke", "--json")
    for text in (ran.out, as_json.out):
        assert "robust accuracy" not in text.lower().replace("_", " ")


def test_plan(rbvit: Rbvit, folder: Path) -> None:
    ran = rbvit("plan", "small")
    assert (ran.code, ran.err) == (0, "")
    head, tail = ran.out.split("\n\n")
    assert head.splitlines()[0] == "small: 48 samples of npz/samples.npz, linf, eps 0.1"
    assert head.splitlines()[1].endswith(", seed 0, results in runs/small")
    assert head.splitlines()[2:] == [
        "fgsm:",
        "  fgsm: 1 row a sample, 2 forwards, 1 backwards",
        "short:",
        "  short-square: 1 row a sample, 81 forwards, 0 backwards",
        "  short-apgd: 1 row a sample, 13 forwards, 13 backwards",
        "  short-apgd-t: 3 rows a sample, 27 forwards, 27 backwards",
        "  short-fab: 2 rows a sample, 24 forwards, 12 backwards",
        "a robust sample costs at most 148 forward and 53 backward passes",
    ]
    vit, cnn = tail.splitlines()
    assert vit.startswith("vit: digits_vit + standard, 102,538 parameters, width 256, ")
    assert cnn.startswith("cnn: digits_cnn + pgd-at, 38,058 parameters, width 256, ")
    assert "at most" in cnn
    assert not (folder / "runs").exists()
    few = rbvit("plan", "small", "--entry", "cnn", "--n", "7", "--width", "16").out
    assert few.startswith("small: 7 samples ")
    assert few.splitlines()[-1].startswith("cnn: digits_cnn + pgd-at, 38,058 parameters, width 16, ")


def test_the_plan_bounds_what_a_sample_costs(finished: Any) -> None:
    """148 forwards and 53 backwards, one forward more for each row's recheck."""
    for outcomes in finished.outcomes.values():
        samples = {o.sample for o in outcomes}
        for sample in samples:
            spent = [o for o in outcomes if o.sample == sample]
            assert sum(o.forwards for o in spent) <= 148 + 1 + 8
            assert sum(o.backwards for o in spent) <= 53


def test_attack_as_json(rbvit: Rbvit, folder: Path, finished: Any) -> None:
    ran = rbvit(*ATTACK, "--eps", "0.1", "--json")
    said = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    record = Record.load(said["record"])
    assert record.outcomes == tuple(o for o in finished.outcomes["cnn"] if o.attack == "short")
    (point,) = said["curve"]
    assert point["robust_accuracy"] == record.robust_accuracy
    assert point["interval_95"] == list(record.interval())
    assert point["survivors"] == record.survivors("short", 0.1)
    assert (said["model"], said["n"], said["norm"]) == ("digits_cnn", 48, "linf")
    assert said["clean_accuracy"] == record.clean_accuracy > record.robust_accuracy > 0


def test_attack_in_words(rbvit: Rbvit, folder: Path) -> None:
    ran = rbvit(*ATTACK, "--eps", "26/255", "--n", "20", "--out", "here")
    policy, clean, robust, lanes, passes, verdict, *_, path = ran.out.splitlines()
    assert policy == "policy A: deterministic and differentiable"
    record = Record.load(path.removeprefix("record: "))
    assert clean.startswith(f"clean accuracy            {100 * record.clean_accuracy:5.1f} %   (n = 20)")
    assert robust.startswith(f"robust accuracy           {100 * record.robust_accuracy:5.1f} %   [")
    assert robust.endswith("   short, linf 26/255")
    assert lanes.startswith("  robust samples: ")
    assert lanes.endswith(" after short-fab")
    assert passes.startswith("  passes per sample: ")
    assert verdict.startswith("  evidence of masked gradients: ")
    assert Path(path.removeprefix("record: ")).parent == Path("here")


def test_a_surrogate_is_tried(rbvit: Rbvit, folder: Path) -> None:
    weights = ["--surrogate-weights", "leaderboards/small/weights/cnn-pgd-at.safetensors"]
    ran = rbvit(*ATTACK, "--eps", "0.1", "--json", "--surrogate", "digits_cnn", *weights)
    reasons = {r["check"]: r for r in json.loads(ran.out)["curve"][0]["reliability"]["reasons"]}
    assert reasons["transfer"]["evidence"] is not None
    ran = rbvit(*ATTACK, "--eps", "0.1", "--surrogate", "digits_cnn")
    assert (ran.code, ran.out) == (2, "")
    assert "where the weights of 'digits_cnn' come from" in ran.err


def test_a_curve_has_outcomes_for_each_eps(rbvit: Rbvit, folder: Path) -> None:
    ran = rbvit(*ATTACK, "--eps", "0.05,0.1 0.2", "--json")
    said = json.loads(ran.out)
    record = Record.load(said["record"])
    radii = [0.05, 0.1, 0.2]
    assert [point["eps"] for point in said["curve"]] == radii
    assert [o.eps for o in record.outcomes] == [eps for eps in radii for _ in range(48)]
    accuracy = [record.at(eps=eps).robust_accuracy for eps in radii]
    assert accuracy == [point["robust_accuracy"] for point in said["curve"]]
    assert accuracy[0] > accuracy[1] > accuracy[2]
    alone = json.loads(rbvit(*ATTACK, "--eps", "0.1", "--json", "--out", "alone").out)
    assert Record.load(alone["record"]).outcomes == record.at(eps=0.1).outcomes


def test_train_then_attack(rbvit: Rbvit, folder: Path) -> None:
    (folder / "defenses").mkdir()
    (folder / "defenses" / "quick.yaml").write_text(QUICK, encoding="utf-8")
    arguments = ["train", "quick", "--model", "digits_cnn", "--data", "digits", "--out", "mine", "--epochs", "1"]
    trained = rbvit(*arguments)
    assert (trained.code, trained.out, trained.err) == (0, "weights: mine/weights.safetensors\n", "")
    with (folder / "mine" / "log.csv").open(encoding="utf-8") as log:
        (epoch,) = csv.DictReader(log)
    assert epoch["epoch"] == "1"
    ran = rbvit(
        "attack", "digits_cnn", "--data", "samples.npz", "--weights", "mine/weights.safetensors", "--attack", "fgsm",
        "--norm", "l2", "--eps", "0.5", "--json",
    )  # fmt: skip
    said = json.loads(ran.out)
    assert ran.code == 0
    assert 0.2 < said["clean_accuracy"] < 1
    assert said["curve"][0]["robust_accuracy"] <= said["clean_accuracy"]
    weights = (folder / "mine" / "weights.safetensors").read_bytes()
    assert Record.load(said["record"]).entry["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert rbvit(*arguments) == trained
    assert (folder / "mine" / "weights.safetensors").read_bytes() == weights


def test_an_entry_that_fails_leaves_the_others_finished(
    rbvit: Rbvit, folder: Path, finished: Any, outcomes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens in one entry's worker, the other one's record is written, and a rerun does the rest."""
    from robustbench_vit.errors import ModelError

    def failing(tasks: Any, workers: int, threads: int = 1) -> Any:
        for task in tasks:
            if task.name == "vit":
                yield Message("vit", error=ModelError("the weights melted"), done=True)
            else:
                kept: list[Message] = []
                task.run(lambda batch, stand, to=kept: to.append(Message("cnn", batch, stand)))
                yield from kept
                yield Message("cnn", done=True)

    monkeypatch.setattr("robustbench_vit.running.session.run_tasks", failing)
    ran = rbvit("run", "small")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: entry 'vit': the weights melted\n"
    assert outcomes(folder / "runs" / "small") == {"cnn": finished.outcomes["cnn"]}


def test_a_worker_that_dies_is_reported(launch: Any, folder: Path, until: Any, retired: Any) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    program = launch(folder, "run", "small", "--workers", "1", "--entry", "vit")
    until(lambda: retired(folder / "runs" / "small") > 0)
    workers = [pid for pid in program.members() if pid != program.pid and b"spawn_main" in command(pid)]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    ran = program.wait()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: entry 'vit': its worker died (exit code -9); what is decided is kept, run the same command again\n"
    )


def command(pid: int) -> bytes:
    """A process's command line."""
    path = Path(f"/proc/{pid}/cmdline")
    if path.is_file():
        return path.read_bytes()
    return subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, check=False).stdout


def test_no_task_starts_no_worker() -> None:
    assert list(run_tasks([], 4)) == []
