"""Is the clean accuracy the one it should be, or do labels and weights belong to something else?"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from robustbench_vit.engine.intake.report import Declared
from robustbench_vit.records import Finding

MARKED_POINTS, MARKED_P = 0.05, 0.001
"""Another reading of images or labels is markedly better from these on: points of accuracy, and McNemar's p."""
FAR = 5
"""Standard errors above chance that it has to lie, too."""
FEW = 8
"""Fewer samples than this say nothing about chance."""
CANARY = 0.005
"""Room for a stated accuracy beside sampling: other hardware, other versions, rounding of the figure."""


def markedly_better(other: Tensor, given: Tensor, classes: int) -> bool:
    """Whether `other` (bool per sample: correct) beats `given` by 5 points and the exact one-sided McNemar test.

    It must also be far above chance: beside a model below chance (of shifted labels, say), guessing would look better.
    """
    gained, lost = int((other & ~given).sum()), int((given & ~other).sum())
    enough = gained - lost >= MARKED_POINTS * len(given) and not at_chance(int(other.sum()), len(given), classes, FAR)
    return enough and mcnemar(gained, lost) < MARKED_P


def mcnemar(gained: int, lost: int) -> float:
    """P(at least `gained` heads in gained + lost tosses of a fair coin) (McNemar 1947, exact and one-sided)."""
    tosses = gained + lost
    return sum(math.comb(tosses, k) for k in range(gained, tosses + 1)) / 2**tosses


def at_chance(correct: int, n: int, classes: int, errors: float = 2) -> bool:
    """Whether no more answers are correct than guessing among all classes explains, by that many standard errors."""
    chance = 1 / classes
    return n >= FEW and correct / n <= chance + errors * math.sqrt(chance * (1 - chance) / n)


def above_chance(correct: int, n: int, classes: int) -> Finding:
    """Warns of a clean accuracy of 0 or at chance; an untrained model is legal."""
    measured = f"{correct} of {n} clean samples are classified correctly ({correct / n:.1%}"
    if correct and not at_chance(correct, n, classes):
        return Finding("clean-accuracy", "pass", f"{measured})")
    message = (
        f"{measured}; guessing among {classes} classes gives {1 / classes:.1%}): there is hardly anything to attack."
        " Are the weights loaded, and do labels and preprocessing fit?"
    )
    return Finding("clean-accuracy", "warn", message)


def better_shift(decisions: Tensor, y: Tensor, classes: int) -> int:
    """What to add to the labels (1, -1 or 0) so that they fit the decisions far better; both int64 (n,)."""
    given = decisions == y
    return next((shift for shift in (-1, 1) if markedly_better(decisions == y + shift, given, classes)), 0)


def labels(decisions: Tensor, y: Tensor, shift: int) -> Finding:
    """Warns of labels that would fit far better after adding `shift`."""
    if shift == 0:
        return Finding("labels", "pass", "labels shifted by one don't fit better")
    message = (
        f"clean accuracy is {_share(decisions == y)} with the labels as given and {_share(decisions == y + shift)} with"
        f" y {shift:+d}: labels and classes seem to be numbered from different starts; try y {shift:+d}, or a model"
        " without a background class"
    )
    return Finding("labels", "warn", message)


def _share(correct: Tensor) -> str:
    return f"{correct.double().mean():.1%}"


def canary(declared: Declared, count: Callable[[], tuple[int, int]]) -> Finding:
    """Refuses a clean accuracy that isn't the stated one; `count` gives (correct, all), asked only when needed."""
    stated = declared.clean_accuracy
    if stated is None:
        return Finding("canary", "pass", "no clean accuracy is stated to compare with")
    correct, n = count()
    tolerance = _canary_tolerance(stated, n, declared)
    measured = f"clean accuracy is {correct / n:.2%} on {n} samples, stated is {stated:.2%} (tolerance {tolerance:.2%})"
    if abs(correct / n - stated) <= tolerance:
        return Finding("canary", "pass", measured)
    advice = (
        "are these the weights and the preprocessing it was stated for?"
        if correct / n < stated
        else "are these other samples (easier ones, or from training), or other weights?"
    )
    return Finding("canary", "refuse", f"{measured}: {advice}")


def _canary_tolerance(stated: float, n: int, declared: Declared) -> float:
    """Half a point, one sample, and three standard errors of drawing these samples from those it was stated on.

    A sample drawn from a finite list without putting back has the variance p(1-p)/n · (N-n)/(N-1), which is 0 for the
    whole list (Cochran 1977, Sampling Techniques, §3.2). A random model's answers vary on the same samples, too.
    """
    listed = declared.clean_samples
    unseen = 1.0
    if listed is not None and declared.randomness is None:
        unseen = max(listed - n, 0) / max(listed - 1, 1)
    return CANARY + 1 / n + 3 * math.sqrt(stated * (1 - stated) / n * unseen)
