"""The columns of a sheet: what stands under which heading, with its caption."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from robustbench_vit.pictures import drawing
from robustbench_vit.pictures.shown import Answer, Shown
from robustbench_vit.records import Status

IN_RANGE = 0.95
"""Share of the differences' values that amplification doesn't cut off; in l2 and l1 a few are far above the others."""
ROUNDING = 1e-3
"""Of a factor: float32 images are often a trifle further apart than eps."""


@dataclass(frozen=True)
class Cell:
    """A picture with the line below it."""

    drawn: Image.Image
    caption: str = ""
    colour: tuple[int, int, int] = drawing.INK


@dataclass(frozen=True)
class Column:
    """A cell for every sample."""

    heading: str
    cells: Sequence[Cell]


def empty(sample: Shown, words: str = "") -> Cell:
    """The place of a picture that there is none of."""
    return Cell(drawing.nothing(drawing.picture(sample.clean.numpy()).size, words))


def amplification(samples: Sequence[Shown]) -> float:
    """What differences are multiplied by: a whole number that keeps nearly all of their values in range."""
    changes = [np.abs(sample.change.numpy()).ravel() for sample in samples if sample.change is not None]
    large = float(np.quantile(np.concatenate(changes), IN_RANGE)) if changes else 0.0
    return float(max(1, math.floor(0.5 / large + ROUNDING))) if large else 1.0


def image_columns(samples: Sequence[Shown], norm: str, factor: float) -> Iterator[Column]:
    """Clean image, adversarial image, and their difference times `factor`."""
    yield Column("clean", [_answered(s.clean, s.clean_answer, s.true) for s in samples])
    yield Column("adversarial", [_adversarial(s) for s in samples])
    yield Column(f"difference x {factor:g}", [_difference(s, norm, factor) for s in samples])


def _answered(image: Tensor, answer: Answer, true: int) -> Cell:
    colour = drawing.GOOD if answer.label == true else drawing.BAD
    return Cell(drawing.picture(image.numpy()), f"class {answer.label}, {100 * answer.confidence:.1f} %", colour)


def _adversarial(sample: Shown) -> Cell:
    if sample.adversarial is not None and sample.adversarial_answer is not None:
        return _answered(sample.adversarial, sample.adversarial_answer, sample.true)
    words = "none needed" if sample.outcome.status is Status.MISCLASSIFIED else "none found"
    return empty(sample, words)


def _difference(sample: Shown, norm: str, factor: float) -> Cell:
    if sample.change is None:
        return empty(sample)
    distance = sample.outcome.distance
    caption = f"{norm} {distance:.4g}" if distance is not None else ""
    return Cell(drawing.difference(sample.change.numpy(), factor), caption)
