"""Our training loop beside the raw model calls of adversarial training, and beside a bare PyTorch loop."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_vit.cards import open_workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.losses import PGDAdversarialTraining
from robustbench_vit.defenses.recipe import Recipe, apply_architecture, build_recipe
from robustbench_vit.defenses.train import Trainer
from robustbench_vit.defenses.weight_average import WeightAverage
from robustbench_vit.models.build import build_model

CASES = (
    ("digits_vit", "pgd-at"),
    ("digits_cnn", "pgd-at"),
    ("digits_ic_cnn", "pgd-at"),
    ("digits_vit", "standard"),
    ("digits_cnn", "standard"),
    ("digits_ic_cnn", "standard"),
)
"""Model and defense card."""
GOAL = 0.95
STEPS = {"pgd-at": 4, "standard": 20}
"""Of one epoch, and each side's turn is one epoch: what else the machine does then hits both alike."""
ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """A model to train by a recipe."""

    recipe: Recipe
    model: nn.Module
    data: Dataset

    @property
    def batch(self) -> int:
        """Samples of one step."""
        return min(self.recipe.card.batch_size, len(self.data))

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return len(self.data) // self.batch


def case(model_name: str, defense: str) -> Case:
    """A fresh model with its recipe and as much of the digits' train split as one epoch needs."""
    workspace = open_workspace()
    recipe = build_recipe(workspace.defense(defense), workspace)
    data = load_dataset("digits", "train").first(STEPS[defense] * recipe.card.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(model_name, num_classes=data.num_classes, in_chans=data.x.shape[1])
        return Case(recipe, apply_architecture(recipe, model), data)


class Bare:
    """The loop one would write by hand: same optimiser, schedule, clipping, averaging; nothing counted or checked."""

    def __init__(self, case: Case) -> None:
        self._case, self._epoch = case, 0
        self._optimiser = case.recipe.optimiser.build(case.model)
        self._rate = self._optimiser.param_groups[0]["lr"]
        decay = case.recipe.card.weight_average
        self._average = None if decay is None else WeightAverage(case.model, decay)
        self._x, self._y = torch.from_numpy(case.data.x), torch.from_numpy(case.data.y)

    def run_epoch(self) -> None:
        """Trains for one epoch."""
        card, generator = self._case.recipe.card, torch.Generator().manual_seed(self._epoch)
        order = torch.randperm(len(self._x), generator=generator)
        self._case.model.train()
        for step in range(self._case.steps):
            number = self._epoch * self._case.steps + step + 1
            rate = self._rate * self._case.recipe.schedule.at(number / self._case.steps, card.epochs)
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            self._step(number, order[step * self._case.batch : (step + 1) * self._case.batch], generator)
        self._epoch += 1

    def _step(self, number: int, index: Tensor, generator: torch.Generator) -> None:
        card, model, augment = self._case.recipe.card, self._case.model, self._case.recipe.augment
        x = self._x[index] if augment is None else augment(self._x[index], generator)
        self._optimiser.zero_grad()
        F.cross_entropy(model(x), self._y[index]).backward()
        if card.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), card.gradient_clip)
        self._optimiser.step()
        if self._average is not None:
            self._average.update(model, number)


class RawCalls:
    """The model calls of adversarial training and nothing else: no noise, no steps, no projection, no clipping."""

    def __init__(self, case: Case) -> None:
        loss = case.recipe.card.loss
        settings = PGDAdversarialTraining(**loss.settings)
        (attack,) = open_workspace().lanes(settings.attack, settings.norm)
        self._inner = int(attack.card.settings["steps"])
        self._case = case
        self._frozen = _twin(case.model)
        self._optimiser = case.recipe.optimiser.build(case.model)
        self._x, self._y = torch.from_numpy(case.data.x), torch.from_numpy(case.data.y)

    def run_epoch(self) -> None:
        """The calls of one epoch."""
        self._case.model.train()
        for step in range(self._case.steps):
            at = slice(step * self._case.batch, (step + 1) * self._case.batch)
            self._step(self._x[at], self._y[at])

    def _step(self, x: Tensor, y: Tensor) -> None:
        for _ in range(self._inner):
            at = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self._frozen(at), y, reduction="sum"), at)
        with torch.no_grad():
            self._frozen(x)
        self._optimiser.zero_grad()
        F.cross_entropy(self._case.model(x), y).backward()
        self._optimiser.step()


