"""A comparison in plain words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robustbench_vit.comparing.comparison import Comparison, Flipped, Item
from robustbench_vit.comparing.render import words

SHOWN = 8
"""Flipped samples named on a line; --json has them all."""


def text(comparison: Comparison) -> str:
    """A paragraph per item, the worst first, then how many came to which conclusion; ends in a newline."""
    lines = [f"baseline {comparison.baseline}, candidate {comparison.candidate}", ""]
    shared = words.shared_notes(comparison)
    for item in words.worst_first(comparison):
        lines += item_lines(item, shared)
    lines += ["", *(f"note: {remark}" for remark in words.remarks(comparison))]
    lines.append(f"{words.tally(comparison)} ({words.terms(comparison)})")
    return "\n".join(lines) + "\n"


def item_lines(item: Item, told: Sequence[str] = ()) -> Iterator[str]:
    """What became of one item: a sentence, the samples that flipped, notes but for those `told` elsewhere."""
    yield f"{item.name}, {item.budget}: {item.conclusion}. {words.sentence(item)}"
    if item.lost:
        yield f"  lost: {_named([(flip, flip.candidate) for flip in item.lost])}"
    if item.gained:
        yield f"  gained: {_named([(flip, flip.baseline) for flip in item.gained])}"
    yield from (f"  note: {note}" for note in item.notes if note not in told)


def _named(flips: Sequence[tuple[Flipped, str]]) -> str:
    """The samples with what broke them on the side where they aren't robust."""
    shown = ", ".join(f"{flip.sample} ({by})" for flip, by in flips[:SHOWN])
    return shown + (f", … ({len(flips) - SHOWN:,} more)" if len(flips) > SHOWN else "")
