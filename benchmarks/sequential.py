"""How often sequential decisions are wrong, and how many samples they take: by simulation.

`python -m benchmarks.sequential` writes docs/sequential.md (a few minutes, one core). Verdicts are drawn at a given
rate of flips and a given true drop; the test looks after every sample and stops when it decides, or after `SAMPLES`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustbench_vit.statistics import ConfidenceSequence, wilson
from robustbench_vit.statistics.paired import samples_at_rates
from robustbench_vit.statistics.sequential import log_against_drop, log_against_no_drop
from robustbench_vit.storage import write_atomic

ALPHA = 0.05
RUNS = 2000
SAMPLES = 10_000
MAX_DROPS = (0.02, 0.05)
RATES = (0.01, 0.03, 0.1, 0.3)
DROPS = (0.0, 0.5, 1.0, 2.0, 3.0)
"""True drops, as multiples of the largest drop that is accepted."""
ACCURACIES = (0.5, 0.3, 0.1, 0.03, 0.01)
HALF_WIDTH = 0.02
SEQUENCES = 20
CHUNK = 50
"""Samples whose capital is computed at once; runs that have decided leave in between."""
REPORT = Path(__file__).resolve().parent.parent / "docs" / "sequential.md"


@dataclass(frozen=True)
class Case:
    """A true drop at a rate of flips."""

    max_drop: float
    rate: float  # samples lost + samples gained, as a share of all
    drop: float  # samples lost - samples gained, as a share of all

    @property
    def fixed(self) -> int | None:
        """How many samples a comparison of a fixed number needs for a power of 80 %; None when none would do."""
        lost, gained = (self.rate + self.drop) / 2, (self.rate - self.drop) / 2
        return samples_at_rates(lost, gained, self.max_drop, ALPHA)


@dataclass(frozen=True)
class Result:
    """What became of the runs of a case."""

    worse: float  # shares of the runs
    not_worse: float
    samples: np.ndarray  # (run,) samples used; SAMPLES where nothing was decided


def cases() -> list[Case]:
    """All combinations that can be: no more is lost than flips."""
    every = [Case(limit, rate, limit * times) for limit in MAX_DROPS for rate in RATES for times in DROPS]
    return [case for case in every if case.drop <= case.rate]


def simulate(case: Case, runs: int = RUNS) -> Result:
    """`runs` runs of the sequential test."""
    generator = np.random.default_rng([round(1e6 * value) for value in (case.max_drop, case.rate, case.drop)])
    used, going = np.full(runs, SAMPLES), np.arange(runs)
    worse = not_worse = 0
    lost, gained = np.zeros((2, runs, 1), dtype=np.int64)
    for start in range(0, SAMPLES, CHUNK):
        u = generator.random((len(going), CHUNK))
        lost = lost[:, -1:] + (u < (case.rate + case.drop) / 2).cumsum(1)
        gained = gained[:, -1:] + (u >= 1 - (case.rate - case.drop) / 2).cumsum(1)
        to_worse, to_not_worse = _decided(lost, gained, start, case.max_drop)
        first = np.minimum(to_worse, to_not_worse)
        done = first < CHUNK
        used[going[done]] = start + first[done] + 1
        worse += int((to_worse < to_not_worse).sum())
        not_worse += int((to_not_worse < to_worse).sum())
        going, lost, gained = going[~done], lost[~done], gained[~done]
    return Result(worse / runs, not_worse / runs, used)


def _decided(lost: np.ndarray, gained: np.ndarray, start: int, max_drop: float) -> list[np.ndarray]:
    """For each run the first of these samples at which it says worse, and not worse (CHUNK: none); as DropTest does."""
    needed, n = -math.log(ALPHA), np.broadcast_to(np.arange(start + 1, start + CHUNK + 1), lost.shape)
    worse = (log_against_no_drop(lost, gained, max_drop) >= needed) & (lost - gained > max_drop * n)
    not_worse = log_against_drop(lost, gained, n, max_drop) >= needed
    return [np.where(found.any(1), found.argmax(1), CHUNK) for found in (worse, not_worse)]


def row(case: Case, result: Result) -> str:
    """A line of the table."""
    undecided = abs(1 - result.worse - result.not_worse)  # never -0.0
    shares = (f"{100 * share:.1f}" for share in (result.worse, result.not_worse, undecided))
    median, most = (_samples(quantile) for quantile in np.quantile(result.samples, (0.5, 0.9), method="higher"))
    fixed = "–" if case.fixed is None else f"{case.fixed:,}"
    points = (f"{100 * value:g}" for value in (case.max_drop, case.rate, case.drop))
    return f"| {' | '.join((*points, *shares, median, most, fixed))} |"


def _samples(n: float) -> str:
    return "all" if n >= SAMPLES else f"{n:,.0f}"


def until_narrow(accuracy: float) -> np.ndarray:
    """How many samples each of `SEQUENCES` confidence sequences needs."""
    generator = np.random.default_rng(round(1e6 * accuracy))
    needed = []
    for _ in range(SEQUENCES):
        sequence = ConfidenceSequence(ALPHA, HALF_WIDTH)
        while not sequence.narrow:
            sequence = sequence.take(bool(generator.random() < accuracy))
        needed.append(sequence.n)
    return np.array(needed)


def fixed_until_narrow(accuracy: float) -> int:
    """How many samples Wilson's interval needs."""
    n = 50
    while np.ptp(wilson(round(accuracy * n), n, 1 - ALPHA)) > 2 * HALF_WIDTH:
        n += 1
    return n


