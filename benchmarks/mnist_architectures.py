"""The small versions of the architectures on real images of 28×28 pixels: do they train?

`python -m benchmarks.mnist_architectures` trains what is missing (resumable; half an hour on one core), evaluates it
and writes docs/mnist-architectures.md; names after it choose only those, `--page` computes nothing. It needs MNIST's
test file alone: the first images are evaluated, others are trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import robustbench_vit as rbv
from benchmarks.changed_cards import changed_card
from benchmarks.prose import paragraph
from benchmarks.side_by_side import machine
from robustbench_vit.cards import open_workspace
from robustbench_vit.data import Dataset, load_dataset
from robustbench_vit.defenses.checkpoint import WEIGHTS
from robustbench_vit.defenses.recipe import Recipe, build_recipe
from robustbench_vit.defenses.train import derived, seeded, train
from robustbench_vit.models.build import build_model
from robustbench_vit.models.weights import load_weights
from robustbench_vit.running.workers import Task, run_tasks
from robustbench_vit.statistics import wilson
from robustbench_vit.storage import write_atomic

DATA, SIZE, CHANNELS, CLASSES = "mnist", 28, 1, 10
EVALUATED, FIRST_TRAINED = 300, 2000
"""Images of the test file: the first ones are evaluated, from that position on they are trained on."""
ATTACK, RADII, SEED = "pgd-40", (0.1, 0.3), 0
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "mnist-architectures"
RESULTS = Path(__file__).resolve().parent / "results" / "mnist-architectures.json"
REPORT = ROOT / "docs" / "mnist-architectures.md"

PLAIN = {"patch_size": 4, "embed_dim": 128, "depth": 8, "num_heads": 4, "mlp_ratio": 2.0}
"""Makes timm's smallest ViT as large as `small_evit`."""
SHORT = {"epochs": 10, "schedule": {"warmup_epochs": 1}}
ADVERSARIAL = {"epochs": 8, "schedule": {"warmup_epochs": 1}, "loss": {"eps": 0.1, "eps_warmup_epochs": 3}}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    defense: str = "standard"
    changes: dict[str, Any] = field(default_factory=lambda: SHORT)
    samples: int = 3000

    @property
    def recipe(self) -> Recipe:
        """The card with its changes."""
        return build_recipe(changed_card(self.defense, self.changes), open_workspace())

    def build(self) -> nn.Module:
        """The untrained model."""
        sized = {} if self.model.startswith("ic_resnet") else {"img_size": SIZE}
        with seeded(derived(SEED, "init"), torch.device("cpu")):
            return build_model(self.model, num_classes=CLASSES, in_chans=CHANNELS, **sized, **self.args)


CASES = {
    "small_refiner_vit": Case("small_refiner_vit"),
    "small_evit, pgd-at": Case("small_evit", {"keep_rate": 0.7}, "pgd-at", ADVERSARIAL, 2000),
    "small_t2t_vit": Case("small_t2t_vit"),
    "plain ViT": Case("vit_tiny_patch16_224", PLAIN),
    "small_evit": Case("small_evit", {"keep_rate": 0.7}),
    "ic_resnet20": Case("ic_resnet20"),
}
"""By name; those that take longest come first."""


def samples(case: Case) -> tuple[Dataset, Dataset]:
    """What the case is trained on, and what is evaluated."""
    data = load_dataset(DATA, "test")
    return data.take(np.arange(FIRST_TRAINED, FIRST_TRAINED + case.samples)), data.first(EVALUATED)


@dataclass(frozen=True)
class RunCase:
    """Trains and evaluates a case in a worker process; the result lies in its folder."""

    name: str

    def __call__(self, send: Callable[..., None]) -> None:
        torch.set_num_threads(1)
        case, out = CASES[self.name], folder(self.name)
        trained, evaluated = samples(case)
        model = case.build()
        train(case.recipe, model, trained, None, out, SEED, model_name=case.model, model_args=case.args)
        load_weights(model, out / WEIGHTS)
        write_atomic(out / "result.json", (json.dumps(measured(model.eval(), evaluated)) + "\n").encode())


def folder(name: str) -> Path:
    """Where a case lies."""
    return FOLDER / name.replace(", ", "-").replace(" ", "-")


