"""A user's workspace with short attacks and a small board, and ways to run it: here, or as a program."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robustbench_vit
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.cli import main
from robustbench_vit.data import load_dataset
from robustbench_vit.records import Outcome, Record
from robustbench_vit.running.workers import Message, Task

SAMPLES = 48
PATIENCE = 60.0  # seconds until something that happens at once on an idle machine counts as never

_HEAD = "version: 1\nabout: Shortened for tests.\nreference: none\n"
_ATTACKS = {
    "short-apgd": "extends: apgd-ce\nsteps: 12\n",
    "short-apgd-t": "extends: apgd-t\nsteps: 8\ntargets: 3\n",
    "short-fab": "extends: fab-t\nsteps: 6\ntargets: 2\n",
    "short-square": "extends: square\nqueries: 80\n",
    "short": "lanes: [short-square, short-apgd, short-apgd-t, short-fab]\n",
}
_BOARD = f"""{_HEAD}data: {{name: samples.npz, split: test, samples: all}}
norm: linf
eps: 0.1
attacks: [fgsm, short]
precision: fp32
seed: 0
confidence: 0.95
interval: wilson
alpha: 0.05
columns: [entry, clean, fgsm, 'short:interval', 'short:survivors', 'short:forwards']
entries:
  - {{name: vit, model: digits_vit, defense: standard, weights: weights/vit-standard.safetensors}}
  - {{name: cnn, model: digits_cnn, defense: pgd-at, weights: weights/cnn-pgd-at.safetensors}}
"""


def write_workspace(folder: Path) -> None:
    """Attacks `short…`, the board `small` with trained weights, and samples.npz with the first digits."""
    for kind in ("attacks", "leaderboards"):
        (folder / kind).mkdir(parents=True)
    for name, text in _ATTACKS.items():
        (folder / "attacks" / f"{name}.yaml").write_text(_HEAD + text, encoding="utf-8")
    (folder / "leaderboards" / "small.yaml").write_text(_BOARD, encoding="utf-8")
    weights = folder / "leaderboards" / "small" / "weights"
    weights.mkdir(parents=True)
    for name in ("vit-standard", "cnn-pgd-at"):
        trained = builtin_layer() / "leaderboards" / "digits-linf" / "weights" / f"{name}.safetensors"
        shutil.copy(trained, weights / trained.name)
    data = load_dataset("digits").first(SAMPLES)
    np.savez(folder / "samples.npz", x=data.x, y=data.y, index=np.arange(SAMPLES))


@pytest.fixture(scope="session")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that nobody changes."""
    made = tmp_path_factory.mktemp("cards")
    write_workspace(made)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace, which is the current folder."""
    made = tmp_path / "mine"
    write_workspace(made)
    monkeypatch.chdir(made)
    return made


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def rbvit(capsys: pytest.CaptureFixture[str], folder: Path) -> Callable[..., Ran]:
    """Runs a command in the workspace, in this process."""

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return Ran(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that would go to worker processes run in this process, in order; the list fills with their names."""
    names: list[str] = []

    def run_tasks(tasks: Sequence[Task], workers: int, threads: int = 1) -> Iterator[Message]:
        for task in tasks:
            names.append(task.name)
            messages: list[Message] = []
            task.run(lambda batch, stand, name=task.name, to=messages: to.append(Message(name, batch, stand)))
            yield from messages
            yield Message(task.name, done=True)

    monkeypatch.setattr("robustbench_vit.running.session.run_tasks", run_tasks)
    return names


Journalled = dict[tuple[Any, ...], tuple[Any, ...]]


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """A run's journal, open for reading, or None where there is none yet."""
    path = folder / "journal.sqlite"
    if not path.is_file():
        yield None
        return
    journal = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=PATIENCE)
    try:
        made = journal.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('clean', 'rows')").fetchone()[0]
        yield journal if made == 2 else None
    finally:
        journal.close()


def journalled(folder: Path) -> Journalled:
    """Every clean answer and every retired row in a run's journal, by its primary key."""
    with _reading(folder) as journal:
        if journal is None:
            return {}
        clean = journal.execute("SELECT * FROM clean").fetchall()
        rows = journal.execute("SELECT * FROM rows").fetchall()
    return {("clean", *row[:2]): row for row in clean} | {("row", *row[:5]): row for row in rows}


def retired(folder: Path) -> int:
    """How many rows a run's journal holds."""
    with _reading(folder) as journal:
        return 0 if journal is None else int(journal.execute("SELECT count(*) FROM rows").fetchone()[0])


