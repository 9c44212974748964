"""What a sample costs when there are a hundred, a thousand or ten thousand of them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import robustbench_vit as rbv
from benchmarks import public_nets
from robustbench_vit.cards import AttackCard, open_workspace
from robustbench_vit.data import Dataset
from robustbench_vit.engine.lanes import CountedModel
from robustbench_vit.engine.oracle import frozen

NET = "convex-mnist"
STEPS = 10
SIZES = (100, 1_000, 10_000)
ROUNDS = 3
GOAL = 1.05
"""Cost of a sample among 10,000 over that among 1,000."""


@dataclass(frozen=True)
class Case:
    """A run at one radius, with its journal in a folder or without one."""

    eps: float
    journal: bool


CASES = {
    "robust": Case(0.1, journal=False),
    "robust, journal": Case(0.1, journal=True),
    "fallen": Case(0.5, journal=False),
    "fallen, journal": Case(0.5, journal=True),
}


def card() -> AttackCard:
    """APGD with few steps: what doesn't belong to the model calls shows more."""
    return open_workspace().attack("apgd-ce", "benchmarks").card.model_copy(update={"steps": STEPS})


def run(model: Any, data: Dataset, case: Case) -> dict[str, float]:
    """Seconds and passes per sample, counted from outside, of `evaluate` as users call it; and the share robust.

    Without the search for masked gradients, whose allowance isn't proportional to the samples when they are few.
    """
    counted = CountedModel(model)
    with ExitStack() as stack:
        stack.enter_context(frozen(model))  # as evaluate does by itself when it is given the model itself
        out = stack.enter_context(tempfile.TemporaryDirectory()) if case.journal else None
        began = time.process_time()
        record = rbv.evaluate(counted, data, attack=card(), eps=case.eps, out=out, reliability=False)
        seconds = time.process_time() - began
    passes = counted.forwards + 2 * counted.backwards
    return {"seconds": seconds / len(data), "passes": passes / len(data), "robust": record.robust_accuracy}


def measure(quick: bool) -> dict[str, Any]:
    """Case -> samples -> the runs of every round; empty where the public nets are not."""
    found: dict[str, Any] = {name: {str(n): [] for n in sizes(quick)} for name in CASES}
    if not public_nets.available():
        return {}
    model = public_nets.load_net(NET)
    data = public_nets.net_samples(NET, sizes(quick)[-1])
    run(model, data.first(SIZES[0]), CASES["robust"])  # warms up
    for _ in range(1 if quick else ROUNDS):
        for name, case in CASES.items():
            for n in sizes(quick):
                found[name][str(n)].append(run(model, data.first(n), case))
                last = found[name][str(n)][-1]
                print(name, n, f"{1000 * last['seconds']:.3f} ms, {last['passes']:.1f} passes a sample", flush=True)
    return found


def sizes(quick: bool) -> tuple[int, ...]:
    """Numbers of samples, ascending."""
    return SIZES[:2] if quick else SIZES


def section(found: Mapping[str, Any]) -> list[str]:
    """Its lines of the page."""
    if not found:
        return []
    ns = [int(n) for n in next(iter(found.values()))]
    over = [name for name, runs in found.items() if growth(runs) > GOAL]
    return [
        "## Cost over the number of samples",
        "",
        f"`rbv.evaluate` on the first n images of MNIST's test set, {NET}, apgd-ce cut to {STEPS} steps, with and",
        "without a journal on disk, without the search for masked gradients. At eps 0.1 nearly everything stays",
        "robust, at 0.5 nearly nothing. Milliseconds (of the processor, medians) and passes (a backward counts two)",
        "per sample. What a run costs once, samples or not, is part of it.",
        "",
        f"| case | robust, % | {_heads('ms', ns)} | {_heads('passes', ns)} | growth (range) |",
        f"|---|{'---:|' * (2 * len(ns) + 2)}",
        *[_row(name, runs) for name, runs in found.items()],
        "",
        f"Growth is the cost of a sample at {ns[-1]:,} over that at {ns[-2]:,}; the goal is at most {GOAL:g}."
        f" {'Over it: ' + '; '.join(over) + '.' if over else 'Every case keeps to it.'}",
        "",
    ]


def _heads(what: str, ns: list[int]) -> str:
    return " | ".join(f"{what} at {n:,}" for n in ns)


def growth(runs: Mapping[str, list[dict[str, float]]]) -> float:
    """The median over the rounds of a sample's seconds at the largest number over those at the one before."""
    return statistics.median(_growths(runs))


def _growths(runs: Mapping[str, list[dict[str, float]]]) -> list[float]:
    before, last = list(runs.values())[-2:]
    return sorted(b["seconds"] / a["seconds"] for a, b in zip(before, last, strict=True))


def _row(name: str, runs: Mapping[str, list[dict[str, float]]]) -> str:
    growths = _growths(runs)
    cells = [
        name,
        f"{100 * list(runs.values())[-1][0]['robust']:.1f}",
        *[f"{1000 * statistics.median(one['seconds'] for one in found):.2f}" for found in runs.values()],
        *[f"{statistics.median(one['passes'] for one in found):.1f}" for found in runs.values()],
        f"{statistics.median(growths):.3f} ({growths[0]:.3f} to {growths[-1]:.3f})",
    ]
    return f"| {' | '.join(cells)} |"
