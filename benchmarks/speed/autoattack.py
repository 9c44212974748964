"""Our `autoattack` beside the authors', model by model: passes and seconds, and how far from the least possible."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import public_nets
from benchmarks.side_by_side import board, ours, reference
from benchmarks.speed import models
from robustbench_vit.attacks import build_attack
from robustbench_vit.cards import open_workspace

NORM = "linf"
ROUNDS = 3
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A model, how many samples, and the radius; None is the board's."""

    model: str
    n: int
    eps: float | None = None


CASES = (
    Case("convex-mnist", 2000, 0.5),
    Case("cnn-standard", 500),
    Case("vit-standard", 300),
    Case("cnn-pgd-at", 100),
    Case("vit-pgd-at", 60),
    Case("cnn-pgd-at", 60, 0.02),
    Case("vit-pgd-2-3-16", 60, 2 / 255),
    Case("cnn-a-adv", 60, 2 / 255),
    Case("cnn-a-mix4", 60, 2 / 255),
)


LIMIT = (
    "The limit where hardly anything stands: a broken sample costs the clean pass, the gradients of the two to four",
    "points it takes to fall (three passes each) and the recheck, where the floor counts one point. And a sample that",
    "`apgd-ce` doesn't break takes its 100 steps one after another, whatever fell long before: up to seven such rows",
    "are padded to the smallest physical batch, eight, which keeps results independent of the neighbours. On",
    "`cnn-standard` three of 500 samples are like that (`after apgd-ce` on the board). Among more samples they run",
    "side by side and weigh less, as on `convex-mnist`.",
)
"""Why goals are missed on models that hardly stand."""


def measure(quick: bool) -> list[dict[str, Any]]:
    """Each case, with its rounds of (ours, reference): passes per sample and seconds."""
    found = []
    for case in CASES[:1] if quick else CASES:
        if case.model in public_nets.NAMES and not public_nets.available():
            continue
        subject = models.load(case.model, 16 if quick else case.n)
        budget = (NORM, case.eps or board().card.eps[0])
        rounds = []
        for seed in range(1 if quick else ROUNDS):
            mine = ours(subject.model, subject.data, *budget, seed)
            theirs = reference(subject.model, subject.data, *budget, seed)
            rounds.append({"ours": _kept(asdict(mine)), "reference": _kept(asdict(theirs))})
            print(case, f"ours {mine.seconds:.1f} s, reference {theirs.seconds:.1f} s", flush=True)
        clean = len(models.right_at(subject))
        found.append({"model": case.model, "eps": budget[1], "n": len(subject.data), "clean": clean, "rounds": rounds})
    return found


def _kept(side: dict[str, Any]) -> dict[str, float]:
    robust = side.pop("robust")
    return {**side, "robust": sum(robust)}


def passes(side: dict[str, float]) -> float:
    """Forward equivalents per sample, a backward counting two."""
    return side["forwards"] + 2 * side["backwards"]


def floor(one: dict[str, Any], robust: float) -> float:
    """The fewest passes per sample that could do: robust samples run every lane, broken ones one step and one check."""
    lanes = open_workspace().lanes("autoattack", NORM)
    costs = [build_attack(lane, NORM).cost(CLASSES) for lane in lanes]
    whole = sum(cost.forwards + 2 * cost.backwards for cost in costs)
    return (one["n"] + robust * whole + (one["clean"] - robust) * 4) / one["n"]


def section(found: list[dict[str, Any]]) -> list[str]:
    """Its lines of the page."""
    return [
        "## AutoAttack beside the authors'",
        "",
        f"`autoattack` in {NORM}, both sides in turn in one process, {ROUNDS} seeds, on the first n samples. Ratios",
        "are the authors' over ours: above 1 we need less. A backward pass counts as two forwards. Ours include",
        "intake, padding, cancelled rows and rechecks. The floor is what robust samples cost that run every lane, and",
        "broken ones that fall in the first step and are checked; above 100 % we are below it, because proposals of",
        "Square that change nothing cost no query.",
        "",
        "| model | eps | n | robust, % | authors' passes | ours | ratio | floor / ours, % | time ratio (range) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *[_line(one) for one in found],
        "",
        *_goals(found),
        "",
        *LIMIT,
        "",
    ]


def ratios(one: dict[str, Any], what: str) -> list[float]:
    """Reference over ours, round by round, in ascending order."""
    sides = [(r["reference"], r["ours"]) for r in one["rounds"]]
    return sorted(passes(a) / passes(b) if what == "passes" else a["seconds"] / b["seconds"] for a, b in sides)


def _robust(one: dict[str, Any]) -> float:
    return statistics.mean(r["ours"]["robust"] for r in one["rounds"])


def _share_of_floor(one: dict[str, Any]) -> float:
    return floor(one, _robust(one)) / statistics.mean(passes(r["ours"]) for r in one["rounds"])


def _line(one: dict[str, Any]) -> str:
    theirs, mine = (statistics.mean(passes(r[side]) for r in one["rounds"]) for side in ("reference", "ours"))
    times = ratios(one, "seconds")
    cells = [
        one["model"],
        f"{one['eps']:.3g}",
        str(one["n"]),
        f"{100 * _robust(one) / one['n']:.1f}",
        f"{theirs:,.0f}",
        f"{mine:,.0f}",
        f"{statistics.median(ratios(one, 'passes')):.2f}",
        f"{100 * _share_of_floor(one):.0f}",
        f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
    ]
    return f"| {' | '.join(cells)} |"


def _goals(found: list[dict[str, Any]]) -> list[str]:
    """Every goal with the rows it is about, and whether they reach it."""
    lines = []
    for words, applies, what, least in (
        ("not robust at all (under 1 %): passes", lambda share: share < 0.01, "passes", 30.0),
        ("not robust at all (under 1 %): time", lambda share: share < 0.01, "seconds", 15.0),
        ("30 to 70 % robust: time", lambda share: 0.3 <= share <= 0.7, "seconds", 1.15),
        ("at least 90 % robust: time", lambda share: share >= 0.9, "seconds", 1.1),
        ("any: passes never above 1.02 of theirs", lambda share: True, "passes", 1 / 1.02),
    ):
        rows = [one for one in found if applies(_robust(one) / one["n"])]
        cells = [f"{_named(one)} {statistics.median(ratios(one, what)):.2f}" for one in rows]
        missed = [_named(one) for one in rows if statistics.median(ratios(one, what)) < least]
        said = f"missed by {', '.join(missed)}" if missed else "reached" if rows else "no such model here"
        lines.append(f"- {words}, goal ≥ {least:.2f}: {said} ({'; '.join(cells)}).")
    below = [f"{_named(one)} {100 * _share_of_floor(one):.0f} %" for one in found if _share_of_floor(one) < 0.85]
    return [
        *lines,
        f"- any: at least 85 % of our passes are floor: {'missed by ' + ', '.join(below) if below else 'reached'}.",
    ]


def _named(one: dict[str, Any]) -> str:
    return f"{one['model']} at {one['eps']:.3g}"
