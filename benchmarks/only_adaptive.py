"""What fell only to adaptive attacks: the robustness that the board's own attacks alone would have claimed in error.

One of the adaptive attacks is a control, a plain PGD of as many passes. A sample that it breaks too fell to more
passes, not to the aim of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.prose import paragraph
from robustbench_vit.cards import BoardCard
from robustbench_vit.records import Record

CONTROL = "pgd-100"


@dataclass(frozen=True)
class Fallen:
    """One entry's samples that the board's attacks left robust and adaptive ones did not."""

    name: str
    robust: int  # samples that the board's attacks left robust
    n: int
    fell: Mapping[str, tuple[str, ...]]  # by sample: the adaptive attacks that broke it
    attacks: tuple[str, ...]  # the adaptive attacks that ran
    passes: Mapping[str, tuple[float, float]]  # of each: forwards and backwards per sample

    def by(self, attack: str) -> int:
        """How many of them this attack broke."""
        return sum(attack in attacks for attacks in self.fell.values())

    @property
    def beyond(self) -> tuple[str, ...]:
        """The samples that the control did not break."""
        return tuple(sample for sample, attacks in self.fell.items() if CONTROL not in attacks)

    def against_control(self, attack: str) -> tuple[int, int]:
        """How many this attack broke and the control did not, and the reverse."""
        broke = [(attack in attacks, CONTROL in attacks) for attacks in self.fell.values()]
        return broke.count((True, False)), broke.count((False, True))


def fallen(record: Record, card: BoardCard) -> Fallen:
    """What fell of a record that has adaptive attacks, at the board's first eps."""
    eps = card.eps[0]
    robust = np.logical_and.reduce([record.at(attack, eps).robust for attack in card.attacks])
    attacks = tuple(record.evidence)
    narrowed = {attack: record.at(attack, eps) for attack in attacks}
    passes = {attack: (held.mean("forwards"), held.mean("backwards")) for attack, held in narrowed.items()}
    return Fallen(record.entry["name"], int(robust.sum()), len(robust), record.only_adaptive(eps), attacks, passes)


def section(records: Mapping[str, Record], card: BoardCard) -> list[str]:
    """The lines of the page's section."""
    found = [fallen(record, card) for record in records.values() if record.evidence]
    lines = [
        "## Token dropping under attack",
        "",
        *paragraph(
            "Which tokens stay is a choice without a gradient, so the entries that drop tokens are attacked in",
            "further ways: through the same weights with every token kept (`keep-1-transfer`, and `keep-1-start`,",
            "which goes on from there against the model itself) and by evicting the tokens that the clean image",
            f"attends to (`attention-evict`). `{CONTROL}` is the control: plain PGD with as many steps and restarts.",
            "With keep rate 1 nothing is dropped, so those entries have no adaptive attacks, and *best known* is",
            "for them what the board's attacks leave.",
        ),
        "",
    ]
    if not found:
        return [*lines, "No record has adaptive attacks yet."]
    return [*lines, *_table(found), "", *_verdict(found, card.attacks), "", *_samples(found)]


def _table(found: Sequence[Fallen]) -> list[str]:
    attacks = list(dict.fromkeys(attack for one in found for attack in one.attacks))
    names = ["entry", "n", "robust", "fell since", *attacks, f"not to `{CONTROL}`"]
    lines = [
        *paragraph(
            "Samples that all of the board's attacks left robust; how many of them fell to adaptive attacks, to",
            "each of these, and to some of these but not to the control. The last row has the forwards + backwards",
            "per sample, a mean over the entries.",
        ),
        "",
        f"| {' | '.join(names)} |",
        f"|---|{'---:|' * (len(names) - 1)}",
    ]
    for one in found:
        by = [str(one.by(attack)) if attack in one.attacks else "" for attack in attacks]
        cells = [one.name, str(one.n), str(one.robust), str(len(one.fell)), *by, str(len(one.beyond))]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, f"| passes | | | | {' | '.join(_passes(found, attack) for attack in attacks)} | |"]


def _passes(found: Sequence[Fallen], attack: str) -> str:
    pairs = np.array([one.passes[attack] for one in found if attack in one.passes])
    return " + ".join(f"{value:.0f}" for value in pairs.mean(0))


def _verdict(found: Sequence[Fallen], attacks: Sequence[str]) -> list[str]:
    counts = [(one.robust, len(one.fell), len(one.beyond)) for one in found]
    robust, fell, beyond = np.sum(counts, axis=0).tolist()
    left = f"Of {robust} pairs of an entry and a sample that {' and '.join(attacks)} left robust,"
    if not fell:
        return paragraph(left, "none fell to an adaptive attack: these attacks show no false security.")
    lines = [
        f"{left} {fell} fell to adaptive attacks ({100 * fell / robust:.1f} %): without them so much would have been",
        "called robust in error.",
    ]
    if not beyond:
        return paragraph(*lines, "The control broke all of them: it took more passes, not another aim.")
    return paragraph(
        *lines,
        f"{beyond} of these the control did not break: they fell only to attacks aimed at the dropping of tokens,",
        "which together took several times its passes. One by one, with equal passes:",
        *_one_by_one(found),
    )


def _one_by_one(found: Sequence[Fallen]) -> list[str]:
    """What each aimed attack broke beside the control."""
    said = []
    for attack in dict.fromkeys(attack for one in found for attack in one.attacks if attack != CONTROL):
        pairs = [one.against_control(attack) for one in found if {attack, CONTROL} <= {*one.attacks}]
        more, less = (sum(pair[side] for pair in pairs) for side in (0, 1))
        said.append(f"`{attack}` broke {more} that the control did not, and not {less} that it did")
    return ["; ".join(said) + "."]


def _samples(found: Sequence[Fallen]) -> list[str]:
    listed = [one for one in found if one.fell]
    if not listed:
        return []
    lines = ["<details><summary>The samples, and what broke them</summary>", ""]
    for one in listed:
        each = (f"{sample} ({', '.join(attacks)})" for sample, attacks in one.fell.items())
        lines.append(f"- {one.name}: {'; '.join(each)}")
    return [*lines, "", "</details>"]
