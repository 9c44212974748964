"""The verdicts that have been computed."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.parity.cases import Case, cases
from benchmarks.parity.sides import run_side
from robustbench_vit.storage import write_atomic

SEEDS = (0, 1, 2)
PATH = Path(__file__).resolve().parents[1] / "results" / "parity.json"

Results = dict[str, str]
"""Case.key(side, seed) -> a string of 0 and 1, one digit per sample, 1 = robust."""


def load() -> Results:
    """What has been computed."""
    return json.loads(PATH.read_text()) if PATH.is_file() else {}


def compute(sides: Iterable[str], seeds: Iterable[int] = SEEDS) -> Results:
    """All results of these sides, computing what is missing; each is written as it comes."""
    done, seeds = load(), tuple(seeds)
    wanted = [(case, side, seed) for case in cases() for seed in seeds for side in sides if _possible(case, side)]
    left = [task for task in wanted if task[0].key(*task[1:]) not in done]
    if left:
        with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(left))) as pool:
            for task, robust in pool.imap_unordered(run_side, left):
                _keep(task, robust)
    return load()


def _possible(case: Case, side: str) -> bool:
    return side != "torchattacks" or case.norm != "l1"  # it has no AutoAttack in l1


def _keep(task: tuple[Case, str, int], robust: list[bool]) -> None:
    case, side, seed = task
    done = {**load(), case.key(side, seed): "".join("01"[yes] for yes in robust)}
    write_atomic(PATH, (json.dumps(done, indent=1, sort_keys=True) + "\n").encode())
    share = 100 * sum(robust) / len(robust)
    print(f"{case.model} {case.budget} {side} seed {seed}: {share:.1f} % robust", flush=True)


def verdicts(done: Results, case: Case, side: str, seeds: Iterable[int] = SEEDS) -> np.ndarray | None:
    """bool (seeds, samples); None unless all seeds are there."""
    found = [done.get(case.key(side, seed)) for seed in seeds]
    if any(one is None for one in found):
        return None
    return np.array([[digit == "1" for digit in one] for one in found if one is not None])
