"""A comparison as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from robustbench_vit.comparing.comparison import EQUAL_WEIGHTS, Comparison, Conclusion, Flipped, Item
from robustbench_vit.comparing.render import words

LIMIT = 60_000
"""Characters; GitHub refuses comments of more than 65,536."""
SHOWN = 100
"""Flipped samples named per item and direction."""

HEADER = ("entry", "attack", "conclusion", "baseline %", "candidate %", "drop in points", "lost", "gained", "n", "p")
RULE = ("---", "---", "---", "---:", "---:", "---:", "---:", "---:", "---:", "---:")

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&!$])")


def markdown(comparison: Comparison) -> str:
    """A heading with the conclusion, a table, notes, and the flipped samples folded away; ends in a newline."""
    items = words.worst_first(comparison)
    lines = [
        f"### Robustness: {comparison.conclusion}",
        "",
        f"{words.tally(comparison)}: candidate {escaped(comparison.candidate)} against baseline"
        f" {escaped(comparison.baseline)}; {words.terms(comparison)}.",
        "",
        *(_row(cells) for cells in (HEADER, RULE, *map(_cells, items))),
        "",
        *_notes(comparison, items),
    ]
    return _with_flips("\n".join(lines) + "\n", items)


def escaped(text: str) -> str:
    """`text` as Markdown shows it letter by letter, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(item: Item) -> tuple[str, ...]:
    conclusion = str(item.conclusion)
    if item.conclusion is not Conclusion.NOT_WORSE:
        conclusion = f"**{conclusion}**"
    if item.conclusion is Conclusion.UNDECIDED:
        conclusion += f": {words.decision(item)}"
    name, budget, n = escaped(item.name), escaped(item.budget), item.flips.n
    if item.decided_by == EQUAL_WEIGHTS:
        return (name, budget, f"{conclusion} (equal weights)", *[""] * (len(HEADER) - 3))
    p = "" if item.p is None else f"{item.p if item.p_adjusted is None else item.p_adjusted:.2g}"
    used = f"{n:,}" if item.used is None or item.of is None else f"{item.used:,} of {item.of:,}"
    return (
        name,
        budget,
        conclusion,
        words.percent(item.baseline.robust_accuracy, n),
        words.percent(item.candidate.robust_accuracy, n),
        f"{words.percent(item.drop, n)} {words.bounds(item.drop_interval, n)}",
        f"{item.flips.lost:,}",
        f"{item.flips.gained:,}",
        used,
        p,
    )


def _notes(comparison: Comparison, items: Sequence[Item]) -> Iterator[str]:
    """A list: what concerns all items, then each note with the items that have it."""
    lines = [f"- {escaped(remark)}" for remark in words.remarks(comparison)]
    told, having = words.shared_notes(comparison), defaultdict[str, list[str]](list)
    for item in items:
        for note in item.notes:
            if note not in told:
                having[note].append(f"{item.name}, {item.budget}")
    lines += [f"- {escaped('; '.join(names))}: {escaped(note)}" for note, names in having.items()]
    yield from [*lines, ""] if lines else []


def _with_flips(text: str, items: Sequence[Item]) -> str:
    """`text` with a folded list per item that flipped, as far as the limit allows."""
    for left, item in zip(range(len(items), 0, -1), items, strict=True):
        folded = _folded(item)
        if len(text) + len(folded) > LIMIT:
            return f"{text}\nThe flipped samples of {left} more are left out; `--json` has them all.\n"
        text += folded
    return text


def _folded(item: Item) -> str:
    if not item.lost and not item.gained:
        return ""
    counts = f"{item.flips.lost:,} lost, {item.flips.gained:,} gained"
    lines = [f"<details><summary>{escaped(item.name)}, {escaped(item.budget)}: {counts}</summary>", ""]
    if item.lost:
        lines += [f"Lost, with what breaks it in the candidate: {_named([(f, f.candidate) for f in item.lost])}", ""]
    if item.gained:
        lines += [f"Gained, with what broke it in the baseline: {_named([(f, f.baseline) for f in item.gained])}", ""]
    return "\n".join([*lines, "</details>", "", ""])


def _named(flips: Sequence[tuple[Flipped, str]]) -> str:
    shown = ", ".join(f"{escaped(flip.sample)} ({escaped(by)})" for flip, by in flips[:SHOWN])
    return shown + (f", … and {len(flips) - SHOWN:,} more" if len(flips) > SHOWN else "")
