"""What an attack is given of the model: the methods of its declared access, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustbench_vit.attacks.rows import Access, AttendedBlock, AttendedObjective, Gradient, Objective


class Decisions:
    """The view of an attack that sees only decisions."""

    def __init__(self, oracle: Any) -> None:
        self.__oracle = oracle

    def whole(self, n: int) -> int:
        """How many of n images fill physical batches."""
        return self.__oracle.whole(n)

    def computed(self, n: int) -> int:
        """How many images the model sees when it is asked about n, padding included."""
        return self.__oracle.computed(n)

    def decisions(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """int64 (m,): the class of each image."""
        return self.__oracle.logits(x, rows).argmax(1)


class Scores(Decisions):
    """The view of an attack that sees logits."""

    def __init__(self, oracle: Any) -> None:
        super().__init__(oracle)
        self.__oracle = oracle

    def scores(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(m, classes): the logits of each image."""
        return self.__oracle.logits(x, rows)

    def discard(self, rows: Tensor) -> None:
        """Counts an answer to each of these rows as padding, which it took the place of."""
        self.__oracle.discard(rows)


class Gradients(Scores):
    """The view of an attack that sees gradients."""

    def __init__(self, oracle: Any) -> None:
        super().__init__(oracle)
        self.__oracle = oracle

    def gradient(self, x: Tensor, objective: Objective, rows: Tensor | None = None, draws: int = 1) -> Gradient:
        """Logits, objective and gradient at each image; of a random model averaged over `draws`."""
        return self.__oracle.gradient(x, objective, rows, draws)


class Internals(Gradients):
    """The view of an attack that sees what the model's dropping blocks attend to."""

    def __init__(self, oracle: Any) -> None:
        super().__init__(oracle)
        self.__oracle = oracle

    def attended(
        self, x: Tensor, read: Callable[[list[AttendedBlock]], Tensor], rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The logits (m, classes) of each image, and what `read` makes (m, …) of what each dropping block saw."""
        return self.__oracle.attended(x, read, rows)

    def gradient_attended(self, x: Tensor, objective: AttendedObjective, rows: Tensor | None = None) -> Gradient:
        """Like `gradient`, with an objective on the logits and on what each dropping block saw."""
        return self.__oracle.gradient_attended(x, objective, rows)


VIEWS: dict[Access, type[Decisions]] = {
    Access.DECISIONS: Decisions,
    Access.SCORES: Scores,
    Access.GRADIENT: Gradients,
    Access.INTERNALS: Internals,
}
