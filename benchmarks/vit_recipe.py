"""Which parts of the recipe of adversarial training does a small Vision Transformer need?

`python -m benchmarks.vit_recipe` trains what is missing (resumable; half an hour on one core), evaluates it and writes
docs/vit-recipe.md; names of variants after it choose only those, and `--page` computes nothing. A variant is the card
`pgd-at` with some fields changed, or another start; the recipe itself is trained as `benchmarks.retraining` does.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import robustbench_vit as rbv
from benchmarks.board_training import train_all
from benchmarks.changed_cards import changed_card
from benchmarks.figures import curves
from benchmarks.retraining import trained, training
from benchmarks.side_by_side import board, machine
from benchmarks.vit_recipe_page import FIGURE, POSITIONS, panels, report
from robustbench_vit.cards import Entry, open_workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.checkpoint import LOG, WEIGHTS
from robustbench_vit.defenses.recipe import Recipe, build_recipe
from robustbench_vit.defenses.train import derived, seeded, train
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights
from robustbench_vit.running.entries import chosen
from robustbench_vit.running.workers import Task, run_tasks
from robustbench_vit.storage import write_atomic

LOGGED = ("loss", "clean_accuracy", "robust_accuracy")
"""What is shown of each epoch of a training's log."""
MODEL, DEFENSE, ENTRY, ATTACK = "digits_vit", "pgd-at", "vit-pgd-at", "pgd-40"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "vit-recipe"
RESULTS = Path(__file__).resolve().parent / "results" / "vit-recipe.json"
REPORT = ROOT / "docs" / "vit-recipe.md"

NO_WARM_UP = {"schedule": {"name": "cosine", "warmup_epochs": 0, "final_factor": 0.01}}
NO_CLIPPING = {"gradient_clip": None}
NO_RAMP = {"loss": {"eps_warmup_epochs": 0}}
SGD = {"optimiser": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}}
SHIFT = {"augment": {"name": "shift", "pixels": 2}}


@dataclass(frozen=True)
class Variant:
    """The recipe with something changed."""

    about: str
    seeds: tuple[int, ...]
    changes: dict[str, Any] = field(default_factory=dict)  # of the card; a part's settings are laid over its own
    positions: float | None = None  # standard deviation of the position embedding at the start, where it is another


RECIPE = "the recipe"
VARIANTS = {
    RECIPE: Variant("the card `pgd-at` as it is", (0, 1)),
    POSITIONS: Variant("position embeddings start at timm's deviation 0.02, not at 0.3", (0,), {}, 0.02),
    "none of the three": Variant("no warm-up, no clipping, no eps ramp", (0,), NO_WARM_UP | NO_CLIPPING | NO_RAMP),
    "no eps ramp": Variant("full eps from the first epoch", (0,), NO_RAMP),
    "no clipping": Variant("gradients of any size", (0,), NO_CLIPPING),
    "no warm-up": Variant("the learning rate starts at its largest", (0,), NO_WARM_UP),
    "SGD": Variant("SGD (0.1, Nesterov momentum 0.9, weight decay 5e-4) in place of AdamW", (0,), SGD),
    "heavy augmentation": Variant("images of 8×8 pixels shifted by up to 2 in both directions", (0,), SHIFT),
}


def variant_recipe(variant: Variant) -> Recipe:
    """The recipe that trains it."""
    return build_recipe(changed_card(DEFENSE, variant.changes), open_workspace())


def variant_model(variant: Variant, seed: int) -> nn.Module:
    """The untrained model; that of another variant with this seed starts at the same weights."""
    with seeded(derived(seed, "init"), torch.device("cpu")):
        model = build_model(MODEL, num_classes=10, in_chans=1)
        if variant.positions is not None:
            nn.init.normal_(model.get_parameter("pos_embed"), std=variant.positions)
    return model


def folder(name: str, seed: int) -> Path:
    """Where one training lies."""
    return trained(recipe_entry(), seed) if name == RECIPE else FOLDER / name.replace(" ", "-") / f"seed-{seed}"


