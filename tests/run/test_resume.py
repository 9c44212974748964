"""A run goes on where it was stopped, by whatever, and computes nothing twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.errors import RunLockedError
from robustbench_vit.records.journal import Journal, open_journal
from robustbench_vit.running.workers import Message, Task, run_tasks

COMPLETE = ["vit: already complete, nothing computed", "cnn: already complete, nothing computed"]


def test_a_finished_run_again_computes_nothing(
    copied: Path, given: list[str], rbvit: Callable[..., Any], finished: Any, journalled: Callable[[Path], Any]
) -> None:
    before = journalled(copied)
    again = rbvit("run", "small")
    assert (again.code, again.err, given) == (0, "", [])
    assert [line for line in again.out.splitlines() if "complete" in line] == COMPLETE
    assert journalled(copied) == before
    table = finished.ran.out.partition("\n\nrecords:")[0]
    assert again.out.startswith(table)


def test_more_samples_compute_only_what_is_new(
    folder: Path, given: list[str], rbvit: Callable[..., Any], finished: Any, journalled: Any, outcomes: Any
) -> None:
    assert rbvit("run", "small", "--entry", "cnn", "--n", "20").code == 0
    first = journalled(folder / "runs" / "small")
    assert 0 < len(first) < len(journalled(finished.run)) / 2
    assert rbvit("run", "small", "--entry", "cnn").code == 0
    both = journalled(folder / "runs" / "small")
    assert {key: both[key] for key in first} == first
    assert outcomes(folder / "runs" / "small") == {"cnn": finished.outcomes["cnn"]}
    assert given == ["cnn", "cnn"]


def test_killed_at_ten_moments_it_ends_as_if_nothing_had_happened(
    folder: Path,
    launch: Any,
    finished: Any,
    journalled: Any,
    retired: Any,
    outcomes: Any,
    until: Any,
    rbvit: Callable[..., Any],
    given: list[str],
) -> None:
    """SIGKILL reaches the parent alone: the workers must notice by themselves, before the next run starts."""
    chance = random.Random(20)
    run = folder / "runs" / "small"
    kept: dict[Any, Any] = {}
    early = set(chance.sample(range(10), 4))
    for moment in range(10):
        program = launch(folder, "run", "small", "--workers", str(chance.choice([1, 1, 2])))
        if moment in early:  # while it checks, opens the journal, or starts workers
            time.sleep(chance.uniform(0, 1))
        else:
            wanted = retired(run) + chance.randint(1, 40)
            until(lambda wanted=wanted: retired(run) >= wanted)
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait().code == -signal.SIGKILL, "it had finished; give it more to do"
        until(lambda program=program: not program.members())
        now = journalled(run)
        assert {key: now[key] for key in kept} == kept
        kept = now
    assert retired(run) > 6
    ended = rbvit("run", "small")
    assert (ended.code, ended.err) == (0, "")
    assert set(given) <= {"vit", "cnn"}
    assert outcomes(run) == finished.outcomes
    assert {key: row for key, row in journalled(run).items() if key in kept} == kept


@pytest.mark.parametrize("moment", ["workers start", "rows retire"])
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(
    moment: str,
    folder: Path,
    launch: Any,
    finished: Any,
    journalled: Any,
    retired: Any,
    outcomes: Any,
    until: Any,
    rbvit: Callable[..., Any],
    given: list[str],
) -> None:
    run = folder / "runs" / "small"
    program = launch(folder, "run", "small", "--workers", "2")
    if moment == "workers start":
        until(lambda: len(program.members()) >= 4)  # it, a resource tracker, two workers
    else:
        until(lambda: retired(run) > 0)
    os.killpg(program.pid, signal.SIGINT)
    ran = program.wait()
    until(lambda: not program.members())
    kept = journalled(run)
    rows = retired(run)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == (
        f"error: interrupted; {rows} rows of 2 entries are kept in runs/small. Run the same command again to go on.\n"
    )
    assert (rows > 0) == (moment == "rows retire")
    if moment == "rows retire":
        ended = rbvit("run", "small")
        assert (ended.code, ended.err) == (0, "")
        assert given
        assert {key: row for key, row in journalled(run).items() if key in kept} == kept
        assert outcomes(run) == finished.outcomes


def test_workers_never_hear_of_ctrl_c() -> None:
    """Not even while they import: a terminal sends it to all of them, and each would answer with a traceback."""
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.05):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        nothing: Any = callable  # a worker can import it
        assert list(run_tasks([Task("nothing", nothing)], 1)) == [Message("nothing", done=True)]
    finally:
        over.set()
        thread.join()


def test_ctrl_c_before_any_work_says_how_to_go_on(
    rbvit: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustbench_vit.running.board.prepare", interrupted)
    ran = rbvit("run", "small")
    assert (ran.code, ran.err) == (130, "interrupted; run the same command again to go on\n")
    assert not (folder / "runs").exists()


def test_ctrl_c_in_an_attack_keeps_the_work(
    rbvit: Callable[..., Any], folder: Path, journalled: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = Journal.append

    def interrupted(self: Journal, run: int, batches: Any) -> None:
        appended(self, run, batches)
        if len(journalled(folder / "runs" / "attack")) > 100:
            raise KeyboardInterrupt

    arguments = ["attack", "digits_cnn", "--data", "samples.npz", "--attack", "short", "--eps", "0.1", "--json"]
    arguments += ["--weights", "leaderboards/small/weights/cnn-pgd-at.safetensors"]
    whole = rbvit(*arguments, "--out", "whole")
    assert whole.code == 0
    monkeypatch.setattr(Journal, "append", interrupted)
    ran = rbvit(*arguments)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == (
        "error: interrupted; what is decided is kept in runs/attack. Run the same command again to go on.\n"
    )
    kept = journalled(folder / "runs" / "attack")
    monkeypatch.setattr(Journal, "append", appended)
    assert rbvit(*arguments).out == whole.out.replace("whole/", "runs/attack/")
    assert {key: row for key, row in journalled(folder / "runs" / "attack").items() if key in kept} == kept
    assert len(kept) > 100


def test_a_locked_run_is_refused(
    copied: Path, given: list[str], rbvit: Callable[..., Any], journalled: Callable[[Path], Any]
) -> None:
    before = journalled(copied)
    with open_journal(copied):
        ran = rbvit("run", "small", "--n", "5")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == (
        f"error: runs/small is being run by process {os.getpid()}; wait for it, stop it,"
        " or choose another folder with --out\n"
    )
    assert journalled(copied) == before


def test_a_program_that_runs_holds_the_lock_until_it_is_killed(
    folder: Path,
    launch: Any,
    given: list[str],
    rbvit: Callable[..., Any],
    journalled: Callable[[Path], Any],
    until: Any,
) -> None:
    """A killed program leaves its lock file, which is no obstacle, and a worker, which ends amid a long attack."""
    card, lock = folder / "leaderboards" / "small.yaml", folder / "runs" / "small" / "lock"
    text = other = card.read_text(encoding="utf-8")
    long = (folder / "attacks" / "short-square.yaml").read_text(encoding="utf-8").replace("80", "10_000_000")
    (folder / "attacks" / "long.yaml").write_text(long, encoding="utf-8")
    for old, new in (("[fgsm, short]", "[long]"), (" fgsm, ", " "), ("short:", "long:")):
        assert old in text
        other = other.replace(old, new)
    card.write_text(other, encoding="utf-8")
    program = launch(folder, "run", "small", "--workers", "1")
    until(lambda: len(journalled(lock.parent)) > 0)
    refused = rbvit("run", "small")
    assert (refused.code, given) == (2, [])
    assert refused.err.startswith(f"error: runs/small is being run by process {program.pid};")
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    until(lambda: not program.members())
    card.write_text(text, encoding="utf-8")
    assert str(program.pid) in lock.read_text(encoding="utf-8")
    assert rbvit("run", "small", "--entry", "cnn", "--n", "5").code == 0


@pytest.mark.parametrize("left_behind", ["", '{"pid": 1}', "{", "no JSON"])
def test_a_lock_file_without_a_holder_is_no_obstacle(tmp_path: Path, left_behind: str) -> None:
    (tmp_path / "lock").write_text(left_behind, encoding="utf-8")
    with open_journal(tmp_path) as journal:
        journal.run("key", "about")
        with (
            pytest.raises(RunLockedError, match=rf"^{tmp_path} is being run by process {os.getpid()};"),
            open_journal(tmp_path),
        ):
            pass
    with open_journal(tmp_path) as journal:
        assert journal.run("key", "about") == 1
