"""A candidate judged against a baseline: worse, not worse or undecided, per entry, attack and eps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from robustbench_vit.comparing.comparison import Comparison, Conclusion, Flipped, Item, Side
from robustbench_vit.comparing.notes import item_notes
from robustbench_vit.comparing.pairing import Paired, paired, require_one_protocol
from robustbench_vit.comparing.sources import Pair, Source, match, require_complete
from robustbench_vit.errors import InputError
from robustbench_vit.records import Status
from robustbench_vit.statistics import Flips, drop_interval, flips, holm, mcnemar, samples_to_decide, wilson

MISCLASSIFIED = Status.MISCLASSIFIED.value


def compare(
    baseline: Source,
    candidate: Source,
    max_drop: float = 0.02,
    alpha: float = 0.05,
    entries: Sequence[str] = (),
) -> Comparison:
    """Every number of the candidate against the baseline's, paired on the samples they share.

    `max_drop` is the largest admitted drop in robust accuracy, a share; `entries` restricts the comparison to those.
    Raises InputError for entries that the candidate lacks, records that are incomplete or share no sample, and
    ProtocolMismatchError for records that were evaluated otherwise.
    """
    check_levels(max_drop, alpha)
    matched = match(baseline, candidate, entries)
    require_complete(matched.pairs, baseline.name, candidate.name)
    require_one_protocol(matched.pairs, baseline.name, candidate.name)
    items = tuple(judge(matched.pairs, max_drop, alpha))
    notes = tuple(cannot_be_worse(items, max_drop))
    return Comparison(baseline.name, candidate.name, max_drop, alpha, items, new=matched.new, notes=notes)


def cannot_be_worse(items: Iterable[Item], max_drop: float) -> Iterator[str]:
    """A note that names the numbers whose baseline has too little to lose for a drop above `max_drop`."""
    low = [item for item in items if item.baseline.robust_accuracy <= max_drop]
    if low:
        named = ", ".join(f"{item.name} under {item.attack}" for item in low)
        yield f"{100 * max_drop:g} % robust or less in the baseline, so that a larger drop is impossible: {named}"


def check_levels(max_drop: float, alpha: float) -> None:
    """Raises InputError unless both are shares between 0 and 1."""
    for name, value in (("--max-drop", max_drop), ("--alpha", alpha)):
        if not 0 < value < 1:
            meant = f"; did you mean {value / 100:g}?" if 1 <= value < 100 else ""
            raise InputError(f"{name} is a share between 0 and 1, got {value:g}{meant}")


def judge(pairs: Iterable[Pair], max_drop: float, alpha: float) -> list[Item]:
    """An item for every entry, attack and eps; significance is adjusted over all of them (Holm)."""
    numbers = list(_numbers(pairs))
    levels = Levels(max_drop, alpha, len(numbers))
    p = [mcnemar(number.flips) for number in numbers]
    return [_item(*each, levels) for each in zip(numbers, p, holm(p), strict=True)]


@dataclass(frozen=True)
class Levels:
    """What numbers are judged by."""

    max_drop: float
    alpha: float
    comparisons: int  # that are judged at once


@dataclass(frozen=True)
class Number:
    """One number of an entry, on both sides."""

    pair: Pair
    attack: str
    eps: float
    paired: Paired

    @cached_property
    def flips(self) -> Flips:
        """How many samples are robust on one side only."""
        return flips(*self.paired.robust)


def _numbers(pairs: Iterable[Pair]) -> Iterator[Number]:
    for pair in pairs:
        for attack in pair.baseline.protocol["attacks"]:
            for eps in pair.baseline.protocol["eps"]:
                yield Number(pair, attack, eps, paired(pair, attack, eps))


def conclude(flips: Flips, p_adjusted: float, max_drop: float, alpha: float) -> Conclusion:
    """*worse*: significant, and a drop above `max_drop`; *not worse*: the drop's interval lies below `max_drop`."""
    if p_adjusted < alpha and flips.drop > max_drop:
        return Conclusion.WORSE
    _, high = drop_interval(flips, 1 - alpha)
    return Conclusion.NOT_WORSE if high < max_drop else Conclusion.UNDECIDED


