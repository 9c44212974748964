"""The journal of a run: every retired row, in SQLite, written by one process.

Rows are committed as they retire, so that a crash loses nothing that was decided. Inserting a row twice is an error:
no retired row ever runs again.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from robustbench_vit.errors import RunLockedError, StorageError
from robustbench_vit.records.rows import CleanResult, RowKey, RowResult

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS clean (
    run INTEGER NOT NULL, sample TEXT NOT NULL, correct INTEGER NOT NULL, logits BLOB NOT NULL,
    PRIMARY KEY (run, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    run INTEGER NOT NULL, lane TEXT NOT NULL, eps REAL NOT NULL, sample TEXT NOT NULL, turn INTEGER NOT NULL,
    restart INTEGER NOT NULL, target INTEGER, found INTEGER NOT NULL, distance REAL,
    forwards INTEGER NOT NULL, backwards INTEGER NOT NULL, image BLOB, wrong_draws INTEGER,
    PRIMARY KEY (run, lane, eps, sample, turn));
CREATE TABLE IF NOT EXISTS spent (
    run INTEGER NOT NULL, attack TEXT NOT NULL, seconds REAL NOT NULL, wasted INTEGER NOT NULL,
    PRIMARY KEY (run, attack)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    run INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (run, key)) WITHOUT ROWID;
"""
_SCHEMA_VERSION = 2


@dataclass
class Known:
    """What a journal already holds of one run."""

    clean: dict[str, CleanResult] = field(default_factory=dict)
    rows: dict[RowKey, RowResult] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # per attack
    wasted: dict[str, int] = field(default_factory=dict)  # padding and cancelled passes, per attack
    notes: dict[str, str] = field(default_factory=dict)  # what was found besides rows, as JSON

    def add(self, batch: Batch) -> None:
        """Takes in what a batch decided."""
        self.clean.update((c.sample, c) for c in batch.clean)
        self.rows.update((r.key, r) for r in batch.rows)
        self.notes.update(batch.notes)
        self.seconds[batch.attack] = self.seconds.get(batch.attack, 0.0) + batch.seconds
        self.wasted[batch.attack] = self.wasted.get(batch.attack, 0) + batch.wasted


@dataclass(frozen=True)
class Batch:
    """Results that belong to one attack and are committed together."""

    attack: str
    clean: tuple[CleanResult, ...] = ()
    rows: tuple[RowResult, ...] = ()
    seconds: float = 0.0
    wasted: int = 0
    notes: tuple[tuple[str, str], ...] = ()  # (key, JSON)


class Journal:
    """An open journal; use `open_journal`, which also takes the run's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage_errors(path):
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            try:
                self._make_tables()
            except BaseException:
                self._db.close()
                raise

    def _make_tables(self) -> None:
        """Raises StorageError when the file holds a journal of another version; writes only to a new one."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise StorageError(
                f"{self.path} is the journal of another version of robustbench_vit; move it away, or choose another"
                " folder with --out"
            )

    def run(self, key: str, about: str) -> int:
        """The number of the run with this key, made if it is new."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO runs (key, about) VALUES (?, ?)", (key, about))
        return int(self._db.execute("SELECT id FROM runs WHERE key = ?", (key,)).fetchone()[0])

    def append(self, run: int, batches: Iterable[Batch]) -> None:
        """Commits what was decided; all of it or, when the disk is full, none. Raises StorageError."""
        with self._transaction():
            for batch in batches:
                self._append(run, batch)

    def _append(self, run: int, batch: Batch) -> None:
        self._db.executemany(
            "INSERT INTO clean VALUES (?, ?, ?, ?)", [(run, c.sample, c.correct, c.logits) for c in batch.clean]
        )
        self._db.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_row_values(run, row) for row in batch.rows],
        )
        self._db.executemany("INSERT INTO notes VALUES (?, ?, ?)", [(run, key, value) for key, value in batch.notes])
        self._db.execute(
            "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (run, attack) DO UPDATE SET"
            " seconds = seconds + excluded.seconds, wasted = wasted + excluded.wasted",
            (run, batch.attack, batch.seconds, batch.wasted),
        )

    def known(self, run: int) -> Known:
        """Everything the journal holds of a run."""
        with _storage_errors(self.path):
            clean = self._db.execute("SELECT sample, correct, logits FROM clean WHERE run = ?", (run,))
            rows = self._db.execute(
                "SELECT lane, eps, sample, turn, restart, target, found, distance, forwards, backwards, image,"
                " wrong_draws FROM rows WHERE run = ?",
                (run,),
            )
            spent = self._db.execute("SELECT attack, seconds, wasted FROM spent WHERE run = ?", (run,)).fetchall()
            notes = self._db.execute("SELECT key, value FROM notes WHERE run = ?", (run,)).fetchall()
            results = [_row_result(values) for values in rows]
            return Known(
                {sample: CleanResult(sample, bool(correct), logits) for sample, correct, logits in clean},
                {result.key: result for result in results},
                {attack: seconds for attack, seconds, _ in spent},
                {attack: wasted for attack, _, wasted in spent},
                dict(notes),
            )

    def close(self) -> None:
        """Folds the write-ahead log into the file; the journal stays readable either way."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _storage_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _row_values(run: int, row: RowResult) -> tuple[object, ...]:
    key = row.key
    place = (run, key.lane, key.eps, key.sample, key.turn)
    return (
        *place,
        row.restart,
        row.target,
        row.found,
        row.distance,
        row.forwards,
        row.backwards,
        row.image,
        row.wrong_draws,
    )


def _row_result(values: tuple) -> RowResult:
    lane, eps, sample, turn, restart, target, found, *rest = values
    return RowResult(RowKey(lane, eps, sample, turn), restart, target, bool(found), *rest)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's complaints about the disk into StorageError; a row inserted twice stays a bug and shows as one."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageError(f"cannot write the journal {path}: {error}; what it holds is kept") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise StorageError(f"{path} is not a readable journal: {error}; move it away to start again") from error


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """The journal in `folder`, locked for this process.

    Raises RunLockedError when another process holds it and StorageError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder with --out"
        ) from error
    with lock:
        _take_lock(lock, folder)
        journal = Journal(folder / "journal.sqlite")
        try:
            yield journal
        finally:
            journal.close()


def _take_lock(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        by = f" by process {json.loads(holder)['pid']}" if holder.startswith("{") else ""
        raise RunLockedError(
            f"{folder} is being run{by}; wait for it, stop it, or choose another folder with --out"
        ) from None
    with suppress(OSError):  # who holds it is a courtesy; a full disk shows where it matters
        lock.seek(0)
        lock.truncate()
        os.write(lock.fileno(), json.dumps({"pid": os.getpid()}).encode())