def measured(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """How many images are right, and how many stay right under the attack at each radius."""
    record = rbv.evaluate(model, data, None, ATTACK, "linf", list(RADII), SEED, adversarials=False, reliability=False)
    robust = {str(eps): int(record.at(ATTACK, eps).robust.sum()) for eps in RADII}
    correct = int(record.at(ATTACK, RADII[0]).correct.sum())
    return {"parameters": sum(p.numel() for p in model.parameters()), "correct": correct, "robust": robust}


def compute(names: list[str]) -> None:
    """Trains and evaluates what is missing, two at a time."""
    left = [name for name in names if not (folder(name) / "result.json").is_file()]
    for message in run_tasks([Task(name, RunCase(name)) for name in left], workers=2):
        if message.error is not None:
            raise message.error
        print(f"{message.task}: done", flush=True)


def collected() -> dict[str, Any]:
    """The results that there are, with how they were made."""
    cases = {}
    for name, case in CASES.items():
        path = folder(name) / "result.json"
        if path.is_file():
            made = {"defense": case.defense, "epochs": case.recipe.card.epochs, "samples": case.samples}
            cases[name] = {**made, **json.loads(path.read_text(encoding="utf-8"))}
    return {"machine": machine(), "n": EVALUATED, "attack": ATTACK, "cases": cases}


def report(found: dict[str, Any]) -> str:
    """The page."""
    radii = [f"{found['attack']}, eps {eps:g} %" for eps in RADII]
    names = ["model", "recipe", "images", "epochs", "parameters", "clean %", *radii]
    return "\n".join(
        [
            "# Small architectures on MNIST",
            "",
            "<!-- generated by `python -m benchmarks.mnist_architectures`; do not edit -->",
            "",
            *paragraph(
                "The small versions on real images of 28×28 pixels, trained briefly: that they learn, not how good",
                "they can get. They see a few thousand images of MNIST's test file and are evaluated on its first",
                f"{found['n']}, which are none of those; linf, Wilson 95 % intervals. `plain ViT` is timm's Vision",
                "Transformer with the same patches, width and blocks as `small_evit`, which drops tokens at keep",
                "rate 0.7.",
            ),
            "",
            f"| {' | '.join(names)} |",
            f"|---|---|{'---:|' * (len(names) - 2)}",
            *(_line(name, case, found["n"]) for name, case in found["cases"].items()),
            "",
            *paragraph(*_verdict(found)),
            "",
            f"Made with `python -m benchmarks.mnist_architectures` on: {found['machine']}.",
            "",
        ]
    )


def _line(name: str, case: dict[str, Any], n: int) -> str:
    shares = [_share(count, n) for count in (case["correct"], *(case["robust"][str(eps)] for eps in RADII))]
    label = name.split(", ")[0]
    cells = (label, case["defense"], f"{case['samples']:,}", case["epochs"], f"{case['parameters']:,}", *shares)
    return f"| {' | '.join(map(str, cells))} |"


def _share(count: int, n: int) -> str:
    low, high = (100 * bound for bound in wilson(count, n))
    return f"{100 * count / n:.1f} [{low:.1f}, {high:.1f}]"


LEARNED = 0.8
"""Clean accuracy whose interval has to lie above for a model to be said to have learned."""


def _verdict(found: dict[str, Any]) -> list[str]:
    learned = {name: wilson(case["correct"], found["n"])[0] > LEARNED for name, case in found["cases"].items()}
    failed = [f"`{name}`" for name, yes in learned.items() if not yes]
    words = f"a clean accuracy above {100 * LEARNED:g} %, interval included"
    if not failed:
        return [f"All {len(learned)} reach {words}."]
    return [f"{len(learned) - len(failed)} of {len(learned)} reach {words}; not so {', '.join(failed)}."]


def main() -> None:
    """See the module's docstring."""
    named = [word for word in sys.argv[1:] if word != "--page"]
    if unknown := sorted(set(named) - set(CASES)):
        sys.exit(f"no case {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if "--page" not in sys.argv:
        compute(named or list(CASES))
        write_atomic(RESULTS, (json.dumps(collected(), indent=1) + "\n").encode())
    page = report(json.loads(RESULTS.read_text(encoding="utf-8")))
    write_atomic(REPORT, page.encode())
    print(page)


if __name__ == "__main__":
    main()
