"""Trains the entries of the digits board again and evaluates them: do the intervals overlap?

`python -m benchmarks.retraining` computes what is missing (resumable) and writes docs/retraining.md; names of entries
after it choose only those. Every entry is trained twice: with the seed of the committed weights, which must give the
committed numbers back within their intervals, and with another seed, which shows how much the seed matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.side_by_side import BOARD, board, machine
from robustbench_vit.boards import board_folder
from robustbench_vit.cards import BoardCard, Entry, Loaded, open_workspace
from robustbench_vit.records import Record
from robustbench_vit.running.board import RunOptions, run_board
from robustbench_vit.running.entries import chosen
from robustbench_vit.running.workers import Task, run_tasks
from robustbench_vit.storage import write_atomic

SAME, OTHER = 0, 1
"""The seed of the committed weights, and another one."""
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "retraining"
REPORT = ROOT / "docs" / "retraining.md"


def trained(entry: Entry, seed: int) -> Path:
    """The folder of one training."""
    return FOLDER / f"seed-{seed}" / entry.name


class TrainEntry:
    """Trains one entry in a worker process."""

    def __init__(self, entry: Entry, seed: int) -> None:
        self.entry, self.seed = entry, seed

    def __call__(self, send: Callable[..., None]) -> None:
        from robustbench_vit.defenses.train import train_defense

        torch.set_num_threads(1)
        entry, out = self.entry, trained(self.entry, self.seed)
        train_defense(entry.defense, entry.model, "digits", out, self.seed, "cpu", open_workspace())


def retrain(entries: list[Entry]) -> None:
    """Trains all entries with both seeds, two at a time; finished ones are left alone."""
    tasks = [Task(f"{entry.name} seed {seed}", TrainEntry(entry, seed)) for seed in (SAME, OTHER) for entry in entries]
    for message in run_tasks(tasks, workers=2):
        if message.error is not None:
            raise message.error
        print(f"{message.task}: trained", flush=True)


def retrained_board(seed: int) -> Loaded[BoardCard]:
    """The board with the retrained weights in place of the committed ones."""
    loaded = board()
    entries = [
        entry.model_copy(update={"weights": str(trained(entry, seed) / "weights.safetensors")})
        for entry in loaded.card.entries
    ]
    return Loaded(loaded.name, loaded.path, loaded.shown, loaded.card.model_copy(update={"entries": entries}))


@dataclass(frozen=True)
class Retrained:
    """One entry three times."""

    committed: Record
    same: Record
    other: Record

    def apart(self, seed: int) -> list[str]:
        """The attacks whose intervals don't overlap with the committed record's."""
        card = board().card
        pair = (self.committed, self.same if seed == SAME else self.other)
        return [name for name in card.attacks if not _overlap(*(r.at(name, card.eps[0]) for r in pair))]

    @property
    def equal_weights(self) -> bool:
        """Whether training with the same seed gave the committed file, byte by byte."""
        return self.committed.entry["weights_sha256"] == self.same.entry["weights_sha256"]


def _overlap(a: Record, b: Record) -> bool:
    (low, high), (other_low, other_high) = (record.interval(board().card.confidence) for record in (a, b))
    return low <= other_high and other_low <= high


def report(results: dict[str, Retrained]) -> tuple[str, bool]:
    """The page, and whether every interval of the same seed overlaps with the committed one."""
    lines = [_line(name, result) for name, result in results.items()]
    same = sum(len(result.apart(SAME)) for result in results.values())
    other = [f"{attack} of {name}" for name, result in results.items() for attack in result.apart(OTHER)]
    equal = sum(result.equal_weights for result in results.values())
    return _page(lines, same, other, equal), same == 0


def _line(name: str, result: Retrained) -> str:
    card = board().card
    records = (result.committed, result.same, result.other)
    cells = [_percent(record.at(attack, card.eps[0])) for attack in card.attacks for record in records]
    clean = [f"{100 * record.clean_accuracy:.1f}" for record in records]
    return f"| {name} | {'yes' if result.equal_weights else 'no'} | {' | '.join([*clean, *cells])} |"


def _percent(record: Record) -> str:
    low, high = (100 * bound for bound in record.interval(board().card.confidence))
    return f"{100 * record.robust_accuracy:.1f} [{low:.1f}, {high:.1f}]"


def _page(lines: list[str], same: int, other: list[str], equal: int) -> str:
    card = board().card
    which = ("committed", f"seed {SAME}", f"seed {OTHER}")
    names = ["entry", "same bytes", *(f"{what} {how}" for what in ("clean", *card.attacks) for how in which)]
    return "\n".join(
        [
            "# Retrained entries",
            "",
            "<!-- generated by `python -m benchmarks.retraining`; do not edit -->",
            "",
            f"{len(lines)} of the {len(card.entries)} entries of `{BOARD}` trained again from their defense cards,",
            f"once with the seed of the committed weights ({SAME}) and once with another ({OTHER}), and evaluated",
            f"like the board. Percent, [Wilson {100 * card.confidence:g} % intervals]. 'same bytes': training with",
            f"seed {SAME} gave the committed weights file back, byte by byte.",
            "",
            f"| {' | '.join(names)} |",
            f"|{'|'.join(['---'] * len(names))}|",
            *lines,
            "",
            f"Seed {SAME}: {'all intervals overlap' if not same else f'{same} PAIRS OF INTERVALS DO NOT OVERLAP'}"
            f" with the committed ones; {equal} of {len(lines)} weights files are equal to the byte",
            "(training repeats bit for bit on one kind of processor only).",
            "",
            f"Seed {OTHER}: {'all intervals overlap.' if not other else 'apart lie ' + ', '.join(other) + '.'}",
            "The intervals speak of the draw of test samples only, not of that of a training seed.",
            "",
            f"Made with `make evidence` on: {machine()}.",
            "",
        ]
    )


def main() -> None:
    """Trains, evaluates, writes the page; exits with 1 when the same seed doesn't give the numbers back."""
    names = tuple(sys.argv[1:])
    entries = chosen(board(), names)
    retrain(entries)
    fresh = {}
    for seed in (SAME, OTHER):
        out = FOLDER / f"seed-{seed}-evaluation"
        fresh[seed] = run_board(retrained_board(seed), open_workspace(), RunOptions(entries=names, out=out)).records
    records = board_folder(board()) / "records"
    page, holds = report(
        {
            entry.name: Retrained(
                Record.load(records / f"{entry.name}.json"), fresh[SAME][entry.name], fresh[OTHER][entry.name]
            )
            for entry in entries
        }
    )
    write_atomic(REPORT, page.encode())
    print(page)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
