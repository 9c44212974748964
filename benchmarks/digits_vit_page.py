"""The page on the board digits-vit: which sentence follows from which numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.only_adaptive import section as adaptive_section
from benchmarks.paired_trainings import Difference, Effect, Verdicts, difference
from benchmarks.prose import paragraph
from robustbench_vit.boards.families import Family, families
from robustbench_vit.cards import BoardCard
from robustbench_vit.records import Record

FIGURE = "digits-vit.svg"
DEFENSES = ("standard", "pgd-at")
CLEAN, BEST = "clean", "best known"


@dataclass(frozen=True)
class Question:
    """A recipe beside the one that differs from it in what is asked about."""

    title: str
    about: str
    pairs: tuple[tuple[str, str], ...]  # (plain, other), without the defense
    closing: Mapping[Effect, str] | None = None  # a sentence on the first pair under adversarial training


REPORTED = "Shao et al. report for theirs ([arXiv:2103.15670](https://arxiv.org/abs/2103.15670), abstract; *reported*)"
SHAO = {
    Effect.COSTS: f"this agrees with what {REPORTED}: tokens-to-token blocks at the cost of robustness.",
    Effect.HELPS: f"this is the opposite of what {REPORTED}: tokens-to-token blocks at the cost of robustness.",
    Effect.LEANS_COST: f"this points the way of what {REPORTED}, tokens-to-token blocks at the cost of robustness,"
    " but does not show it.",
    Effect.LEANS_HELP: f"this points the other way than what {REPORTED}, tokens-to-token blocks at the cost of"
    " robustness, but does not show it.",
    Effect.OPEN: f"what {REPORTED}, tokens-to-token blocks at the cost of robustness, is neither shown nor refuted.",
    Effect.NOTHING_LEFT: f"nothing is said here about what {REPORTED}: that they cost robustness.",
}
QUESTIONS = (
    Question(
        "Token dropping",
        "EViT with 70 % and 50 % of the image tokens kept in each dropping block, against the same architecture with"
        " all tokens. The three have the same parameters, and those of one seed start at the same weights.",
        (("evit-1.0", "evit-0.7"), ("evit-1.0", "evit-0.5")),
    ),
    Question(
        "Tokens-to-token",
        "T2T-ViT against the two plain transformers: `evit-1.0` has a class token as it has; `vit` takes the mean of"
        " its tokens.",
        (("evit-1.0", "t2t"), ("vit", "t2t")),
        SHAO,
    ),
    Question(
        "Refined attention",
        "Refiner against the plain transformers. It has a stem of convolutions too, so the difference is not that of"
        " the attention alone.",
        (("evit-1.0", "refiner"), ("vit", "refiner")),
    ),
    Question(
        "IC layers",
        "Dropout after batch normalisation before the weight layers of a CNN, against the CNN without.",
        (("cnn", "ic-cnn"),),
    ),
)


@dataclass(frozen=True)
class Board:
    """The board's card and the records of its entries; what is asked of them is at the first eps."""

    card: BoardCard
    records: Mapping[str, Record]

    @property
    def attack(self) -> str:
        """The one that ranks."""
        return self.card.attacks[-1]

    @cached_property
    def held(self) -> dict[str, Record]:
        """The entries' complete records."""
        found = {entry.name: self.records.get(entry.name) for entry in self.card.entries}
        return {name: record for name, record in found.items() if record is not None and record.complete}

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdicts]]:
        """For clean images, each attack and the best known: the verdicts of each family by training seed."""
        found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
        for entry in self.card.entries:
            if entry.name in self.held and entry.family is not None and entry.training_seed is not None:
                for measure, verdicts in self._of(self.held[entry.name]):
                    found.setdefault(measure, {}).setdefault(entry.family, {})[entry.training_seed] = verdicts
        return {measure: dict(by_family) for measure, by_family in found.items()}

    def _of(self, record: Record) -> Iterator[tuple[str, np.ndarray]]:
        for attack in self.card.attacks:
            yield attack, record.at(attack, self.card.eps[0]).robust
        yield CLEAN, record.at(self.attack, self.card.eps[0]).correct
        yield BEST, record.best_known(self.attack, self.card.eps[0])

    @cached_property
    def adaptive(self) -> set[str]:
        """The families with adaptive attacks; of the others the best known is what the last attack left."""
        return {e.family for e in self.card.entries if e.family and e.name in self.held and self.held[e.name].evidence}

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The families, by what ranks."""
        narrowed = {name: record.at(self.attack, self.card.eps[0]) for name, record in self.held.items()}
        return families(self.card.entries, narrowed)

    def difference(self, plain: str, other: str, measure: str) -> Difference | None:
        """Of two families by one measure; None when too few of their trainings have records."""
        return difference(plain, other, self.verdicts.get(measure, {}), self.card.confidence)

    def mean(self, family: str, measure: str) -> float:
        """Over the family's trainings, in [0, 1]."""
        return float(np.mean([verdicts.mean() for verdicts in self.verdicts[measure][family].values()]))