def _item(number: Number, p: float, p_adjusted: float, levels: Levels) -> Item:
    pair, found, seen = number.pair, number.paired, number.flips
    conclusion = conclude(seen, p_adjusted, levels.max_drop, levels.alpha)
    undecided = conclusion is Conclusion.UNDECIDED
    notes = list(item_notes(pair, number.attack, number.eps, found))
    before, after = found.robust
    return Item(
        entry=pair.entry,
        candidate_entry=pair.candidate_entry,
        attack=number.attack,
        norm=pair.baseline.protocol["norm"],
        eps=number.eps,
        criterion=pair.baseline.protocol["criterion"],
        conclusion=conclusion,
        flips=seen,
        drop_interval=drop_interval(seen, 1 - levels.alpha),
        p=p,
        p_adjusted=p_adjusted,
        samples_to_decide=samples_needed(seen, levels) if undecided else None,
        baseline=_side(number, 0, levels.alpha),
        candidate=_side(number, 1, levels.alpha),
        lost=flipped(found, before & ~after),
        gained=flipped(found, ~before & after),
        equal_weights=pair.equal_weights,
        notes=(*notes, *_too_few(seen.n, levels)) if undecided else tuple(notes),
    )


def samples_needed(flips: Flips, levels: Levels) -> int | None:
    """How many samples would let the comparison decide; *worse* must also stand Holm's adjustment, at worst its first.

    See `samples_to_decide`.
    """
    alpha = levels.alpha / levels.comparisons if flips.drop > levels.max_drop else levels.alpha
    return samples_to_decide(flips, levels.max_drop, alpha)


def _side(number: Number, which: int, alpha: float) -> Side:
    """The baseline (0) or the candidate (1) on the shared samples."""
    pair, found = number.pair, number.paired
    robust, n = int(found.robust[which].sum()), len(found.samples)
    return Side(
        robust=robust,
        correct=sum(verdict != MISCLASSIFIED for verdict in found.verdicts[which]),
        n=n,
        interval=wilson(robust, n, 1 - alpha),
        of=found.of[which],
        weights_sha256=(pair.baseline, pair.candidate)[which].entry.get("weights_sha256"),
    )


def flipped(found: Paired, where: np.ndarray) -> tuple[Flipped, ...]:
    """The samples at which `where`, bool (n,), is true, with their verdicts."""
    before, after = found.verdicts
    return tuple(Flipped(found.samples[i], before[i], after[i]) for i in np.flatnonzero(where))


def _too_few(n: int, levels: Levels) -> list[str]:
    """What `n` samples can't decide, however they turn out."""
    for_worse = least_for_worse(levels.alpha, levels.comparisons)
    for_not_worse = least_for_not_worse(levels.max_drop, levels.alpha)
    if n >= for_not_worse:
        return []
    needed = f"'not worse' takes {for_not_worse:,} even without a flip"
    if n < for_worse:
        return [f"n = {n} is too small to decide anything: {needed}, 'worse' takes {for_worse}"]
    return [f"n = {n} is too small for 'not worse': it takes {for_not_worse:,} samples even without a flip"]


@lru_cache
def least_for_not_worse(max_drop: float, alpha: float) -> int:
    """The fewest samples on which *not worse* can be concluded: those on which nothing flips."""
    low, high = 0, 1
    while drop_interval(Flips(0, 0, high), 1 - alpha)[1] >= max_drop:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = drop_interval(Flips(0, 0, middle), 1 - alpha)[1] < max_drop
        low, high = (low, middle) if enough else (middle, high)
    return high


def least_for_worse(alpha: float, comparisons: int = 1) -> int:
    """The fewest samples on which *worse* can be concluded: those that are all lost, with p = 2 / 2^n.

    `comparisons` are those that Holm's adjustment may count.
    """
    return math.floor(math.log2(2 * comparisons / alpha)) + 1