def outcomes(folder: Path) -> dict[str, tuple[Outcome, ...]]:
    """The outcomes in a run's records, by entry."""
    return {path.stem: Record.load(path).outcomes for path in sorted((folder / "records").glob("*.json"))}


@pytest.fixture(name="journalled")
def _journalled() -> Callable[[Path], Journalled]:
    return journalled


@pytest.fixture(name="retired")
def _retired() -> Callable[[Path], int]:
    return retired


@pytest.fixture(name="outcomes")
def _outcomes() -> Callable[[Path], dict[str, tuple[Outcome, ...]]]:
    return outcomes


# Starting Python and importing torch takes seconds. This process has done that, and each command is a fork of it: a
# process of its own, the leader of its own group, that calls what the program `rbvit` calls. Its workers are spawned.
_LAUNCHER = """
import json, os, sys
import robustbench_vit.boards, robustbench_vit.running.board
from robustbench_vit.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(asked["cwd"])
        for number, name in enumerate((os.devnull, asked["out"], asked["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        main(asked["arguments"])
    print(pid, flush=True)
"""


class Program:
    """A running `rbvit`, the leader of its process group."""

    def __init__(self, launcher: Launcher, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._launcher, self._out, self._err = launcher, out, err

    def wait(self) -> Ran:
        """Waits until it ends; a signal's number is negative."""
        code = self._launcher.ask({"wait": self.pid})
        return Ran(code, self._out.read_text(encoding="utf-8"), self._err.read_text(encoding="utf-8"))

    def members(self) -> list[int]:
        """The living processes of its group: itself, its workers, their resource tracker."""
        return [pid for pid, group, state in processes() if group == self.pid and state != "Z"]

    def end(self) -> None:
        """Makes sure that nothing is left of it."""
        for pid in self.members():
            os.kill(pid, 9)


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, group, state) of every process."""
    if not Path("/proc/self/stat").is_file():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,state="], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            pid, group, state = line.split()
            yield int(pid), int(group), state[0]
        return
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it just ended
            continue
        yield int(path.parent.name), int(fields[2]), fields[0]


class Launcher:
    """Starts `rbvit` as a program of its own."""

    def __init__(self) -> None:
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**os.environ, **one, "PYTHONPATH": str(Path(robustbench_vit.__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._started: list[Program] = []

    def ask(self, request: dict[str, Any]) -> int:
        """The launcher's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __call__(self, folder: Path, *arguments: str) -> Program:
        """Starts a command in `folder`."""
        out, err = (folder.parent / f"{folder.name}-{len(self._started)}.{kind}" for kind in ("out", "err"))
        request = {"arguments": arguments, "cwd": str(folder), "out": str(out), "err": str(err)}
        program = Program(self, self.ask(request), out, err)
        self._started.append(program)
        return program

    def close(self) -> None:
        """Ends it and what is left of what it started."""
        for program in self._started:
            program.end()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def launch() -> Iterator[Launcher]:
    """Starts `rbvit` as a program of its own, in a given folder."""
    launcher = Launcher()
    try:
        yield launcher
    finally:
        launcher.close()


@dataclass(frozen=True)
class Finished:
    """The board `small`, run without interruption by two worker processes."""

    folder: Path  # the workspace
    ran: Ran

    @property
    def run(self) -> Path:
        """Where journal and records are."""
        return self.folder / "runs" / "small"

    @property
    def outcomes(self) -> dict[str, tuple[Outcome, ...]]:
        """By entry."""
        return outcomes(self.run)


@pytest.fixture(scope="session")
def finished(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run to compare with and to copy; nobody changes it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"  # by the test processes
    shared.mkdir(exist_ok=True)
    said, folder = shared / "ran.json", shared / "mine"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.is_file():
            write_workspace(folder)
            ran = launch(folder, "run", "small", "--workers", "2").wait()
            assert (ran.code, ran.err) == (0, "")
            said.write_text(json.dumps(asdict(ran)), encoding="utf-8")
    return Finished(folder, Ran(**json.loads(said.read_text(encoding="utf-8"))))


@pytest.fixture
def copied(finished: Finished, folder: Path) -> Path:
    """The workspace with a copy of the finished run in runs/small; its path."""
    shutil.copytree(finished.run, folder / "runs" / "small")
    return folder / "runs" / "small"


def until(happened: Callable[[], bool], pause: float = 0.02) -> None:
    """Returns as soon as `happened()` is true; fails when it never is."""
    give_up = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(pause)


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until
