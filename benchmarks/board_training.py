"""Trains the entries of a board from their cards.

    python -m benchmarks.board_training BOARD [ENTRY …] [--write]

Every entry (or those named) is trained from its defense, model, settings and training seed into
runs/training/BOARD/ENTRY, one thread per process and two at a time. Running the same command again resumes it, and
finished entries are left alone. `--write` then copies the weights that the board's own folder lacks into place; files
that are there, and those of other boards, stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from robustbench_vit.cards import BoardCard, Entry, Loaded, open_workspace
from robustbench_vit.defenses.checkpoint import WEIGHTS
from robustbench_vit.errors import InputError, RobustbenchError
from robustbench_vit.running.entries import chosen, weights_path
from robustbench_vit.running.workers import Task, run_tasks
from robustbench_vit.storage import write_atomic

FOLDER = Path(__file__).resolve().parent.parent / "runs" / "training"


@dataclass(frozen=True)
class Training:
    """One training of an entry; called, it trains what is missing, as a worker process does."""

    entry: Entry
    data: str
    seed: int
    out: Path

    @property
    def weights(self) -> Path:
        """Where the trained weights lie."""
        return self.out / WEIGHTS

    @property
    def task(self) -> Task:
        """The training as work for a worker process."""
        return Task(f"{self.entry.name} seed {self.seed}", self)

    def __call__(self, send: Callable[..., None]) -> None:
        from robustbench_vit.defenses.train import train_defense

        torch.set_num_threads(1)
        entry, args = self.entry, dict(self.entry.model_args)
        train_defense(
            entry.defense, entry.model, self.data, self.out, self.seed, "cpu", open_workspace(), model_args=args
        )


def train_all(trainings: Iterable[Training], workers: int = 2) -> None:
    """Trains all of them in worker processes; finished ones are left alone. Raises what a worker raised."""
    for message in run_tasks([training.task for training in trainings], workers):
        if message.error is not None:
            raise message.error
        print(f"{message.task}: trained", flush=True)


def board_trainings(board: Loaded[BoardCard], names: tuple[str, ...] = (), folder: Path = FOLDER) -> list[Training]:
    """The trainings of a board's entries, all by default; raises InputError for entries that state no training seed."""
    return [
        Training(entry, board.card.data.name, _seed(board, entry), folder / board.name / entry.name)
        for entry in chosen(board, names)
    ]


def _seed(board: Loaded[BoardCard], entry: Entry) -> int:
    if entry.training_seed is None:
        raise InputError(
            f"{board.shown}, entry '{entry.name}': no 'training_seed', so it cannot be trained again;"
            " the card has to state the seed"
        )
    return entry.training_seed


def lacking(board: Loaded[BoardCard], trainings: Iterable[Training]) -> dict[Path, Training]:
    """Which training makes each weights file that is absent from the board's own folder; not those of other boards."""
    own = (board.path.parent / board.name).resolve()
    places = {weights_path(board, training.entry): training for training in trainings}
    return {place: t for place, t in places.items() if place.resolve().is_relative_to(own) and not place.is_file()}


def write(places: dict[Path, Training]) -> None:
    """Copies trained weights to where the board looks for them."""
    for place, training in places.items():
        write_atomic(place, training.weights.read_bytes())
        print(f"wrote {place}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """See the module's docstring; exits with 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.board_training")
    parser.add_argument("board")
    parser.add_argument("entry", nargs="*")
    parser.add_argument("--write", action="store_true", help="copy weights that the board's folder lacks into place")
    given = parser.parse_args(arguments)
    try:
        board = open_workspace().board(given.board)
        trainings = board_trainings(board, tuple(given.entry))
        train_all(trainings)
        if given.write:
            write(lacking(board, trainings))
    except RobustbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
