"""Worker processes: each evaluates one entry at a time and sends what it decides to the parent.

Only the parent writes the journal. A worker that loses its parent (SIGKILL) notices at its next message and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from robustbench_vit.engine.stock import Progress
from robustbench_vit.errors import RobustbenchError
from robustbench_vit.records.journal import Batch
from robustbench_vit.running.memory import keep_freed_memory

SEND_EVERY = 0.25
"""Seconds without a retired row after which a worker reports its progress all the same."""


@dataclass(frozen=True)
class Task:
    """Work for a worker: `run(send)` evaluates and calls send(batch, progress)."""

    name: str
    run: Callable[[Callable[[Batch, Progress | None], None]], None]  # picklable


@dataclass(frozen=True)
class Message:
    """What a worker tells the parent."""

    task: str
    batch: Batch | None = None
    progress: Progress | None = None
    error: BaseException | None = None
    done: bool = False


class Sender:
    """Sends batches on, holding back empty ones so that pipes carry few messages."""

    def __init__(self, send: Callable[[Batch, Progress | None], None]) -> None:
        self._send = send
        self._seconds = 0.0
        self._wasted = 0
        self._last = time.monotonic()

    def __call__(self, batch: Batch, progress: Progress | None) -> None:
        self._seconds += batch.seconds
        self._wasted += batch.wasted
        now = time.monotonic()
        if not batch.rows and not batch.clean and not batch.notes and now - self._last < SEND_EVERY:
            return
        self._send(replace(batch, seconds=self._seconds, wasted=self._wasted), progress)
        self._seconds, self._wasted, self._last = 0.0, 0, now


def _work(connection: Connection, threads: int) -> None:
    """A worker's life: take a task, run it, ask for the next; None ends it."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        while (task := connection.recv()) is not None:
            name = task.name
            try:
                task.run(Sender(lambda batch, progress, name=name: connection.send(Message(name, batch, progress))))
                connection.send(Message(name, done=True))
            except (BrokenPipeError, ConnectionError):
                raise
            except RobustbenchError as error:
                connection.send(Message(name, error=error, done=True))
            except Exception as error:  # a bug must reach the parent, with its traceback
                import traceback

                shown = RuntimeError(f"{type(error).__name__} in entry '{name}':\n{traceback.format_exc()}")
                connection.send(Message(name, error=shown, done=True))
    except (EOFError, BrokenPipeError, ConnectionError):
        os._exit(1)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None


def run_tasks(tasks: Sequence[Task], workers: int, threads: int = 1) -> Generator[Message, None, None]:
    """What the workers report, as it comes; tasks start in order as workers become free.

    Closing the iterator (or an exception in its consumer) ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")
    crew: list[_Worker] = []
    waiting = list(tasks)
    try:
        for _ in range(min(workers, len(tasks))):
            crew.append(_start(context, threads))
            _give(crew[-1], waiting)
        while busy := [worker for worker in crew if worker.task is not None]:
            ready = wait([worker.connection for worker in busy] + [worker.process.sentinel for worker in busy])
            for worker in busy:
                if worker.connection in ready or worker.process.sentinel in ready:
                    yield from _hear(worker, waiting)
    finally:
        _end(crew)


def _start(context: Any, threads: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads), daemon=True)
    with _interrupts_held():
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """While open, Ctrl-C waits; processes started meanwhile never hear of it, from their first instruction on.

    Interrupting is the parent's business; a worker would answer with a traceback, even while it is still importing.
    """
    resource_tracker.ensure_running()  # when it starts, it lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _give(worker: _Worker, waiting: list[Task]) -> None:
    worker.task = waiting.pop(0) if waiting else None
    worker.connection.send(worker.task)


def _hear(worker: _Worker, waiting: list[Task]) -> Iterator[Message]:
    assert worker.task is not None
    try:
        while worker.task is not None and worker.connection.poll():
            message = worker.connection.recv()
            if message.done:
                _give(worker, waiting)
            yield message
    except (EOFError, ConnectionError):
        worker.process.join(timeout=5)
        name, worker.task = worker.task.name if worker.task else "?", None
        code = worker.process.exitcode
        died = f"its worker died (exit code {code}); what is decided is kept, run the same command again"
        yield Message(name, error=RobustbenchError(died), done=True)


def _end(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in crew:
        worker.process.join(timeout=5)
        worker.connection.close()
