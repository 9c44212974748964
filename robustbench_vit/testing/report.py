"""What tests say about a robust accuracy: a line in the summary, and why a test failed. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vit.cards.numbers import show_number
from robustbench_vit.cards.workspace import FOLDERS
from robustbench_vit.comparing import Item
from robustbench_vit.comparing.render import words
from robustbench_vit.records import Evidence, Record

if TYPE_CHECKING:
    from robustbench_vit.cards import Workspace
    from robustbench_vit.testing.accuracy import RobustAccuracy
    from robustbench_vit.testing.demand import Asked

MISCLASSIFIED = "misclassified"
SHOWN = 20
"""Most samples of one fate that a message names."""


def number(found: RobustAccuracy) -> str:
    """'35.0 % [18.1, 56.7]'."""
    return f"{words.percent(found.value, found.n)} % {words.bounds(found.interval, found.n)}"


def budget(record: Record) -> str:
    """The attack and budget of a record of one number: 'autoattack, linf, eps 8/255'."""
    outcome = record.outcomes[0]
    return f"{outcome.attack}, {outcome.norm}, eps {show_number(outcome.eps)}"


def summary_line(name: str, found: RobustAccuracy) -> str:
    """What the terminal's summary says of one number."""
    return f"{name}: {number(found)} under {budget(found.record)}, n = {found.n:,}{masking(found.record)}"


def masking(record: Record) -> str:
    """A warning when something speaks for masked gradients, else nothing."""
    found = record.reliability
    if found is None or found.evidence is Evidence.NONE:
        return ""
    return f"; {found.evidence} evidence of masked gradients, it may be too high"


def below(found: RobustAccuracy, minimum: float, who: str) -> str:
    """The first line of a failure by `min`."""
    return f"robust accuracy of {who} is {number(found)}, below the minimum of {100 * minimum:g} %"


def facts(found: RobustAccuracy, minimum: float | None, note: str = "") -> list[str]:
    """Attack, budget, samples and interval of a number that is too low; `note` says which samples."""
    high = found.interval[1]
    robust = f"{round(found.value * found.n):,} of {found.n:,} robust"
    lines = [
        f"  attack     {budget(found.record)}",
        f"  samples    {robust}{note}; interval at {100 * found.confidence:g} %{masking(found.record)}",
    ]
    if minimum is not None and found.value < minimum <= high:
        lines.append("  chance     the minimum lies inside the interval: it may be the draw of samples; take more")
    return lines


def dropped(item: Item, max_drop: float, who: str) -> str:
    """The first line of a failure, or of a warning, by `max_drop`."""
    return f"{item.conclusion}: {who}: {words.sentence(item)}; largest admitted drop {100 * max_drop:g} points"


def flipped(item: Item) -> list[str]:
    """What differs from the committed record, with the lanes that broke the samples."""
    n = item.flips.n
    changed = len(item.lost) + len(item.gained)
    lines = [
        f"  committed  {words.percent(item.baseline.robust_accuracy, n)} % on the same {n:,} samples; {changed} flipped"
        f" ({len(item.lost)} lost, {len(item.gained)} gained)"
    ]
    lines += _flips("lost", "", {flip.sample: flip.candidate for flip in item.lost})
    lines += _flips("gained", "was ", {flip.sample: flip.baseline for flip in item.gained})
    return lines + [f"  note       {note}" for note in item.notes]


def _flips(word: str, tense: str, fates: Mapping[str, str]) -> list[str]:
    """A line for every verdict on samples that are not robust, with some of the samples."""
    lines = []
    for verdict in dict.fromkeys(fates.values()):
        samples = [sample for sample, fate in fates.items() if fate == verdict]
        more = f" and {len(samples) - SHOWN:,} more" if len(samples) > SHOWN else ""
        fate = verdict if verdict == MISCLASSIFIED else f"broken by {verdict}"
        lines.append(f"    {word:<8} {tense}{fate}: {', '.join(samples[:SHOWN])}{more}")
    return lines


def reproduce(asked: Asked, workspace: Workspace, n: int | None) -> str:
    """The command that evaluates the entry without pytest."""
    where = [f"--workspace {shlex.quote(str(workspace.layers[-1]))}"] if _elsewhere(workspace) else []
    samples = [] if n is None else [f"--n {n}"]
    found = asked.board.path.parent in [layer / FOLDERS["board"] for layer in workspace.layers]
    board = asked.board.name if found else str(asked.board.path)
    command = ["rbvit", *where, "run", shlex.quote(board), "--entry", shlex.quote(asked.entry), *samples]
    return f"  reproduce  {' '.join(command)}"


def _elsewhere(workspace: Workspace) -> bool:
    """Whether commands started in the current folder would look for cards in other places."""
    return len(workspace.layers) > 1 and workspace.layers[-1].resolve() != Path.cwd().resolve()
