"""What is said of a model, and what intake makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustbench_vit.errors import InputError
from robustbench_vit.records import Finding

Policy = Literal["A", "B", "C"]
"""A: deterministic and differentiable. B: random. C: no useful gradient, random or not."""


@dataclass(frozen=True)
class Declared:
    """What the card or the caller says of the model; raises InputError for what cannot be."""

    randomness: str | None = None  # what in the model is random, in words; None: deterministic
    clean_accuracy: float | None = None  # in [0, 1], on these samples or on a longer list they are a part of
    clean_samples: int | None = None  # how long that list is; None: unknown

    def __post_init__(self) -> None:
        if self.randomness is not None and not self.randomness.strip():
            raise InputError("randomness is empty; say in words what in the model is random, or leave it out")
        if self.clean_accuracy is not None and not 0 <= self.clean_accuracy <= 1:
            raise InputError(f"clean_accuracy is a share in [0, 1], got {self.clean_accuracy:g}; write 0.71 for 71 %")
        if self.clean_samples is not None and self.clean_samples < 1:
            raise InputError(f"clean_samples is at least 1, got {self.clean_samples}")


@dataclass(frozen=True)
class Intake:
    """What was found, and the attack policy that follows."""

    findings: tuple[Finding, ...]
    policy: Policy
    clean_correct: int = 0  # of the samples that were asked about
    clean_asked: int = 0
