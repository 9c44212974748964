"""How far a number can be trusted: graded evidence that a model masks its gradients. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from robustbench_vit.errors import InputError

SEVERAL = 3
"""So many pieces of weak evidence make strong evidence."""
NAMED = 2
"""Checks named in a table's cell."""


class Evidence(StrEnum):
    """How much speaks for masked gradients, that is, for a robust accuracy that is too high."""

    NONE = "none"
    WEAK = "weak"
    STRONG = "strong"


@dataclass(frozen=True)
class Reason:
    """What one check saw."""

    check: str
    evidence: Evidence | None  # None: the check did not run, the message says why
    message: str  # what was seen, with numbers, and what it means
    advice: str | None = None  # what to do about it, one sentence
    values: Mapping[str, float] = field(default_factory=dict)  # the numbers that were graded; all finite


@dataclass(frozen=True)
class Reliability:
    """The verdict beside a number: its grade, the checks behind it, and what they cost."""

    evidence: Evidence
    reasons: tuple[Reason, ...]
    passes: Mapping[str, int]  # 'forwards' and 'backwards' spent by the checks
    seconds: float

    @property
    def against(self) -> tuple[Reason, ...]:
        """The reasons that speak for masked gradients, strong ones first."""
        strong, weak = ([r for r in self.reasons if r.evidence is grade] for grade in (Evidence.STRONG, Evidence.WEAK))
        return (*strong, *weak)

    @property
    def flag(self) -> str:
        """One line for tables: '' without evidence, else e.g. 'weak: loss-rises'."""
        if self.evidence is Evidence.NONE:
            return ""
        names = [reason.check for reason in self.against]
        more = f" +{len(names) - NAMED}" if len(names) > NAMED else ""
        return f"{self.evidence}: {', '.join(names[:NAMED])}{more}"

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do, most urgent first, each sentence once."""
        return tuple(dict.fromkeys(reason.advice for reason in self.against if reason.advice))

    def to_dict(self, timed: bool = True) -> dict[str, Any]:
        """The verdict as JSON values; without `timed`, what differs from run to run is left out."""
        return {
            "evidence": self.evidence.value,
            "reasons": [
                {
                    "check": r.check,
                    "evidence": None if r.evidence is None else r.evidence.value,
                    "message": r.message,
                    "advice": r.advice,
                    "values": dict(r.values),
                }
                for r in self.reasons
            ],
            "passes": dict(self.passes),
            **({"seconds": self.seconds} if timed else {}),
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Reliability:
        """The verdict that `to_dict` gave; raises InputError when it is damaged."""
        try:
            return Reliability(
                evidence=Evidence(raw["evidence"]),
                reasons=tuple(_reason(r) for r in raw["reasons"]),
                passes={name: int(n) for name, n in raw["passes"].items()},
                seconds=float(raw["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"damaged reliability verdict: {error!r}") from error


def _reason(raw: Mapping[str, Any]) -> Reason:
    return Reason(
        check=raw["check"],
        evidence=None if raw["evidence"] is None else Evidence(raw["evidence"]),
        message=raw["message"],
        advice=raw["advice"],
        values={name: float(value) for name, value in raw["values"].items()},
    )


def combined(reasons: Iterable[Reason]) -> Evidence:
    """The grade of all reasons together: the strongest one's, and strong for three weak ones."""
    grades = [reason.evidence for reason in reasons]
    if Evidence.STRONG in grades or grades.count(Evidence.WEAK) >= SEVERAL:
        return Evidence.STRONG
    return Evidence.WEAK if Evidence.WEAK in grades else Evidence.NONE


@dataclass(frozen=True)
class Judgement:
    """How far the robust accuracy under one attack and eps can be trusted."""

    attack: str
    eps: float
    reliability: Reliability
