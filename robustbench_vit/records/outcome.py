"""What became of one sample under one attack and budget."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The outcome in one word."""

    MISCLASSIFIED = "misclassified"  # already without an attack
    BROKEN = "broken"  # a verified adversarial example inside the budget
    SURVIVED = "survived"  # every lane ran and none broke it
    CERTIFIED = "certified"  # proved
    ABSTAINED = "abstained"  # a certifier that would not say
    NOT_RUN = "not_run"


ROBUST = (Status.SURVIVED, Status.CERTIFIED)
"""Statuses of samples that count as robustly classified."""


def verdict(status: Status, by: str | None) -> str:
    """'misclassified', 'robust', or the lane that broke the sample (else the status)."""
    if status in ROBUST:
        return "robust"
    return by if status is Status.BROKEN and by else status.value


@dataclass(frozen=True)
class Outcome:
    """One line of a record: a sample under an attack, a budget and a criterion."""

    sample: str
    attack: str  # the attack card's name
    norm: str
    eps: float
    criterion: str  # 'untargeted': broken means any other class than the true one
    status: Status
    by: str | None = None  # the lane that broke it
    restart: int | None = None  # of the row that broke it
    target: int | None = None  # the class that row aimed at
    distance: float | None = None  # norm of the verified perturbation
    radius: float | None = None  # certified, in the budget's norm
    k_of_m: tuple[int, int] | None = None  # random models: broken in k of m fresh draws
    forwards: int = 0  # model passes spent on this sample by this attack, the clean one included
    backwards: int = 0

    @property
    def robust(self) -> bool:
        """Whether the sample counts as robustly classified."""
        return self.status in ROBUST

    @property
    def verdict(self) -> str:
        """'misclassified', 'robust', or the lane that broke the sample (else the status)."""
        return verdict(self.status, self.by)
