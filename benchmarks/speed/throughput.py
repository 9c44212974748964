"""Every lane beside the raw calls of its model: what share of its time is not the attack's own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import lanes, models
from robustbench_vit.engine.lanes import CountedModel
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.waiting import Samples
from robustbench_vit.engine.width import Width, automatic_width

CARDS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = ("linf", "l2", "l1")
MODELS = ("cnn-standard", "cnn-pgd-at", "vit-standard", "vit-pgd-at", *models.RANDOM)
LARGE = models.RANDOM  # in linf only: in other norms their rows would take an hour
RAW_BATCH = 64
GOALS = {name: 0.95 if name in LARGE else 0.85 for name in MODELS}
SECONDS = 1.0
"""About how long a round of a lane takes, as far as the raw calls tell beforehand."""
ROUNDS = 5


@dataclass(frozen=True)
class Calls:
    """Seconds of raw calls per image."""

    forward: float
    gradient: float  # a forward pass and one back to the input


def raw_calls(model: Any, x: Tensor, seconds: float) -> Calls:
    """The model asked as simply as can be, its parameters frozen, in physical batches of `x`."""

    def gradient() -> None:
        at = x.detach().requires_grad_()
        torch.autograd.grad(model(at).sum(), at)

    with torch.inference_mode():
        forward = _each(lambda: model(x), seconds / 3)
    return Calls(forward / len(x), _each(gradient, 2 * seconds / 3) / len(x))


def _each(call: Callable[[], Any], seconds: float) -> float:
    began, calls = time.process_time(), 0
    while not calls or time.process_time() - began < seconds:
        call()
        calls += 1
    return (time.process_time() - began) / calls


def share(card: str, norm: str, model: Any, x: Tensor, samples: Samples, width: Width) -> dict[str, float]:
    """One round: raw calls with `x`, the lane, raw calls again."""
    before = raw_calls(model, x, SECONDS / 4)
    step = {"square": before.forward, "fab-t": before.gradient + before.forward}.get(card, before.gradient)
    steps = max(int(SECONDS / step / len(samples)), 3)
    lane = lanes.lane_of(f"{card}-l1" if norm == "l1" and card.startswith("apgd") else card, norm, steps)
    counted = CountedModel(model)
    began = time.process_time()
    wasted = lanes.run(lane, counted, samples, width)
    seconds = time.process_time() - began
    after = raw_calls(model, x, SECONDS / 4)
    forward, gradient = (before.forward + after.forward) / 2, (before.gradient + after.gradient) / 2
    calls = (counted.forwards - counted.backwards) * forward + counted.backwards * gradient
    decided = len(samples) * (steps + 1) * forward if card == "square" else calls
    return {"calls": calls / seconds, "steps": decided / seconds, "wasted": wasted / counted.forwards}


def measure(quick: bool) -> dict[str, Any]:
    """'model/norm/card' -> the rounds' shares, and the width."""
    found: dict[str, Any] = {}
    for name in MODELS[:1] if quick else MODELS:
        subject = models.load(name, 40 if name == "vit-tiny-224" else 300)
        image = torch.from_numpy(subject.data.x[0])
        width = automatic_width(subject.model, image, torch.device("cpu"))
        samples = lanes.rows_of(subject, min(width.rows, RAW_BATCH) if name in LARGE else width.rows)
        raw = lanes.rows_of(subject, RAW_BATCH).x
        rounds = 1 if quick else ROUNDS - 2 * (name in LARGE)
        with frozen(subject.model):
            for norm in NORMS[:1] if quick or name in LARGE else NORMS:
                for card in CARDS:
                    shares = [share(card, norm, subject.model, raw, samples, width) for _ in range(rounds)]
                    found[f"{name}/{norm}/{card}"] = {"rows": len(samples), "rounds": shares}
                    print(name, norm, card, f"{statistics.median(one['steps'] for one in shares):.3f}", flush=True)
    return found


LIMIT = (
    "What is left is the attack's own arithmetic: on large images projections and momentum, which go through the memory"
    " several times a step, and the noise of the start, here spread over few steps; in Square in l1 the windows"
    " and the mass moved between them, many small operations beside the forward pass of a small model."
)
"""Why a lane falls short."""


def section(found: dict[str, Any]) -> list[str]:
    """Its lines of the page."""
    missed = [what for what, one in found.items() if _middle(one, "steps") < GOALS[what.split("/")[0]]]
    verdict = f"Below it: {', '.join(missed)}. {LIMIT}" if missed else "Every lane reaches it."
    return [
        "## The engine beside raw model calls",
        "",
        "Sample-steps per second of processor time over those of raw calls alone: a forward pass in inference mode, or",
        f"one with the gradient to the input, parameters frozen, in batches of {RAW_BATCH}, before and after each",
        f"round of the lane. Medians of {ROUNDS} rounds (3 for {' and '.join(LARGE)}), with the range. Nothing falls,",
        "so every row goes to its end. Where a proposal of Square changes nothing, it is decided without a query;",
        "'calls' counts only what was asked. 'wasted' is padding.",
        "",
        "| model | norm | lane | rows | steps | range | calls | wasted, % | goal |",
        "|---|---|---|---:|---:|---|---:|---:|---:|",
        *[_line(what, one) for what, one in found.items()],
        "",
        f"The goal is {max(GOALS.values())} for {' and '.join(LARGE)}, {min(GOALS.values())} for the digits. {verdict}",
        "",
    ]


def _line(what: str, one: dict[str, Any]) -> str:
    steps = sorted(r["steps"] for r in one["rounds"])
    wasted = 100 * statistics.mean(r["wasted"] for r in one["rounds"])
    name, norm, card = what.split("/")
    cells = [f"{_middle(one, 'steps'):.2f}", f"{steps[0]:.2f} to {steps[-1]:.2f}", f"{_middle(one, 'calls'):.2f}"]
    return f"| {name} | {norm} | {card} | {one['rows']} | {' | '.join(cells)} | {wasted:.2f} | {GOALS[name]} |"


def _middle(one: dict[str, Any], what: str) -> float:
    return statistics.median(r[what] for r in one["rounds"])
