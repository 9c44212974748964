"""Verdicts against the authors' AutoAttack: every entry of the digits board, all samples, three seeds a side.

`python -m benchmarks.parity` computes what is missing (resumable) and writes docs/parity.md; with `--check` it says
whether the committed numbers meet the two criteria. The verdicts of all samples are kept in
benchmarks/results/parity.json, so that the page can be recomputed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.side_by_side import BOARD, board, entry_names, load_entry, machine, reference
from robustbench_vit.cards import Loaded, open_workspace
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.running.board import RunOptions, run_board
from robustbench_vit.running.entries import chosen, weights_path
from robustbench_vit.running.memory import keep_freed_memory
from robustbench_vit.storage import write_atomic

SEEDS = (0, 1, 2)
SIDES = ("ours", "reference")
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "parity.json"
REPORT = ROOT.parent / "docs" / "parity.md"
PERMUTATIONS = 100_000
LIMIT_POINTS, LIMIT_P = 0.5, 0.01

Results = dict[str, str]
"""'entry/side/seed/weights' -> a string of 0 and 1, one digit per sample, 1 = robust."""


def key(entry: str, side: str, seed: int) -> str:
    """Where a result stands; changed weights need new results."""

    (card,) = chosen(board(), [entry])
    digest = hashlib.sha256(weights_path(board(), card).read_bytes()).hexdigest()[:12]
    return f"{entry}/{side}/{seed}/{digest}"


def load() -> Results:
    """What has been computed."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def missing(done: Results, side: str) -> list[tuple[str, int]]:
    """The (entry, seed) pairs of a side that have not been computed."""
    return [(entry, seed) for seed in SEEDS for entry in entry_names() if key(entry, side, seed) not in done]


def compute() -> Results:
    """All results, computing what is missing; each is written as it comes."""
    done = load()
    for seed in SEEDS:
        _ours(done, seed)
    left = missing(done, "reference")
    if left:
        with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(left))) as pool:
            for (entry, seed), robust in pool.imap_unordered(_reference, left):
                _keep(done, entry, "reference", seed, robust)
    return done


def _ours(done: Results, seed: int) -> None:
    """Runs the board itself with this seed; seed 0 is the board's own and shares the folder of `rbvit run`."""
    entries = [entry for entry, other in missing(done, "ours") if other == seed]
    if not entries:
        return
    loaded = board()
    reseeded = Loaded(loaded.name, loaded.path, loaded.shown, loaded.card.model_copy(update={"seed": seed}))
    folder = ROOT.parent / "runs" / (loaded.name if seed == loaded.card.seed else f"{loaded.name}-seed-{seed}")
    records = run_board(reseeded, open_workspace(), RunOptions(entries=tuple(entries), out=folder)).records
    for entry, record in records.items():
        outcomes = record.at("autoattack", loaded.card.eps[0]).outcomes
        _keep(done, entry, "ours", seed, [outcome.robust for outcome in outcomes])


def _reference(task: tuple[str, int]) -> tuple[tuple[str, int], list[bool]]:
    """One evaluation by the reference, in a process of one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()
    entry, seed = task
    model, data = load_entry(entry)
    with frozen(model):  # the reference computes gradients of the weights too, which change nothing but the time
        return task, reference(model, data, seed).robust


def _keep(done: Results, entry: str, side: str, seed: int, robust: list[bool]) -> None:
    done[key(entry, side, seed)] = "".join("01"[yes] for yes in robust)
    write_atomic(RESULTS, (json.dumps(done, indent=1, sort_keys=True) + "\n").encode())
    print(f"{entry} {side} seed {seed}: {100 * sum(robust) / len(robust):.1f} % robust", flush=True)


def verdicts(done: Results, entry: str, side: str) -> np.ndarray:
    """bool (seeds, samples)"""
    return np.array([[digit == "1" for digit in done[key(entry, side, seed)]] for seed in SEEDS])


def permutation_p(robust: np.ndarray, ours_robust: np.ndarray, per_side: int, seed: int = 0) -> float:
    """Two-sided p of the pooled difference if, for each sample, sides had been handed out at random.

    `robust` counts robust verdicts of a sample over both sides, `ours_robust` those on our side (both (pairs,)). Under
    the hypothesis the latter is hypergeometric, independently for each sample.
    """
    generator = np.random.default_rng(seed)
    disagree = (robust > 0) & (robust < 2 * per_side)
    if not disagree.any():
        return 1.0
    total, mine = robust[disagree], ours_robust[disagree]
    observed = abs((2 * mine - total).sum())
    draws = generator.hypergeometric(total, 2 * per_side - total, per_side, size=(PERMUTATIONS, len(total)))
    return float((1 + (np.abs((2 * draws - total).sum(1)) >= observed).sum()) / (1 + PERMUTATIONS))


def report(done: Results) -> tuple[str, bool]:
    """The page, and whether both criteria hold."""
    lines, robust, mine, worst = [], [], [], -100.0
    for entry in entry_names():
        sides = {side: verdicts(done, entry, side) for side in SIDES}
        shares = {side: 100 * found.mean(1) for side, found in sides.items()}
        difference = shares["ours"].mean() - shares["reference"].mean()
        worst = max(worst, difference)
        both = sides["ours"].sum(0) + sides["reference"].sum(0)
        robust.append(both)
        mine.append(sides["ours"].sum(0))
        p = permutation_p(both, sides["ours"].sum(0), len(SEEDS))
        disagree = int(((both > 0) & (both < 2 * len(SEEDS))).sum())
        cells = [" ".join(f"{share:.1f}" for share in shares[side]) for side in SIDES]
        lines.append(f"| {entry} | {cells[0]} | {cells[1]} | {difference:+.2f} | {disagree} | {p:.3f} |")
    pooled = permutation_p(np.concatenate(robust), np.concatenate(mine), len(SEEDS))
    holds = worst <= LIMIT_POINTS and pooled > LIMIT_P
    return _page(lines, worst, pooled, holds), holds


def _page(lines: list[str], worst: float, pooled: float, holds: bool) -> str:
    card = board().card
    samples = len(next(iter(load().values())))
    return "\n".join(
        [
            "# Parity with the authors' AutoAttack",
            "",
            "<!-- generated by `python -m benchmarks.parity`; do not edit -->",
            "",
            "Our `autoattack` beside pyautoattack (the authors' code, version `standard`) on every entry of",
            f"`{BOARD}`: {card.norm}, eps {card.eps[0]:g}, n = {samples} samples, {len(SEEDS)} seeds a side. Robust",
            "accuracy in percent, one number per seed.",
            "",
            "| entry | ours | reference | difference of means, points | samples not unanimous | p |",
            "|---|---|---|---:|---:|---:|",
            *lines,
            "",
            f"Our mean is above theirs by at most: {worst:+.2f} points (limit {LIMIT_POINTS}). Pooled permutation",
            f"test over all entries: p = {pooled:.3f} (limit {LIMIT_P}).",
            f"Both criteria {'hold' if holds else 'DO NOT HOLD'}.",
            "",
            "p is the chance of a difference at least this large if, for each sample, the verdicts had been dealt",
            f"to the two sides at random ({PERMUTATIONS:,} draws). Verdicts: `benchmarks/results/parity.json`.",
            "",
            f"Made with `make evidence` on: {machine()}.",
            "",
        ]
    )


def main() -> None:
    """Writes the report; exits with 1 when a criterion fails."""
    page, holds = report(load() if "--check" in sys.argv else compute())
    if "--check" not in sys.argv:
        write_atomic(REPORT, page.encode())
        print(page)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
