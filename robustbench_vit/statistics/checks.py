"""What every statistic asks of its numbers."""

from __future__ import annotations

from robustbench_vit.errors import InputError


def check_share(name: str, value: float) -> None:
    """Raises InputError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise InputError(f"{name} lies between 0 and 1, got {value}")


def check_counts(successes: int, n: int) -> None:
    """Raises InputError unless the counts are those of a proportion."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no proportion")
