"""What a comparison of a baseline with a candidate says, whichever test decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from robustbench_vit.cards.numbers import show_number

if TYPE_CHECKING:
    from robustbench_vit.statistics import Flips

ALL_SAMPLES = "all samples"
SEQUENTIAL_TEST = "sequential test"
EQUAL_WEIGHTS = "equal weights"


class Conclusion(StrEnum):
    """Whether the candidate is less robust, by more than may be lost."""

    WORSE = "worse"  # a drop above the largest admitted one, and no chance
    UNDECIDED = "undecided"  # neither can be said on so few samples
    NOT_WORSE = "not worse"  # a drop as large as the largest admitted one is excluded


@dataclass(frozen=True)
class Side:
    """What one side says about the samples that were compared; accuracies are shares of them."""

    robust: int
    correct: int  # without an attack
    n: int  # compared
    interval: tuple[float, float]  # Wilson's, of the robust accuracy, at 1 - alpha
    of: int  # samples that the record holds; n of them are shared with the other side
    weights_sha256: str | None = None

    @property
    def robust_accuracy(self) -> float:
        """Share of the compared samples that no lane broke."""
        return self.robust / self.n

    @property
    def clean_accuracy(self) -> float:
        """Share of the compared samples that are classified correctly without an attack."""
        return self.correct / self.n


@dataclass(frozen=True)
class Flipped:
    """A sample that is robust on one side only, with its verdict on both."""

    sample: str
    baseline: str  # 'robust', 'misclassified', or the lane that broke it
    candidate: str


@dataclass(frozen=True)
class Item:
    """One number of one entry, compared: an attack at an eps."""

    entry: str
    attack: str
    norm: str
    eps: float
    criterion: str
    conclusion: Conclusion
    flips: Flips  # over the samples that were used
    drop_interval: tuple[float, float]  # of the drop in robust accuracy, at 1 - alpha
    baseline: Side
    candidate: Side
    lost: tuple[Flipped, ...] = ()  # robust in the baseline only
    gained: tuple[Flipped, ...] = ()  # robust in the candidate only
    p: float | None = None  # exact McNemar; None where a sequential test decided
    p_adjusted: float | None = None  # Holm's, over everything compared at once
    samples_to_decide: int | None = None  # when undecided, were the rates of flips as seen; None: no number would
    candidate_entry: str | None = None  # the candidate's name, where it isn't `entry`
    equal_weights: bool = False  # both sides have the same weights
    used: int | None = None  # samples on which a sequential test decided, `of` so many at hand
    of: int | None = None
    decided_by: str = ALL_SAMPLES
    notes: tuple[str, ...] = ()  # what a reader must know of this number

    @property
    def name(self) -> str:
        """The entry, with both names where they differ."""
        return self.entry if self.candidate_entry in (None, self.entry) else f"{self.entry} → {self.candidate_entry}"

    @property
    def budget(self) -> str:
        """The attack with norm and eps, such as 'autoattack (linf 8/255)'."""
        return f"{self.attack} ({self.norm} {show_number(self.eps)})"

    @property
    def drop(self) -> float:
        """By how much the robust accuracy fell, a share; negative when it rose."""
        return self.flips.drop


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared at once, with what it was judged by."""

    baseline: str  # as the user named it
    candidate: str
    max_drop: float  # the largest admitted drop in robust accuracy, a share
    alpha: float
    items: tuple[Item, ...]
    new: tuple[str, ...] = ()  # entries that only the candidate has
    notes: tuple[str, ...] = ()  # about all items
    command: str = "rbvit compare"  # which made it
    correction: str = "Holm"  # of p over all items; empty where the notes say how errors are kept from adding up
    extra: Mapping[str, Any] = field(default_factory=dict)  # further JSON values of that command

    @property
    def conclusion(self) -> Conclusion:
        """The worst of all items; *not worse* when there is none."""
        order = list(Conclusion)
        return min((item.conclusion for item in self.items), key=order.index, default=Conclusion.NOT_WORSE)

    def count(self, conclusion: Conclusion) -> int:
        """How many items came to this conclusion."""
        return sum(item.conclusion is conclusion for item in self.items)

    def failed(self, strict: bool = False) -> bool:
        """Whether a check by this comparison fails: something is worse, or with `strict` undecided."""
        return self.conclusion is Conclusion.WORSE or (strict and self.conclusion is Conclusion.UNDECIDED)
