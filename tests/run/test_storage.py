"""Folders that cannot be written and disks that fill up: a clear message, and whatever was decided is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robustbench_vit.records import Record
from robustbench_vit.records.journal import Journal

Rbvit = Callable[..., Any]


def left_over(folder: Path) -> list[str]:
    """Files that a failed run should not have left."""
    known = {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "lock"}
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name not in known]


def healthy(folder: Path) -> bool:
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        sound = journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    journal.close()
    return sound


def test_a_file_where_the_folder_should_be(folder: Path, given: list[str], rbvit: Rbvit) -> None:
    (folder / "taken").write_text("mine", encoding="utf-8")
    ran = rbvit("run", "small", "--out", "taken")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == "error: cannot write to taken: File exists; choose another folder with --out\n"
    ran = rbvit("run", "small", "--out", "taken/deeper")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == "error: cannot write to taken/deeper: Not a directory; choose another folder with --out\n"
    assert (folder / "taken").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(folder: Path, given: list[str], rbvit: Rbvit) -> None:
    (folder / "closed").mkdir(mode=0o500)
    ran = rbvit("run", "small", "--out", "closed/run")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == "error: cannot write to closed/run: Permission denied; choose another folder with --out\n"


def test_a_journal_that_is_none(folder: Path, given: list[str], rbvit: Rbvit) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "journal.sqlite").write_text("no database, and longer than its header " * 40, encoding="utf-8")
    ran = rbvit("run", "small", "--out", "out")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == (
        "error: out/journal.sqlite is not a readable journal: file is not a database; move it away to start again\n"
    )


def test_a_journal_that_cannot_be_opened(folder: Path, given: list[str], rbvit: Rbvit) -> None:
    (folder / "out" / "journal.sqlite").mkdir(parents=True)
    ran = rbvit("run", "small", "--out", "out")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == (
        "error: cannot write the journal out/journal.sqlite: unable to open database file; what it holds is kept\n"
    )


def test_a_full_disk_before_the_start(
    folder: Path, given: list[str], rbvit: Rbvit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    ran = rbvit("run", "small")
    assert (ran.code, ran.out, given) == (2, "", [])
    assert ran.err == (
        "error: runs/small: 3 MiB free, the run may need 16 MiB; free some space or choose another folder with --out\n"
    )
    assert left_over(folder / "runs") == []


def test_a_journal_that_fills_up(
    folder: Path,
    given: list[str],
    rbvit: Rbvit,
    journalled: Any,
    outcomes: Any,
    finished: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLite says that the disk is full in the middle of the run."""
    opened = Journal.__init__

    def small(self: Journal, path: Path) -> None:
        opened(self, path)
        self._db.execute("PRAGMA max_page_count = 24")

    run = folder / "runs" / "small"
    with monkeypatch.context() as limited:
        limited.setattr(Journal, "__init__", small)
        ran = rbvit("run", "small")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: cannot write the journal runs/small/journal.sqlite: database or disk is full; what it holds is kept\n"
    )
    assert_resumes(run, rbvit, journalled, outcomes, finished)


def assert_resumes(run: Path, rbvit: Rbvit, journalled: Any, outcomes: Any, finished: Any) -> None:
    """The stopped run is sound, has a part of the rows, and whole records only; with space it ends like any other."""
    kept = journalled(run)
    assert healthy(run)
    assert 0 < len(kept) < len(journalled(finished.run))
    assert {path.name.partition(".")[0] for path in run.glob("records/*")} == {*outcomes(run)}, "half a record"
    assert not list(run.rglob(".*")), "a temporary file"
    again = rbvit("run", "small", "--out", str(run))
    assert (again.code, again.err) == (0, "")
    after = journalled(run)
    assert {key: after[key] for key in kept} == kept
    assert outcomes(run) == finished.outcomes
    for name in finished.outcomes:
        fresh, whole = (Record.load(folder / "records" / f"{name}.json").images for folder in (run, finished.run))
        assert fresh is not None
        assert whole is not None
        assert np.array_equal(fresh, whole)


def test_records_that_cannot_be_written(
    folder: Path, given: list[str], rbvit: Rbvit, journalled: Any, outcomes: Any, finished: Any
) -> None:
    """Everything is decided, and saving fails: the journal has it."""
    (folder / "runs" / "small").mkdir(parents=True)
    (folder / "runs" / "small" / "records").write_text("in the way", encoding="utf-8")
    ran = rbvit("run", "small", "--entry", "cnn")
    assert (ran.code, ran.out, given) == (2, "", ["cnn"])
    assert ran.err == "error: cannot write runs/small/records/cnn.images.safetensors: File exists\n"
    before = journalled(folder / "runs" / "small")
    (folder / "runs" / "small" / "records").unlink()
    assert rbvit("run", "small", "--entry", "cnn").code == 0
    assert given == ["cnn"]
    assert journalled(folder / "runs" / "small") == before
    assert outcomes(folder / "runs" / "small") == {"cnn": finished.outcomes["cnn"]}


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 18 MiB: enough for the check before the start."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=18m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all space left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def test_a_disk_that_fills_up(
    little_disk: Path,
    given: list[str],
    rbvit: Rbvit,
    journalled: Any,
    outcomes: Any,
    finished: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, appended, calls = little_disk / "run", Journal.append, []

    def append(self: Journal, number: int, batches: Any) -> None:
        calls.append(number)
        if len(calls) == 12:
            fill(little_disk)
        appended(self, number, batches)

    with monkeypatch.context() as filling:
        filling.setattr(Journal, "append", append)
        ran = rbvit("run", "small", "--out", str(run))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: cannot write the journal {run}/journal.sqlite: ")
    assert ran.err.endswith("; what it holds is kept\n")
    full = rbvit("run", "small", "--out", str(run))
    assert (full.code, full.out) == (2, "")
    assert full.err.startswith("error: ")
    (little_disk / "ballast").unlink()
    assert_resumes(run, rbvit, journalled, outcomes, finished)


def test_a_disk_that_is_full_when_records_are_saved(
    little_disk: Path, given: list[str], rbvit: Rbvit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = little_disk / "run"
    with monkeypatch.context() as filling:
        filling.setattr("robustbench_vit.running.board.make_record", _filled_before(little_disk))
        ran = rbvit("run", "small", "--entry", "cnn", "--out", str(run))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: cannot write {run}/records/cnn.images.safetensors: No space left on device\n"
    assert left_over(run) == []
    (little_disk / "ballast").unlink()
    assert rbvit("run", "small", "--entry", "cnn", "--out", str(run)).code == 0
    assert given == ["cnn"]


def _filled_before(disk: Path) -> Callable[..., Any]:
    from robustbench_vit.recording import make_record

    def made(*arguments: Any, **named: Any) -> Any:
        fill(disk)
        return make_record(*arguments, **named)

    return made
