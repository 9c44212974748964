"""Columns: the values of one field of many outcomes, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

Index = np.ndarray | slice
"""Which lines: bool (n,), positions, or a slice."""


def first_seen(codes: np.ndarray) -> list[int]:
    """Each of the non-negative codes once, in the order in which they first appear."""
    if not codes.size or (codes == codes[0]).all():
        return codes[:1].tolist()
    found, first = np.unique(codes, return_index=True)
    return found[np.argsort(first)].tolist()


@dataclass(frozen=True, eq=False)
class Coded:
    """Values of which few differ, or whose objects other columns share: a vocabulary, and a code for each line."""

    vocabulary: tuple[Any, ...]  # each value once; some may be in no line
    codes: np.ndarray  # unsigned (n,)

    @staticmethod
    def of(values: Sequence[Hashable]) -> Coded:
        """The column of these values, its vocabulary in the order in which they first appear."""
        known = dict.fromkeys(values)
        codes = range(len(known))
        if len(known) < len(values):
            codes = map(dict(zip(known, codes, strict=True)).__getitem__, values)
        return Coded(tuple(known), np.fromiter(codes, np.min_scalar_type(len(known)), len(values)))

    def mapped(self, change: Callable[[Any], Hashable]) -> Coded:
        """The column with `change`, which keeps different values different, applied to every value."""
        return Coded(tuple(map(change, self.vocabulary)), self.codes)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, line: int) -> Any:
        return self.vocabulary[self.codes[line]]

    def take(self, index: Index) -> Coded:
        """These lines of the column."""
        return Coded(self.vocabulary, self.codes[index])

    def tolist(self) -> list[Any]:
        """A value per line."""
        return [*map(self.vocabulary.__getitem__, self.codes.tolist())]

    def equals(self, other: Coded) -> bool:
        """Whether both columns have the same values, line by line."""
        if self.vocabulary == other.vocabulary:
            return np.array_equal(self.codes, other.codes)
        return self.tolist() == other.tolist()

    def constant(self) -> bool:
        """Whether all lines have one value."""
        return bool((self.codes == self.codes[:1]).all())

    def among(self, *values: Any) -> np.ndarray:
        """bool (n,): where the value is one of these."""
        return np.array([known in values for known in self.vocabulary], bool)[self.codes]

    def present(self) -> list[Any]:
        """Each value that some line has, in the order in which they first appear."""
        return [self.vocabulary[code] for code in first_seen(self.codes)]

    def count(self, value: Any) -> int:
        """How many lines have this value."""
        return int(np.count_nonzero(self.among(value)))

    def distinct(self) -> int:
        """How many different values the lines have."""
        return int(np.count_nonzero(np.bincount(self.codes)))


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers of which many differ."""

    values: np.ndarray  # int64 or float64 (n,); NaN where there is none

    @staticmethod
    def of(values: Sequence[Any], dtype: type[np.int64 | np.float64]) -> Numbers:
        """The column of these numbers; None is legal among floats. Raises TypeError for anything else."""
        whole = dtype is np.int64
        for found in set(map(type, values)):
            number = issubclass(found, Integral if whole else Real) and found is not bool
            if not number and (whole or found is not type(None)):
                raise TypeError(f"{'an integer' if whole else 'a number'} is expected, not {found.__name__}")
        numbers = np.array(values, dtype)
        if not whole and np.count_nonzero(np.isnan(numbers)) != values.count(None):
            raise ValueError("a number is expected, not nan")
        return Numbers(numbers)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, line: int) -> Any:
        value = self.values[line].item()
        return value if value == value else None

    def take(self, index: Index) -> Numbers:
        """These lines of the column."""
        return Numbers(self.values[index])

    def tolist(self) -> list[Any]:
        """A value per line, None where there is none."""
        values = self.values.tolist()
        return [value if value == value else None for value in values] if np.isnan(self.values).any() else values

    def equals(self, other: Numbers) -> bool:
        """Whether both columns have the same values, line by line."""
        return np.array_equal(self.values, other.values, equal_nan=True)

    def constant(self) -> bool:
        """Whether all lines have one value."""
        return np.array_equal(self.values, np.broadcast_to(self.values[:1], self.values.shape), equal_nan=True)
