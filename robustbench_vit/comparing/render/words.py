"""The words in which every format tells what became of a number."""

from __future__ import annotations

from collections.abc import Iterator

from robustbench_vit.comparing.comparison import ALL_SAMPLES, EQUAL_WEIGHTS, Comparison, Conclusion, Item

MANY = 1000
"""Samples from which a tenth of a point is more than one of them."""


def worst_first(comparison: Comparison) -> list[Item]:
    """The items, *worse* before *undecided* before *not worse*, else as they stand."""
    order = list(Conclusion)
    return sorted(comparison.items, key=lambda item: order.index(item.conclusion))


def percent(share: float, n: int) -> str:
    """A share of `n` samples as a percentage: 60.2; two decimals where n is large."""
    shown = f"{100 * share:.{2 if n > MANY else 1}f}"
    return shown.removeprefix("-") if not float(shown) else shown


def bounds(interval: tuple[float, float], n: int) -> str:
    """An interval of shares in percent: [2.1, 8.4]."""
    return f"[{percent(interval[0], n)}, {percent(interval[1], n)}]"


def change(item: Item) -> str:
    """'a drop of 5.2 points [2.1, 8.4]', 'a gain of …', or 'no change …', with the interval in the same direction."""
    n, (low, high) = item.flips.n, item.drop_interval
    if item.drop > 0:
        return f"a drop of {percent(item.drop, n)} points {bounds((low, high), n)}"
    if item.drop < 0:
        return f"a gain of {percent(-item.drop, n)} points {bounds((-high, -low), n)}"
    return f"no change {bounds((low, high), n)}"


def accuracies(item: Item) -> str:
    """The robust accuracy before and after: 'robust 60.2 % → 55.0 %'."""
    before, after = (percent(side.robust_accuracy, side.n) for side in (item.baseline, item.candidate))
    return f"robust {before} % → {after} %"


def counted(item: Item) -> str:
    """The samples that flipped, of how many, and how likely that is by chance."""
    n = f"{item.flips.n:,}"
    if not item.flips.lost + item.flips.gained:
        return f"none of {n} samples flipped" + (", the weights are the same" if item.equal_weights else "")
    lost = f"{item.flips.lost:,} {'sample' if item.flips.lost == 1 else 'samples'} lost"
    return f"{lost}, {item.flips.gained:,} gained of {n}{probability(item)}"


def probability(item: Item) -> str:
    """', p = 2e-05', with the adjusted one where it differs; nothing for an item without a p."""
    if item.p is None:
        return ""
    adjusted = "" if item.p_adjusted in (None, item.p) else f" ({item.p_adjusted:.2g} adjusted)"
    return f", p = {item.p:.2g}{adjusted}"


def clean(item: Item) -> str:
    """The accuracy without an attack before and after."""
    before, after = (percent(side.clean_accuracy, side.n) for side in (item.baseline, item.candidate))
    return f"clean {before} %" if before == after else f"clean {before} % → {after} %"


def decision(item: Item) -> str:
    """What decided, where it wasn't a test on all samples; what would decide, where nothing did."""
    if item.conclusion is Conclusion.UNDECIDED:
        if item.samples_to_decide is None:
            return "more samples would not decide while the drop stays at the largest admitted one"
        return f"about {_round_up(item.samples_to_decide):,} samples would decide, were flips as frequent"
    if item.decided_by == ALL_SAMPLES or item.used is None:
        return ""
    of = "" if item.of is None else f" of {item.of:,}"
    return f"decided by a {item.decided_by} after {item.used:,}{of} samples"


def _round_up(count: int) -> int:
    """`count` rounded up to two significant digits: 1541 becomes 1600."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def sentence(item: Item) -> str:
    """What became of an item, in one sentence, without its name and its conclusion."""
    if item.decided_by == EQUAL_WEIGHTS:
        return "the weights are the baseline's, so nothing was evaluated"
    parts = [f"{accuracies(item)}, {change(item)}", counted(item), clean(item), decision(item)]
    return "; ".join(part for part in parts if part)


def tally(comparison: Comparison) -> str:
    """How many numbers came to which conclusion: '2 worse, 1 undecided, 17 not worse'."""
    counts = [(comparison.count(conclusion), conclusion.value) for conclusion in Conclusion]
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "nothing was compared"


def terms(comparison: Comparison) -> str:
    """What the conclusions were drawn by."""
    n = len(comparison.items)
    corrected = comparison.correction and n > 1 and any(i.p is not None for i in comparison.items)
    correction = f", {comparison.correction} over {n} comparisons" if corrected else ""
    return f"largest admitted drop {100 * comparison.max_drop:g} points, alpha {comparison.alpha:g}{correction}"


def shared_notes(comparison: Comparison) -> list[str]:
    """The notes that every one of several items has."""
    if len(comparison.items) < 2:
        return []
    return [note for note in comparison.items[0].notes if all(note in item.notes for item in comparison.items)]


def remarks(comparison: Comparison) -> Iterator[str]:
    """What concerns the comparison as a whole: its notes, those of all items, and the entries that are new."""
    yield from comparison.notes
    yield from (f"all numbers: {note}" for note in shared_notes(comparison))
    if comparison.new:
        yield f"new in the candidate, not compared: {', '.join(comparison.new)}"
