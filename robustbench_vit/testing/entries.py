"""Entries of boards checked for tests: evaluated, and held against what a marker demands."""

from __future__ import annotations

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
class Complaints:
    """Why a test fails, and what it must say although it passes."""

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

    def complaints(self, demand: Demand, asked: Asked) -> Complaints:
        """What the entry lacks of what the demand wants."""
        found = self.accuracy(asked)
        low = demand.min is not None and found < demand.min
        if not low and demand.max_drop is None:
            return Complaints()
        compared = self._compared(demand, asked)
        who = f"entry '{asked.entry}' of board '{asked.board.name}'"
        failures, undecided = [], []
        if low and demand.min is not None:
            failures.append(self._message(report.below(found, demand.min, who), found, asked, compared, demand.min))
        if demand.max_drop is not None and isinstance(compared, Item):
            said = self._message(report.dropped(compared, demand.max_drop, who), found, asked, compared)
            kept = {Conclusion.WORSE: failures, Conclusion.UNDECIDED: undecided}.get(compared.conclusion, [])
            kept.append(said)
        return Complaints(tuple(failures), tuple(undecided))

    def _compared(self, demand: Demand, asked: Asked) -> Item | str:
        """The number against the committed record; or why they can't be compared, which raises where it must be."""
        alpha = demand.alpha if demand.alpha is not None else asked.board.card.alpha
        try:
            return against_committed(asked, self.whole(asked), demand.max_drop, alpha)
        except RobustbenchError as error:
            if demand.max_drop is not None:
                raise
            missing = not committed_path(asked).is_file()
            return "none beside the board's card" if missing else str(error).replace("\n", "\n    ")

    def _message(
        self, first: str, found: RobustAccuracy, asked: Asked, compared: Item | str, minimum: float | None = None
    ) -> str:
        n = self.settings.n if self.settings.n == found.n else None
        note = f" (only the board's first {found.n:,}, --robustness-n)" if n else ""
        lines = [first, *report.facts(found, minimum, note)]
        lines += report.flipped(compared) if isinstance(compared, Item) else [f"  committed  {compared}"]
        return "\n".join([*lines, report.reproduce(asked, self.settings.workspace, n)])