def recipe_entry() -> Entry:
    """The board's entry that the recipe made."""
    (entry,) = chosen(board(), [ENTRY])
    return entry


@dataclass(frozen=True)
class TrainVariant:
    """Trains a variant in a worker process."""

    name: str
    seed: int

    def __call__(self, send: Callable[..., None]) -> None:
        torch.set_num_threads(1)
        variant = VARIANTS[self.name]
        model, out = variant_model(variant, self.seed), folder(self.name, self.seed)
        train(variant_recipe(variant), model, load_dataset("digits", "train"), None, out, self.seed, model_name=MODEL)


def train_variants(names: list[str]) -> None:
    """Trains what is missing, two at a time."""
    runs = [(name, seed) for name in names for seed in VARIANTS[name].seeds]
    train_all(training(recipe_entry(), seed) for name, seed in runs if name == RECIPE)
    tasks = [Task(f"{name}, seed {seed}", TrainVariant(name, seed)) for name, seed in runs if name != RECIPE]
    for message in run_tasks(tasks, workers=2):
        if message.error is not None:
            raise message.error
        print(f"{message.task}: trained", flush=True)


def measured(name: str, seed: int, data: Dataset) -> dict[str, Any]:
    """What one training came to, as JSON values: its log, and a digit per test sample for clean and robust ones."""
    out, card = folder(name, seed), board().card
    model = build_model(MODEL, num_classes=10, in_chans=1)
    load_weights(model, out / WEIGHTS)
    record = rbv.evaluate(
        model.eval(), data, None, ATTACK, card.norm, card.eps, card.seed, adversarials=False, reliability=False
    )
    with (out / LOG).open(encoding="utf-8") as lines:
        log = [[float(line[key]) for key in LOGGED] for line in csv.DictReader(lines)]
    digits = {"correct": record.correct, "robust": record.robust}
    return {"log": log, **{key: "".join(str(int(held)) for held in value) for key, value in digits.items()}}


def measure(names: list[str]) -> None:
    """Evaluates these variants and keeps the results beside those of the others."""
    torch.set_num_threads(1)
    data, held = load_dataset("digits", "test"), kept()
    runs = held.get("runs", {})
    for name in names:
        runs[name] = {str(seed): measured(name, seed, data) for seed in VARIANTS[name].seeds}
    in_order = {name: runs[name] for name in VARIANTS if name in runs}
    about = {name: VARIANTS[name].about for name in in_order}
    found = {
        "machine": machine(),
        "attack": ATTACK,
        "eps": board().card.eps[0],
        "about": about,
        "embeddings": embeddings(),
        "runs": in_order,
    }
    write_atomic(RESULTS, (json.dumps(found, ensure_ascii=False) + "\n").encode())


def embeddings() -> float:
    """By how much the untrained embeddings of patches differ: their standard deviation per channel, a mean over all."""
    model, data = variant_model(VARIANTS[RECIPE], 0), load_dataset("digits", "train")
    with torch.no_grad():
        patches = model.get_submodule("patch_embed")(torch.from_numpy(data.x))  # (n, token, channel)
    return round(float(patches.flatten(0, 1).std(0).mean()), 2)


def kept() -> dict[str, Any]:
    """The results that there are."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def main() -> None:
    """See the module's docstring."""
    named = [word for word in sys.argv[1:] if word != "--page"] or list(VARIANTS)
    if unknown := sorted(set(named) - set(VARIANTS)):
        sys.exit(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    if "--page" not in sys.argv:
        names = list(dict.fromkeys([RECIPE, *named]))  # what the others are compared with
        train_variants(names)
        measure(names)
    if found := kept():
        page, figure = report(found), curves(panels(found))
        write_atomic(REPORT, page.encode())
        write_atomic(REPORT.parent / FIGURE, figure.encode())
        print(page)


if __name__ == "__main__":
    main()