def report(board: Board) -> str:
    """The page."""
    card, n = board.card, max((record.n for record in board.held.values()), default=0)
    lines = [
        "# Architectures on small digits",
        "",
        "<!-- generated by `python -m benchmarks.digits_vit`; do not edit -->",
        "",
        *paragraph(
            f"What the board `digits-vit` shows: {len(board.held)} of its {len(card.entries)} entries, each recipe",
            f"trained with several seeds, under {card.norm} perturbations of {card.eps[0]:g} on",
            f"{n} samples of {card.data.name}/{card.data.split}. These are models of about 100,000 parameters for 8×8",
            "images: the direction of an effect may carry over to larger ones, its size hardly will.",
        ),
        "",
        "## The recipes",
        "",
        *paragraph(
            f"Percent of the samples, means over the trainings. *Deviation*: standard deviation of {board.attack}",
            f"between trainings. *Best known*: robust under {board.attack} and under every adaptive attack; only the",
            "entries that drop tokens have some.",
        ),
        "",
        *_families(board),
        "",
        f"![Robust accuracy of every training]({FIGURE})",
        "",
        "## How differences are judged",
        "",
        *_how(board),
        "",
    ]
    for question in QUESTIONS:
        lines += [*_question(board, question), ""]
    return "\n".join([*lines, *adaptive_section(board.held, card), ""])


def _families(board: Board) -> list[str]:
    attacks = board.card.attacks
    names = ["recipe", "trainings", "clean", *attacks, "deviation", "best known"]
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    for family in board.families:
        shares = [family.clean, *(board.mean(family.name, attack) for attack in attacks)]
        cells = [f"{100 * share:.1f}" for share in shares]
        cells += [f"{100 * family.deviation:.2f}", f"{100 * board.mean(family.name, BEST):.1f}"]
        lines.append(f"| {family.name} | {len(family.entries)} | {' | '.join(cells)} |")
    return lines


def _how(board: Board) -> list[str]:
    share, alpha = f"{100 * board.card.confidence:g} %", f"{1 - board.card.confidence:.2g}"
    made = sum(d is not None for q in QUESTIONS for d in _differences(board, q, board.attack).values())
    return paragraph(
        "*Fewer* are points that the first recipe of a row loses against the second: the mean over pairs of",
        f"trainings with one seed, with Student's t interval over the pairs ({share}). It holds the luck of training",
        f"and is wide with few seeds. *Pair by pair* is the drop of each pair with Tango's {share} interval over the",
        "draw of the samples, *significant* the pairs whose flips chance doesn't explain (exact McNemar, Holm over",
        f"the pairs, α = {alpha}). A recipe **costs** or **helps** when the interval over trainings excludes 0; it",
        f"**leans** that way when only the pairs, all of them, do. Of {made} differences under {board.attack} one in",
        "twenty would exclude 0 by chance.",
    )