def _twin(model: nn.Module) -> nn.Module:
    """The same weights and statistics in another module, in eval mode and without gradients."""
    shared = {id(value): value.detach() for value in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo=dict(shared))
    return twin.eval()


def measure(quick: bool) -> dict[str, Any]:
    """Model/card -> our share of the other side's steps per second, round by round, and what a checkpoint costs."""
    found: dict[str, Any] = {}
    for model, defense in CASES:
        found[f"{model}/{defense}"] = one = compare(model, defense, 3 if quick else ROUNDS)
        print(model, defense, f"{statistics.median(one['shares']):.3f}", flush=True)
    return found


def compare(model: str, defense: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn, each on a model of its own."""
    mine, theirs = case(model, defense), case(model, defense)
    trainer = Trainer(mine.recipe, mine.model, mine.data, 0, torch.device("cpu"))
    other = RawCalls(theirs) if theirs.recipe.attack else Bare(theirs)
    trainer.run_epoch(None)  # warms up
    other.run_epoch()
    pairs = [(_seconds(lambda: trainer.run_epoch(None)), _seconds(other.run_epoch)) for _ in range(rounds)]
    step = statistics.median(ours for ours, _ in pairs) / mine.steps
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = statistics.median(_seconds(lambda: trainer.save(Path(folder), {})) for _ in range(5))
    return {
        "shares": [theirs / ours for ours, theirs in pairs],
        "step_ms": 1000 * step,
        "checkpoint_steps": checkpoint / step,
    }


LIMIT = (
    "There the ten steps' own operations (keyed noise, sign, projection) and the bookkeeping of a step weigh: each is a"
    " call into PyTorch, whose cost hardly shrinks with the model."
)
"""Why the loop falls short on small models."""


def section(found: dict[str, Any]) -> list[str]:
    """Its lines of the page."""
    rows = [_row(name, one) for name, one in found.items()]
    short = [name for name, one in found.items() if statistics.median(one["shares"]) < GOAL]
    verdict = f"Below it: {', '.join(short)}. {LIMIT}" if short else "All reach it."
    return [
        "## Training",
        "",
        "Steps per second of our training loop over those of the other side, which for `standard` is a bare PyTorch",
        "loop with the same optimiser, schedule and clipping, and for `pgd-at` the sum of the model calls alone: ten",
        "forward passes with the gradient of the cross-entropy to the input, of a model with frozen parameters, the",
        "clean forward pass, and the training step's forward and backward pass with the optimiser's step. Ours does",
        "more: noise, steps and projections, clipping, the average of the weights, counting what is right.",
        f"Batches of 64 digits, one epoch of each side in turn, {len(next(iter(found.values()))['shares'])} rounds,",
        "seconds of the processor. A checkpoint is written after every epoch; its cost is shown in training steps.",
        "",
        "| model | card | share: median (middle half) | ms per step | checkpoint, steps |",
        "|---|---|---:|---:|---:|",
        *rows,
        "",
        f"The goal is {GOAL:g}. {verdict}",
        "",
    ]


def _row(name: str, one: dict[str, Any]) -> str:
    low, middle, high = statistics.quantiles(one["shares"], n=4, method="inclusive")
    model, card = name.split("/")
    share = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return f"| {model} | {card} | {share} | {one['step_ms']:.1f} | {one['checkpoint_steps']:.1f} |"


def _seconds(*works: Callable[[], Any]) -> float:
    """Of the processor, which other programs on the machine disturb less than the clock on the wall."""
    began = time.process_time()
    for work in works:
        work()
    return time.process_time() - began
