"""Every lane beside the raw model calls it makes, at physical batch 64."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import models
from robustbench_vit.attacks import build_attack
from robustbench_vit.attacks.registry import algorithms
from robustbench_vit.cards import Loaded, open_workspace
from robustbench_vit.engine.lanes import Bench, CountedModel, Lane, run_lane
from robustbench_vit.engine.oracle import frozen
from robustbench_vit.engine.pool import PoolSettings, Samples
from robustbench_vit.plan import LanePlan

BATCH = 64
NEVER = {"linf": 1e-5, "l2": 1e-5, "l1": 1e-5}
"""A budget in which nothing falls, so that every row runs to its end."""
LANES = (("apgd-ce", 12), ("apgd-t", 12), ("fab-t", 12), ("square", 60))
"""Attack card, and the steps (or queries) it is cut to; random-weight models of 224×224 take a sixth of them."""
GOALS = {"resnet18-cifar": 0.95, "vit-tiny-224": 0.95}
GOAL = 0.85


@dataclass(frozen=True)
class Calls:
    """Seconds of raw calls of the model at the physical batch."""

    forward: float  # per image
    gradient: float  # a forward pass and one back to the input, per image


def lane_of(name: str, norm: str, steps: int) -> Lane:
    """The lane of an attack card, cut to so many steps or queries, one target and one restart."""
    workspace = open_workspace()
    (loaded,) = workspace.lanes(name, norm)
    cut = {"steps": steps, "queries": steps, "targets": 1, "restarts": 1}
    settings = {k: min(v, cut[k]) for k, v in loaded.card.settings.items() if k in cut}
    card = Loaded(loaded.name, loaded.path, loaded.shown, loaded.card.model_copy(update=settings))
    version = algorithms.get(card.card.algorithm, card.shown).algorithm_version
    plan = LanePlan(card, {"algorithm": card.card.algorithm, **card.card.settings}, version, norm)
    return Lane(plan, build_attack(card, norm))


def raw_calls(model: Any, x: Tensor, repeats: int) -> Calls:
    """The model called as simply as can be, with frozen parameters."""
    with torch.inference_mode():
        began = time.perf_counter()
        for _ in range(repeats):
            model(x)
        forward = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(repeats):
        at = x.detach().requires_grad_()
        torch.autograd.grad(model(at).sum(), at)
    gradient = time.perf_counter() - began
    return Calls(forward / repeats / len(x), gradient / repeats / len(x))


def lane_seconds(lane: Lane, model: Any, samples: Samples, norm: str) -> tuple[float, int, int]:
    """Seconds of a lane, and its forward and backward passes, counted from outside, padding included."""
    counted = CountedModel(model)
    bench = Bench(counted, torch.device("cpu"), BATCH, PoolSettings(len(samples), len(samples)), 0)
    began = time.perf_counter()
    for _ in run_lane(lane, samples, NEVER[norm], bench, {}):
        pass
    return time.perf_counter() - began, counted.forwards, counted.backwards


def measure(quick: bool, names: tuple[str, ...] = (), norms: tuple[str, ...] = ("linf", "l2", "l1")) -> dict[str, Any]:
    """Model/norm/lane -> the share of its time that raw calls of as many passes take, round by round."""
    found: dict[str, Any] = {}
    for name in names or models.names():
        subject = models.load(name, 2 * BATCH if name in models.RANDOM else 300)
        x, y = models.right(subject, BATCH)
        with torch.no_grad():
            ranking = subject.model(x).argsort(dim=1, descending=True)
        samples = Samples(tuple(map(str, range(BATCH))), x, y, ranking)
        big = x[0].numel() > 10_000
        with frozen(subject.model):
            for norm in norms:
                for card, steps in LANES:
                    if norm == "l1" and card.startswith("apgd"):
                        card += "-l1"
                    steps = max(steps // 6, 2) if big or quick else steps if name in models.RANDOM else 5 * steps
                    shares = [
                        _share(lane_of(card, norm, steps), subject.model, samples, norm)
                        for _ in range(1 if quick else 3)
                    ]
                    found[f"{name}/{norm}/{card}"] = shares
                    print(name, norm, card, [f"{s:.3f}" for s in shares], flush=True)
    return found


def _share(lane: Lane, model: Any, samples: Samples, norm: str) -> float:
    before = raw_calls(model, samples.x, 1 if samples.x[0].numel() > 10_000 else 10)
    seconds, forwards, backwards = lane_seconds(lane, model, samples, norm)
    after = raw_calls(model, samples.x, 1 if samples.x[0].numel() > 10_000 else 10)
    forward, gradient = (before.forward + after.forward) / 2, (before.gradient + after.gradient) / 2
    return ((forwards - backwards) * forward + backwards * gradient) / seconds
