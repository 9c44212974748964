"""Entries of boards checked for tests: evaluated, and held against what a marker demands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vit.comparing import Conclusion, Item
from robustbench_vit.errors import RobustbenchError
from robustbench_vit.records import Record
from robustbench_vit.testing import report
from robustbench_vit.testing.accuracy import RobustAccuracy, accuracy_of
from robustbench_vit.testing.committed import against_committed, committed_path
from robustbench_vit.testing.demand import Asked, Demand

if TYPE_CHECKING:
    from robustbench_vit.cards import Workspace
    from robustbench_vit.testing.evaluating import Evaluations


@dataclass(frozen=True)
class Settings:
    """The session's options."""

    workspace: Workspace
    folder: Path  # of the journals
    n: int | None  # the first n samples only
    device: str | None  # default: the CPU for boards, where the model is for models


@dataclass(frozen=True)
class Verdict:
    """What became of a demand: why the test fails, and what it must say although it passes."""

    failures: tuple[str, ...] = ()  # each a message of several lines
    undecided: tuple[str, ...] = ()


@dataclass
class Entries:
    """Entries of boards for the tests of this session."""

    settings: Settings
    _evaluations: Evaluations | None = None

    def whole(self, asked: Asked) -> Record:
        """The entry's record under all attacks; evaluated once."""
        from robustbench_vit.testing.evaluating import Evaluations

        if self._evaluations is None:
            device = self.settings.device or "cpu"
            self._evaluations = Evaluations(self.settings.folder, self.settings.n, device)
        return self._evaluations.record(asked.board, asked.entry, self.settings.workspace)

    def accuracy(self, asked: Asked) -> RobustAccuracy:
        """The number asked about, with the interval that the board's card wants."""
        card = asked.board.card
        return accuracy_of(self.whole(asked).at(asked.attack, asked.eps), card.confidence, card.interval)

    def verdict(self, demand: Demand, asked: Asked) -> Verdict:
        """Whether the entry is what the demand wants."""
        found = self.accuracy(asked)
        max_drop = demand.max_drop if demand.max_drop is not None else 0.02
        alpha = demand.alpha if demand.alpha is not None else asked.board.card.alpha
        low = demand.min is not None and found < demand.min
        if not low and demand.max_drop is None:
            return Verdict()
        item, why_not = self._item(asked, max_drop, alpha, required=demand.max_drop is not None)
        first = [report.below(found, float(demand.min or 0), f"entry '{asked.entry}' of board '{asked.board.name}'")]
        failures = [self._message(first, demand.min, found, asked, item, why_not)] if low else []
        undecided = []
        if demand.max_drop is not None and item is not None and item.conclusion is not Conclusion.NOT_WORSE:
            said = self._message([report.dropped(item, max_drop)], None, found, asked, item, None)
            (failures if item.conclusion is Conclusion.WORSE else undecided).append(said)
        return Verdict(tuple(failures), tuple(undecided))

    def _item(self, asked: Asked, max_drop: float, alpha: float, required: bool) -> tuple[Item | None, str | None]:
        """The number against the committed record, or why they can't be compared, which raises when `required`."""
        if not required and not committed_path(asked).is_file():
            return None, "none beside the board's card"
        try:
            return against_committed(asked, self.whole(asked), max_drop, alpha), None
        except RobustbenchError as error:
            if required:
                raise
            return None, str(error).replace("\n", "\n    ")

    def _message(
        self,
        first: Sequence[str],
        minimum: float | None,
        found: RobustAccuracy,
        asked: Asked,
        item: Item | None,
        why_not: str | None,
    ) -> str:
        n = self.settings.n
        note = f" (only the board's first {found.n:,}, --robustness-n)" if n == found.n else ""
        lines = [*first, *report.facts(found, minimum, note)]
        lines += report.flipped(item) if item is not None else []
        lines += [f"  committed  {why_not}"] if why_not is not None else []
        return "\n".join([*lines, report.reproduce(asked, self.settings.workspace, n)])
