"""The errors a user can meet, each with what was wrong, where, and what would be right.

RobustbenchError           anything this package raises on purpose; `exit_code` is what the CLI returns
├── CardError              a card (YAML file) that cannot be used
├── UnknownNameError       a name nobody registered; names the nearest ones
├── InputError             images, labels, budgets or options that cannot be evaluated
├── ModelError             a model that intake refuses (probabilities, NaN, train mode, …)
├── WeightsError           a weights file that is missing, damaged, unsafe or does not fit
├── StorageError           the run's folder cannot be written (full disk, no permission)
├── RunLockedError         another process is working on the same run
├── ProtocolMismatchError  records that may not share a table
├── AttackError            an attack broke its contract (its candidate failed a check it must pass)
└── OutOfMemoryError       a device that has too little memory even for the smallest batch
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_vit.records import Finding


class RobustbenchError(Exception):
    """Base of every error raised on purpose by robustbench_vit."""

    exit_code = 2


class CardError(RobustbenchError):
    """A card that cannot be used; `faults` lists every fault, one line each."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.faults,)


class InputError(RobustbenchError):
    """Images, labels, budgets or options that cannot be evaluated."""


class UnknownNameError(InputError):
    """A name nobody registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str | None = None) -> None:
        self._said = (kind, name, tuple(known), where)
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}unknown {kind} '{name}'{suggestion(name, self._said[2], kind)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._said  # workers send errors to their parent


class ModelError(RobustbenchError):
    """A model that intake refuses; `findings` holds all that intake had found by then, as in a record."""

    def __init__(self, message: str, findings: tuple[Finding, ...] = ()) -> None:
        self.findings = findings
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.findings)


class WeightsError(RobustbenchError):
    """A weights file that is missing, damaged, unsafe or does not fit the model."""


class StorageError(RobustbenchError):
    """A run's folder that cannot be written."""


class RunLockedError(RobustbenchError):
    """Another process is working on the same run."""


class ProtocolMismatchError(RobustbenchError):
    """Records whose protocols differ and that may therefore not share a table."""


class AttackError(RobustbenchError):
    """An attack that broke its contract."""


class OutOfMemoryError(RobustbenchError):
    """A device that has too little memory even for the smallest batch."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None


def suggestion(name: str, known: Iterable[str], kind: str) -> str:
    """'; did you mean …?', or the list of what is known when nothing is close."""
    names = sorted(known)
    close = nearest(name, names)
    if close is not None:
        return f"; did you mean '{close}'?"
    if not names:
        return f"; no {kind} is known"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {shown}"
