"""Would the model do better behind another normalisation: a missing one, one too many, or pixels up to 255?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vit.engine.intake.accuracy import FAR, MARKED_POINTS, at_chance, markedly_better
from robustbench_vit.engine.intake.asking import logits
from robustbench_vit.records import Finding

SCREEN = 64
"""Samples on which another reading must get more right than the given one to be tried on all."""

HALF = "0.5/0.5"
RGB = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-10 (std .247)": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    HALF: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
GREY = {"MNIST": ((0.1307,), (0.3081,)), "Fashion-MNIST": ((0.2860,), (0.3530,)), HALF: ((0.5,), (0.5,))}
"""Customary mean and standard deviation per channel, of images in [0, 1]; CIFAR-10 is seen with either deviation."""


@dataclass(frozen=True)
class Reading:
    """Another way to put images into a model."""

    what: str  # what is put in front
    advice: str
    apply: Callable[[Tensor], Tensor]


def normalisation(model: Any, x: Tensor, y: Tensor, given: Tensor, classes: int, random: bool) -> Finding:
    """Warns where the model does markedly better on another reading; refuses where it is near chance as given.

    x (n, c, h, w); on the CPU y (n,) and given (n,): which samples the model gets right as it is. A random model is
    never refused: larger inputs drown its noise, which is no sign of how it was trained.
    """
    if float((~given).double().mean()) < MARKED_POINTS:
        return Finding("normalisation", "pass", f"clean accuracy {_share(given)} leaves no room for a better reading")
    found: tuple[Reading, Tensor] | None = None
    for reading in _readings(x):
        correct = _correct(model, reading, x, y, given)
        if markedly_better(correct, given, classes) and (found is None or correct.sum() > found[1].sum()):
            found = reading, correct
    if found is None:
        return Finding("normalisation", "pass", "no customary normalisation, put in front or undone, does better")
    reading, correct = found
    message = (
        f"clean accuracy on {len(y)} samples is {_share(given)} as given and {_share(correct)} with {reading.what} in"
        f" front: {reading.advice}"
    )
    if random:
        return Finding("normalisation", "warn", f"{message}; or is it only that noise weighs less then?")
    level = "refuse" if at_chance(int(given.sum()), len(y), classes, FAR) else "warn"
    return Finding("normalisation", level, message)


def _correct(model: Any, reading: Reading, x: Tensor, y: Tensor, given: Tensor) -> Tensor:
    """bool (n,): correct under a reading; all False for one that does no better on the first samples."""
    correct = torch.zeros_like(given)
    correct[:SCREEN] = logits(model, reading.apply(x[:SCREEN])).argmax(1) == y[:SCREEN]
    if correct.sum() <= given[:SCREEN].sum():
        return torch.zeros_like(given)
    if len(x) > SCREEN:
        correct[SCREEN:] = logits(model, reading.apply(x[SCREEN:])).argmax(1) == y[SCREEN:]
    return correct


def _readings(x: Tensor) -> Iterator[Reading]:
    channels = x.shape[1]
    constants = {1: GREY, 3: RGB}.get(channels, {HALF: ((0.5,) * channels, (0.5,) * channels)})
    for name, (mean, std) in constants.items():
        yield from _both_ways(name, x.new_tensor(mean).view(-1, 1, 1), x.new_tensor(std).view(-1, 1, 1), mean, std)
    yield Reading("255·x", "the model expects pixels up to 255; wrap it: lambda x: model(255 * x)", lambda x: 255 * x)


def _both_ways(name: str, m: Tensor, s: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[Reading]:
    numbers = f"mean={list(mean)}, std={list(std)}"
    yield Reading(
        f"the normalisation of {name}",
        f"the model seems to miss it; use rbv.normalised(model, {numbers})",
        lambda x: (x - m) / s,
    )
    yield Reading(
        f"the inverse of the normalisation of {name} ({numbers})",
        "images seem to be normalised twice; take one normalisation out",
        lambda x: x * s + m,
    )


def _share(correct: Tensor) -> str:
    return f"{correct.double().mean():.1%}"
