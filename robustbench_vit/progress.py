"""Progress bars of evaluations: samples decided, robust so far, samples per second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from robustbench_vit.defenses.checkpoint import EpochLog
    from robustbench_vit.engine.stock import Progress as Stand
    from robustbench_vit.records.journal import Batch


@dataclass
class _Line:
    """One model's line."""

    task: TaskID
    samples: int
    started: float = field(default_factory=time.monotonic)
    work_at_start: float | None = None


class Bars:
    """A line per model that is being evaluated."""

    def __init__(self, console: Console | None = None, smoke: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._smoke = smoke
        self._lines: dict[str, _Line] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[stand]}"),
            console=self._console,
            transient=True,
            disable=not (self._console.is_terminal or self._console.is_jupyter),  # else it leaves an empty line
            refresh_per_second=4,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def open(self, name: str, samples: int) -> None:
        """Shows a line for `name`."""
        task = self._progress.add_task(name, total=1.0, stand="starting")
        self._lines[name] = _Line(task, samples)

    def update(self, name: str, stand: Stand | None) -> None:
        """Moves the line of `name`."""
        if stand is None or name not in self._lines:
            return
        line = self._lines[name]
        if line.work_at_start is None:
            line.work_at_start = stand.work_done
        total = stand.work_done + stand.work_left
        self._progress.update(
            line.task, completed=stand.work_done / total if total else 1.0, stand=self._words(line, stand)
        )

    def _words(self, line: _Line, stand: Stand) -> str:
        elapsed = max(time.monotonic() - line.started, 1e-6)
        done = stand.work_done - (line.work_at_start or 0.0)
        left = f"{_clock(elapsed * stand.work_left / done)} left" if done > 0 else ""
        kept = "surviving" if self._smoke else "robust so far"
        rate = f"{stand.decided / elapsed:.1f} samples/s"
        decided = f"{stand.decided}/{stand.samples} decided"
        return f"{stand.attack} › {stand.lane}: {decided}, {stand.robust} {kept}, {rate}, {left}"

    def close(self, name: str) -> None:
        """Takes the line of `name` away."""
        line = self._lines.pop(name, None)
        if line is not None:
            self._progress.remove_task(line.task)

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(text, highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def training_bar(name: str) -> Iterator[Callable[[EpochLog], None]]:
    """A watcher of training that shows epochs, loss, clean and robust accuracy of the training batches."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[stand]}"),
    )
    console = Console(stderr=True)
    silent = not (console.is_terminal or console.is_jupyter)  # log.csv has it all
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=silent, refresh_per_second=4) as shown:
        task = shown.add_task(name, total=None, stand="starting")

        def watch(log: EpochLog) -> None:
            robust = "" if log.robust_accuracy is None else f", robust {100 * log.robust_accuracy:.1f} %"
            held_out = ""
            if log.valid_robust_accuracy is not None:
                held_out = f", held out {100 * log.valid_robust_accuracy:.1f} % (best: epoch {log.best_epoch})"
            words = f"epoch {log.epoch}/{log.epochs}, loss {log.loss:.3f}, clean {100 * log.clean_accuracy:.1f} %"
            shown.update(task, total=log.epochs, completed=log.epoch, stand=f"{words}{robust}{held_out}")

        yield watch


@contextmanager
def bar(name: str, samples: int, smoke: bool = False) -> Iterator[Callable[[Batch, Stand | None], None]]:
    """A watcher that shows one model's progress while open."""
    with Bars(smoke=smoke) as bars:
        bars.open(name, samples)
        yield lambda batch, stand: bars.update(name, stand)
