"""Ours beside torchattacks, foolbox and ART, each as its users run it; measured in .venv-peers, which holds them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from benchmarks import public_nets
from benchmarks.side_by_side import Measured, board, still_right
from benchmarks.speed import models
from robustbench_vit.cards import open_workspace
from robustbench_vit.data import Dataset
from robustbench_vit.engine.lanes import CountedModel
from robustbench_vit.errors import InputError
from robustbench_vit.running.memory import keep_freed_memory

NEEDED = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}
"""Module and the package it comes in."""
SAMPLES = {"cnn-standard": 200, "vit-standard": 100, "cnn-pgd-at": 50, "cnn-a-adv": 50}
"""Models, and the samples that the AutoAttacks get."""
PGD_SAMPLES = 500
PGD_CARD = "pgd-40"
PUBLIC_EPS = 2 / 255
ROUNDS = 3
CLASSES = 10
ART_BATCH = 256


@dataclass(frozen=True)
class Budget:
    """What every side is given beside the model and the samples; all in linf."""

    eps: float
    seed: int

    @property
    def step_size(self) -> float:
        """Of PGD, as our card has it."""
        return self.eps * _pgd_settings()["step_size"]

    @property
    def steps(self) -> int:
        """Of PGD, as our card has them."""
        return _pgd_settings()["steps"]


Side = Callable[[nn.Module, Tensor, Tensor, Budget], Tensor]
"""From a counted model, images (n, c, h, w) in [0, 1] and labels (n,) to adversarial images."""


class VisibleModel(CountedModel):
    """A counted model that shows its parameters, which some peers look for and others clear the gradients of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.inside = model


