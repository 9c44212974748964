"""A test's own models: evaluated by the fixture `robust_accuracy`, which fails the test when they are too weak."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from robustbench_vit.errors import InputError
from robustbench_vit.records import Record
from robustbench_vit.testing import report
from robustbench_vit.testing.accuracy import accuracy_of
from robustbench_vit.testing.entries import Settings
from robustbench_vit.testing.seen import Seen


@dataclass
class Models:
    """A test's own models: what the fixture `robust_accuracy` returns where no marker names an entry of a board."""

    settings: Settings
    seen: Seen
    minimum: float | None = None  # the marker's

    def __call__(
        self,
        model: Any,
        x: Any,
        y: Any = None,
        attack: Any = "autoattack",
        norm: str = "linf",
        eps: float | str | Sequence[float] = 8 / 255,
        *,
        min: float | None = None,
        **settings: Any,
    ) -> Record:
        """The model's record, from `robustbench_vit.evaluate` with these arguments.

        Fails the test when the robust accuracy is below `min` (default: the marker's). Raises InputError for a `min`
        that is no share, and for several eps that it can't be held against.
        """
        __tracebackhide__ = True
        from robustbench_vit.evaluation import evaluate

        minimum = self._minimum(min, eps)
        x, y = self._first(x, y)
        settings = {"device": self.settings.device, "workspace": self.settings.workspace, **settings}
        record = evaluate(model, x, y, attack, norm, eps, **settings)
        for radius in record.protocol["eps"]:
            self._take(record.at(eps=radius), minimum)
        return record

    def _take(self, record: Record, minimum: float | None) -> None:
        __tracebackhide__ = True
        found, name = accuracy_of(record), str(record.entry["name"])
        self.seen.add(name, found)
        if minimum is not None and found < minimum:
            note = f" (only the first {found.n:,}, --robustness-n)" if self.settings.n == found.n else ""
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
            lines = [report.below(found, minimum, f"model '{name}'"), *report.facts(found, minimum, note)]
            pytest.fail("\n".join([*lines, f"  reproduce  pytest '{test}'"]))

    def _minimum(self, given: float | None, eps: Any) -> float | None:
        minimum = self.minimum if given is None else given
        if minimum is None:
            return None
        if isinstance(minimum, bool) or not isinstance(minimum, (int, float)) or not 0 <= minimum <= 1:
            raise InputError(f"min is a share between 0 and 1, got {minimum!r}")
        if isinstance(eps, (list, tuple)) and len(eps) > 1:
            raise InputError("min belongs to one eps; evaluate the others in calls of their own, or leave min out")
        return minimum

    def _first(self, x: Any, y: Any) -> tuple[Any, Any]:
        """The samples that --robustness-n leaves."""
        n = self.settings.n
        if n is None:
            return x, y
        if isinstance(x, str):
            from robustbench_vit.data import load_dataset

            x = load_dataset(x)
        if hasattr(x, "sample_ids"):
            return x.first(min(n, len(x))), y
        return x[:n], None if y is None else y[:n]
