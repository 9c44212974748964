"""The journal: what is decided is kept at once, once, by one process."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_vit.errors import RunLockedError, StorageError
from robustbench_vit.records.journal import Batch, Known, open_journal
from robustbench_vit.records.rows import CleanResult

CLEAN = (CleanResult("s", True, b"\0\0\x80?"), CleanResult("é", False, b""))


def test_what_is_appended_is_known_again(tmp_path, row):
    rows = (row("k", "s", 0, False), row("k", "s", 1, True), row("k", "é", 0, True))
    batches = [Batch("a", clean=CLEAN, seconds=1.5), Batch("a", rows=rows[:2], seconds=0.5, wasted=7)]
    with open_journal(tmp_path / "deep" / "run") as journal:
        run = journal.run("key", "about")
        journal.append(run, batches)
        journal.append(run, [Batch("b", rows=rows[2:], wasted=2)])
    expected = Known()
    for batch in (*batches, Batch("b", rows=rows[2:], wasted=2)):
        expected.add(batch)
    with open_journal(tmp_path / "deep" / "run") as journal:
        assert journal.run("key", "about") == run
        assert journal.known(run) == expected
    assert expected.seconds == {"a": 2.0, "b": 0.0}
    assert expected.wasted == {"a": 7, "b": 2}


def test_runs_are_kept_apart(tmp_path, row):
    with open_journal(tmp_path) as journal:
        one, two = journal.run("one", ""), journal.run("two", "")
        assert one != two
        journal.append(one, [Batch("a", clean=CLEAN, rows=(row("k", "s", 0, True),))])
        journal.append(two, [Batch("a", rows=(row("k", "s", 0, False),))])
        assert [r.found for r in journal.known(one).rows.values()] == [True]
        assert [r.found for r in journal.known(two).rows.values()] == [False]
        assert journal.known(two).clean == {}


@pytest.mark.parametrize("what", ["row", "clean"])
def test_a_result_that_stands_already_is_an_error_and_nothing_of_its_batch_is_kept(tmp_path, row, what):
    with open_journal(tmp_path) as journal:
        run = journal.run("key", "")
        journal.append(run, [Batch("a", clean=CLEAN[:1], rows=(row("k", "s", 0, False),), seconds=1)])
        before = journal.known(run)
        twice = Batch("a", rows=(row("k", "s", 0, True),)) if what == "row" else Batch("a", clean=CLEAN[:1])
        with pytest.raises(sqlite3.IntegrityError):
            journal.append(run, [Batch("a", rows=(row("k", "s", 1, True),), seconds=1), twice])
        assert journal.known(run) == before
        journal.append(run, [Batch("a", rows=(row("k", "s", 1, True),))])  # it goes on
        assert len(journal.known(run).rows) == 2


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom robustbench_vit.records.journal import open_journal\n"
        "from robustbench_vit.errors import RunLockedError\n"
        "try:\n    open_journal(Path(sys.argv[1])).__enter__()\n"
        "except RunLockedError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with open_journal(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2, second.stderr
        assert f"is being run by process {os.getpid()}; wait for it, stop it, or choose another folder" in second.stdout
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), open_journal(tmp_path):
        raise KeyError
    with open_journal(tmp_path), pytest.raises(RunLockedError), open_journal(tmp_path):
        pass


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"<html>" * 1000)
    message = r"journal\.sqlite is not a readable journal: .*; move it away to start again"
    with pytest.raises(StorageError, match=message), open_journal(tmp_path):
        pass
    assert (tmp_path / "journal.sqlite").read_bytes() == b"<html>" * 1000


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    message = rf"cannot write to {re.escape(str(tmp_path / 'file' / 'run'))}: .*; choose another folder with --out"
    with pytest.raises(StorageError, match=message), open_journal(tmp_path / "file" / "run"):
        pass


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path, row):
    with open_journal(tmp_path) as journal:
        run = journal.run("key", "")
        journal.append(run, [Batch("a", rows=(row("k", "s", 0, True),))])
        before = journal.known(run)
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        many = tuple(row("k", f"sample {i}", 0, True) for i in range(2000))
        with pytest.raises(StorageError, match=r"cannot write the journal .*full; what it holds is kept"):
            journal.append(run, [Batch("a", rows=many)])
        assert journal.known(run) == before
    with open_journal(tmp_path) as journal:
        assert journal.known(run) == before


def test_a_journal_of_another_version_is_refused_and_kept(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.run("key", "about")
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    other.execute("PRAGMA user_version=1")
    other.close()
    with pytest.raises(StorageError, match="is the journal of another version"), open_journal(tmp_path):
        pass
    assert (tmp_path / "journal.sqlite").stat().st_size > 0


def test_notes_are_kept(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        run = journal.run("key", "about")
        journal.append(run, [Batch("attack", notes=(("reliability/x", "{}"),))])
    with open_journal(tmp_path) as journal:
        assert journal.known(journal.run("key", "about")).notes == {"reliability/x": "{}"}
