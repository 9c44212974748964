"""What a regulariser adds to a training step: the same recipe with and without it, epoch by epoch in turn."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch

from benchmarks.speed.training import Case
from robustbench_vit.cards import open_workspace
from robustbench_vit.data import load_dataset
from robustbench_vit.defenses.recipe import apply_architecture, build_recipe
from robustbench_vit.defenses.train import Trainer
from robustbench_vit.models.build import build_model

CASES = (
    ("digits_cnn", "norm-decay"),
    ("digits_cnn", "norm-decay-l1"),
    ("digits_cnn", "svc"),
    ("digits_vit", "norm-decay"),
    ("digits_ic_cnn", "bn-projection"),
)
"""Model and defense card."""
JUDGED = ("digits_cnn/norm-decay", "digits_cnn/norm-decay-l1")
GOAL = 0.15
STEPS, ROUNDS = 20, 15


def case(model_name: str, defense: str, regularised: bool) -> Case:
    """A fresh model with its recipe, with or without its regularisers, and the data of one epoch."""
    workspace = open_workspace()
    recipe = build_recipe(workspace.defense(defense), workspace)
    if not regularised:
        recipe = dataclasses.replace(recipe, regularisers=())
    data = load_dataset("digits", "train").first(STEPS * recipe.card.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(model_name, num_classes=data.num_classes, in_chans=data.x.shape[1])
        return Case(recipe, apply_architecture(recipe, model), data)


def measure(quick: bool) -> dict[str, Any]:
    """Model/card -> what the regularisers add to a step, as a share of it, round by round."""
    found: dict[str, Any] = {}
    for model, defense in CASES:
        found[f"{model}/{defense}"] = one = compare(model, defense, 3 if quick else ROUNDS)
        print(model, defense, f"{statistics.median(one['added']):+.3f}", flush=True)
    return found


def compare(model: str, defense: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, each on a model of its own."""
    sides = [_trainer(case(model, defense, regularised)) for regularised in (True, False)]
    for trainer in sides:
        trainer.run_epoch(None)  # warms up
    pairs = [[_seconds(trainer) for trainer in sides] for _ in range(rounds)]
    without = statistics.median(bare for _, bare in pairs)
    return {"added": [full / bare - 1 for full, bare in pairs], "step_ms": 1000 * without / STEPS}


def _trainer(one: Case) -> Trainer:
    return Trainer(one.recipe, one.model, one.data, 0, torch.device("cpu"))


def section(found: dict[str, Any]) -> list[str]:
    """Its lines of the page."""
    rounds = len(next(iter(found.values()))["added"])
    over = [name for name in JUDGED if name in found and statistics.median(found[name]["added"]) > GOAL]
    return [
        "## Regularisers",
        "",
        "What the regularisers of a recipe add to a training step, beside the same recipe without them: batches of 64",
        f"digits, epochs of {STEPS} steps in turn, {rounds} rounds, seconds of the processor.",
        "",
        "| model | card | added: median (middle half), % | ms per step without |",
        "|---|---|---:|---:|",
        *(_row(name, one) for name, one in found.items()),
        "",
        f"The goal for norm decay on the CNN is at most {100 * GOAL:g} %. "
        + (f"Over it: {', '.join(over)}." if over else "Both norms keep to it."),
        "",
    ]


def _row(name: str, one: dict[str, Any]) -> str:
    low, middle, high = (100 * share for share in statistics.quantiles(one["added"], n=4, method="inclusive"))
    model, card = name.split("/")
    return f"| {model} | {card} | {middle:.1f} ({low:.1f} to {high:.1f}) | {one['step_ms']:.1f} |"


def _seconds(trainer: Trainer) -> float:
    """Of the processor for one epoch."""
    began = time.process_time()
    trainer.run_epoch(None)
    return time.process_time() - began