def sequence_row(accuracy: float) -> str:
    """A line of the second table."""
    needed = until_narrow(accuracy)
    cells = (f"{100 * accuracy:g}", np.median(needed), needed.max(), fixed_until_narrow(accuracy))
    return f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:,.0f}' for cell in cells)} |"


def report() -> tuple[str, bool]:
    """The page, and whether both kinds of errors are as rare as promised."""
    found = {case: simulate(case) for case in cases()}
    alarms = max(result.worse for case, result in found.items() if case.drop == 0)
    misses = max(result.not_worse for case, result in found.items() if case.drop >= case.max_drop)
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)
    lines = [
        "# Sequential decisions, simulated",
        "",
        "<!-- generated by `python -m benchmarks.sequential`; do not edit -->",
        "",
        "What the procedures are and what they promise: [statistics.md](statistics.md).",
        "",
        "## The paired test",
        "",
        f"What `DropTest` decides when it looks after every sample, at alpha {ALPHA:g}: {RUNS:,} runs a line, on",
        f"at most {SAMPLES:,} samples. *max drop*, *flips* and *drop* are percent of all samples: the largest drop",
        "that is accepted, the samples whose verdict differs, and how much lower the true robust accuracy is.",
        "*worse*, *not worse* and *undecided* are percent of the runs. The last column has the samples that a",
        "comparison needs to decide with a probability of 80 % when their number is fixed before.",
        "",
        "| max drop | flips | drop | worse | not worse | undecided | samples, median | 90 % of runs | fixed number |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(row(case, result) for case, result in found.items()),
        "",
        f"False alarms (*worse* where the drop is 0): at most {100 * alarms:.1f} % of the runs of a line.",
        f"Misses (*not worse* where the drop is the largest accepted, or more): at most {100 * misses:.1f} %.",
        f"Promised: {100 * ALPHA:g} % of each. A drop between the two may be called either.",
        "",
        "## The confidence sequence",
        "",
        f"How many samples `ConfidenceSequence` needs until it is ± {100 * HALF_WIDTH:g} points wide, in {SEQUENCES}",
        "runs a line, and how many Wilson's interval needs when their number is fixed before. *accuracy* is in",
        "percent; 90 % needs as many as 10 %.",
        "",
        "| accuracy | samples, median | most | fixed number |",
        "|---:|---:|---:|---:|",
        *(sequence_row(accuracy) for accuracy in ACCURACIES),
        "",
    ]
    return "\n".join(lines), max(alarms, misses) <= allowed


def main() -> None:
    """See the module's docstring; exits with 1 when errors are more frequent than promised."""
    page, holds = report()
    write_atomic(REPORT, page.encode())
    print(page)
    if not holds:
        sys.exit("errors are more frequent than promised")


if __name__ == "__main__":
    main()