def ours_autoattack(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """Our `autoattack`."""
    return _ours("autoattack", model, x, y, budget)


def ours_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """Our PGD card."""
    return _ours(PGD_CARD, model, x, y, budget)


def _ours(attack: str, model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """Without the verdict on masked gradients, which no peer has; intake and rechecks are in it."""
    record = rbv.evaluate(model, x, y, attack, "linf", budget.eps, budget.seed, reliability=False)
    return record.adversarials


def torchattacks_shipped(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """torchattacks.AutoAttack with the defaults of its own."""
    import torchattacks  # pyright: ignore[reportMissingImports]

    return torchattacks.AutoAttack(model, norm="Linf", eps=budget.eps, seed=budget.seed, n_classes=CLASSES)(x, y)


def torchattacks_set(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """The parts of torchattacks.AutoAttack with the reference's settings; one restart and rho .75 are its defaults."""
    from torchattacks import APGD, APGDT, FAB, MultiAttack, Square  # pyright: ignore[reportMissingImports]

    shared = {"norm": "Linf", "eps": budget.eps, "seed": budget.seed}
    lanes = [
        APGD(model, steps=100, loss="ce", **shared),
        APGDT(model, steps=100, n_classes=CLASSES, **shared),  # n_classes - 1 targets
        FAB(model, steps=100, n_classes=CLASSES, multi_targeted=True, **shared),
        Square(model, n_queries=5000, resc_schedule=False, **shared),
    ]
    return MultiAttack(lanes)(x, y)


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """torchattacks.PGD, all samples in one batch."""
    import torchattacks  # pyright: ignore[reportMissingImports]

    torch.manual_seed(budget.seed)
    return torchattacks.PGD(model, eps=budget.eps, alpha=budget.step_size, steps=budget.steps, random_start=True)(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """foolbox's LinfPGD, all samples in one batch."""
    import foolbox  # pyright: ignore[reportMissingImports]

    torch.manual_seed(budget.seed)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=budget.step_size, steps=budget.steps, random_start=True)
    _, clipped, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=budget.eps)
    return clipped


def art_pgd(model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
    """ART's ProjectedGradientDescent, which takes its PyTorch implementation."""
    from art.attacks.evasion import ProjectedGradientDescent  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    np.random.seed(budget.seed)  # ART draws from NumPy's global generator
    shape = tuple(x.shape[1:])
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, CLASSES, clip_values=(0, 1), device_type="cpu")
    settings = {"eps": budget.eps, "eps_step": budget.step_size, "max_iter": budget.steps, "num_random_init": 1}
    attack = ProjectedGradientDescent(classifier, batch_size=ART_BATCH, verbose=False, **settings)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


OURS = "ours"
AUTOATTACK: Mapping[str, Side] = {
    OURS: ours_autoattack,
    "torchattacks, as shipped": torchattacks_shipped,
    "torchattacks, set": torchattacks_set,
}
PGD: Mapping[str, Side] = {
    OURS: ours_pgd,
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "ART": art_pgd,
}


def measure(quick: bool) -> dict[str, Any]:
    """Every side on every model, in turn, round after round; raises InputError where a peer is not installed.

    With `quick` 16 samples of the first model, which is not robust, and one round: seconds rather than minutes.
    """
    _check_installed()
    torch.set_num_threads(1)
    keep_freed_memory()  # for all sides
    for sides in (AUTOATTACK, PGD):
        _case(sides, models.load(next(iter(SAMPLES)), 16), 1)  # a first run imports, and isn't kept
    cases = {"autoattack": [], "pgd": []}
    for name, n in list(SAMPLES.items())[: 1 if quick else None]:
        if name in public_nets.NAMES and not public_nets.available():
            continue
        for kind, sides, most in (("autoattack", AUTOATTACK, n), ("pgd", PGD, PGD_SAMPLES)):
            cases[kind].append(_case(sides, models.load(name, 16 if quick else most), 1 if quick else ROUNDS))
    return {**cases, "versions": {package: version(package) for package in NEEDED.values()}}


def _case(sides: Mapping[str, Side], subject: models.Subject, rounds: int) -> dict[str, Any]:
    """What each side needed on one model: a list of one entry per round."""
    eps = PUBLIC_EPS if subject.name in models.PUBLIC else board().card.eps[0]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for seed in range(rounds):
        for name, side in sides.items():
            found[name].append(_summary(run(side, subject.model, subject.data, Budget(eps, seed))))
            print(subject.name, name, found[name][-1], flush=True)
    return {"model": subject.name, "n": len(subject.data), "eps": eps, "sides": found}


def run(side: Side, model: Any, data: Dataset, budget: Budget) -> Measured:
    """One run of one side, counted from outside and rechecked; in CPU seconds, which neighbours hardly change."""
    counted = VisibleModel(model)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    began = time.process_time()
    adversarial = side(counted, x, y, budget)
    seconds = time.process_time() - began
    model.zero_grad(set_to_none=True)  # some peers leave gradients of the weights behind
    passes = (counted.forwards / len(x), counted.backwards / len(x))
    return Measured(still_right(model, adversarial, x, y, "linf", budget.eps), seconds, *passes)


def _summary(measured: Measured) -> dict[str, float]:
    """What the page needs of a run; passes are per sample, robust is a share."""
    robust = sum(measured.robust) / len(measured.robust)
    passes = {"forwards": measured.forwards, "backwards": measured.backwards}
    return {"robust": robust, "seconds": measured.seconds, **passes}


def _check_installed() -> None:
    absent = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if absent:
        raise InputError(
            f"{', '.join(absent)} not installed in {sys.prefix}: these tools need an environment of their own;"
            " `make .venv-peers/stamp` makes it, and `.venv-peers/bin/python -m benchmarks peers` measures"
        )


def _pgd_settings() -> dict[str, Any]:
    (loaded,) = open_workspace().lanes(PGD_CARD, "linf")
    return loaded.card.settings


def section(found: Mapping[str, Any]) -> list[str]:
    """The lines of the page, from what `measure` found."""
    rounds = len(found["pgd"][0]["sides"][OURS])
    versions = ", ".join(f"{package} {number}" for package, number in sorted(found["versions"].items()))
    return [
        "## Beside torchattacks, foolbox and ART",
        "",
        f"Each as its users run it: same model, same first n samples, in turn in one process, {rounds} rounds, linf.",
        "Robust: of the images that each side returned, rechecked by us; the mean of the rounds. Passes: forwards +",
        "backwards per sample, counted from outside; in their ratio a backward counts as two forwards. Ratios are",
        "theirs over ours, with the range over the rounds: above 1 we need less. Time is the process's CPU time, one",
        "thread. Ours includes intake and rechecks.",
        f"Versions: {versions}.",
        "",
        "### AutoAttack",
        "",
        *_table(found["autoattack"]),
        "",
        *AUTOATTACK_NOTES,
        "",
        f"### PGD, the settings of `{PGD_CARD}`",
        "",
        *_table(found["pgd"]),
        "",
        *PGD_NOTES,
        "",
    ]


AUTOATTACK_NOTES = (
    "`as shipped` bears the name but runs another attack: 10 iterations of APGD, targeted APGD and FAB instead of 100,",
    "and Square's schedule for 10,000 queries squeezed into its 5,000, where the reference stops half-way through it.",
    "`set` joins the same parts by `MultiAttack` with the reference's settings: 100 iterations, schedule not rescaled.",
    "Restarts, rho, queries and order are the reference's by default, and of `n_classes` - 1 targets there are nine",
    "here. In linf nothing else is left to set. In l2 its targeted APGD takes the first sample's step size for the",
    "whole batch, which no setting changes; it has no l1.",
)
PGD_NOTES = (
    "Same radius, step size, steps and one uniform random start. torchattacks and foolbox take all samples in one",
    f"batch, ART {ART_BATCH} at a time. All three take every step with every sample and return the last iterate; ours",
    "lets a sample go at its first success, also one that a later step would have brought back. foolbox and ART",
    "compute the gradients of the weights too.",
)
HEAD = (
    "| model | eps | n | beside | robust, %: ours | theirs | passes: ours | theirs | passes ratio | time ratio |",
    "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
)


def _table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    return [*HEAD, *(_line(case, peer) for case in cases for peer in case["sides"] if peer != OURS)]


def _line(case: Mapping[str, Any], peer: str) -> str:
    ours, theirs = case["sides"][OURS], case["sides"][peer]
    cells = [
        case["model"],
        f"{case['eps']:.3g}",
        str(case["n"]),
        peer,
        *(f"{100 * statistics.mean(one['robust'] for one in side):.1f}" for side in (ours, theirs)),
        *(_passes(side) for side in (ours, theirs)),
        spread([_work(b) / _work(a) for a, b in zip(ours, theirs, strict=True)]),
        spread([b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]),
    ]
    return f"| {' | '.join(cells)} |"


def _passes(rounds: Sequence[Mapping[str, float]]) -> str:
    return " + ".join(f"{statistics.median(one[kind] for one in rounds):.0f}" for kind in ("forwards", "backwards"))


def _work(one: Mapping[str, float]) -> float:
    """Forward equivalents per sample."""
    return one["forwards"] + 2 * one["backwards"]


def spread(ratios: Sequence[float]) -> str:
    """Median (smallest to largest)."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