def _differences(board: Board, question: Question, measure: str) -> dict[tuple[str, str, str], Difference | None]:
    return {
        (defense, plain, other): board.difference(f"{plain}-{defense}", f"{other}-{defense}", measure)
        for defense in reversed(DEFENSES)
        for plain, other in question.pairs
    }


def _question(board: Board, question: Question) -> list[str]:
    found = [
        (each, measure)
        for measure in (CLEAN, board.attack, BEST)
        for each in _differences(board, question, measure).values()
        if each is not None and (measure != BEST or board.adaptive & {each.plain, each.other})
    ]
    said = [f"- {sentence(each, measure)}" for each, measure in found if measure != CLEAN]
    lines = [f"## {question.title}", "", *paragraph(question.about), ""]
    if not found:
        return [*lines, "Too few trainings have records."]
    first = next(iter(_differences(board, question, board.attack).values()))
    closing = ""
    if question.closing is not None and first is not None:
        closing = f"On `{first.other}` against `{first.plain}`: {question.closing[first.effect]}"
    return [
        *lines,
        *TABLE,
        *(_row(*each) for each in found),
        "",
        *said,
        *(["", *paragraph(closing)] if closing else []),
    ]


TABLE = [
    "| recipe | against | measure | % | against % | fewer | pair by pair | significant |",
    "|---|---|---|---:|---:|---:|---|---:|",
]


def _row(found: Difference, measure: str) -> str:
    pairs = zip(found.seeds, found.drops, found.intervals, strict=True)
    cells = (
        found.other,
        found.plain,
        measure,
        f"{100 * found.shares[1]:.1f}",
        f"{100 * found.shares[0]:.1f}",
        points(found.drop, *found.interval),
        "; ".join(f"seed {seed}: {points(drop, *interval)}" for seed, drop, interval in pairs),
        f"{found.significant} of {len(found.pairs)}",
    )
    return f"| {' | '.join(cells)} |"


def points(middle: float, low: float, high: float) -> str:
    """Shares as points with an interval, such as '1.2 [-0.3, 2.7]'."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(round(100 * value, 1) + 0.0 for value in (middle, low, high)))


def sentence(found: Difference, measure: str) -> str:
    """What is said of a difference in robustness."""
    size = f"{abs(100 * found.drop):.1f} points"
    low, high = (100 * bound for bound in found.interval)
    low, high = (low, high) if found.drop >= 0 else (-high, -low)
    size += f" [{low:.1f}, {high:.1f}]"
    every = f"in each of the {len(found.pairs)} pairs of trainings more than chance explains"
    says = {
        Effect.COSTS: f"**costs** {size}",
        Effect.HELPS: f"**helps** by {size}",
        Effect.LEANS_COST: f"**leans to cost**: {size} fewer, {every}, but trainings differ by as much",
        Effect.LEANS_HELP: f"**leans to help**: {size} more, {every}, but trainings differ by as much",
        Effect.OPEN: f"**no difference shown**: {size} {'fewer' if found.drop >= 0 else 'more'}",
        Effect.NOTHING_LEFT: "**nothing to compare**: next to no sample of either is robust",
    }
    return f"`{found.other}` against `{found.plain}` under {measure}: {says[found.effect]}."


def rows_of_figure(board: Board) -> list[tuple[str, list[float], list[float]]]:
    """For each family under adversarial training its trainings' percent under the ranking attack and best known."""
    names = [family.name for family in board.families if family.name.endswith(f"-{DEFENSES[1]}")]
    return [(name, _percents(board, name, board.attack), _percents(board, name, BEST)) for name in names]


def _percents(board: Board, family: str, measure: str) -> list[float]:
    return [100 * float(verdicts.mean()) for verdicts in board.verdicts[measure][family].values()]
