"""How often `rbvit gate` is wrong, and how many samples it takes on pairs of trainings of one recipe.

`python -m benchmarks.gate` computes what is missing (resumable) and writes docs/gate-evidence.md; names of entries
after it choose whose trainings are compared. The simulation goes through the code of the gate, chunks and waiting
samples included; an engine that finishes broken samples first stands in for the attacks.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from benchmarks.retraining import FOLDER as TRAINED
from benchmarks.retraining import retrained_board, training
from benchmarks.side_by_side import board, machine
from robustbench_vit.cards import BoardCard, Loaded, open_workspace
from robustbench_vit.comparing import Conclusion, Item
from robustbench_vit.comparing.judge import conclude
from robustbench_vit.records import Record
from robustbench_vit.running.board import RunOptions, run_board
from robustbench_vit.running.entries import chosen
from robustbench_vit.running.gate import GateOptions, gate_board
from robustbench_vit.running.not_worse import NotWorse
from robustbench_vit.running.sequential import follow
from robustbench_vit.statistics import Flips, flips, mcnemar, sample_order
from robustbench_vit.storage import write_atomic

ALPHA, WIDTH, RUNS, SAMPLES = 0.05, 256, 2000, 500
MAX_DROPS = (0.02, 0.05)
RATES = (0.05, 0.15)
"""Of samples that flip, in the simulation."""
ENTRIES = ("cnn-standard", "cnn-pgd-at")
SEEDS = (0, 1, 2, 3)
"""Of trainings."""
ORDERS = range(20)
"""Seeds of the order of the samples."""
FOLDER = TRAINED.parent / "gate"
REPORT = Path(__file__).resolve().parent.parent / "docs" / "gate-evidence.md"


@dataclass(frozen=True)
class Ended:
    """How one gate ended."""

    conclusion: Conclusion
    used: int
    evaluated: int
    sequential: bool


def gate(order: Sequence[str], before: dict[str, bool], after: dict[str, bool], max_drop: float, seed: int) -> Ended:
    """A gate by the program's own code, on verdicts that fall as the engine has them fall."""
    finished: list[str] = []
    generator = np.random.default_rng(seed)

    def evaluate(chunk: Sequence[str], finish: Callable[[str, bool], None]) -> None:
        # Four lanes, one after another; a sample leaves with the first that breaks it, a robust one with the last.
        lane = np.where([after[sample] for sample in chunk], 4, generator.integers(0, 4, len(chunk)))
        for position in np.lexsort((generator.random(len(chunk)), lane)):
            sample = str(chunk[int(position)])
            finished.append(sample)
            finish(sample, after[sample])

    rule = follow(NotWorse.at(before, max_drop, ALPHA), order, evaluate, {}, WIDTH)
    if rule.decision is not None:
        return Ended(Conclusion(rule.decision.value), rule.test.n, len(finished), True)
    seen = rule.test.flips
    return Ended(conclude(seen, mcnemar(seen), max_drop, ALPHA), seen.n, len(finished), False)


def simulated(rate: float, drop: float, max_drop: float, samples: int) -> list[Ended]:
    """Gates of models that flip on a share `rate` of all samples, the candidate being robust on `drop` fewer."""
    ids, ended = [f"sample {i}" for i in range(samples)], []
    for seed in range(RUNS):
        u, base = np.random.default_rng((seed, 1)).random((2, samples))
        lost, gained = u < (rate + drop) / 2, u > 1 - (rate - drop) / 2
        before, after = ((base < 0.5) | lost) & ~gained, ((base < 0.5) & ~lost) | gained
        order = [ids[position] for position in sample_order(ids, seed)]
        sides = [dict(zip(ids, side.tolist(), strict=True)) for side in (before, after)]
        ended.append(gate(order, sides[0], sides[1], max_drop, seed))
    return ended


def simulation() -> list[dict[str, float]]:
    """What simulated gates came to, a line per case; kept in a file."""
    path = FOLDER / "simulation.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    cases = [(m, rate, drop) for m in MAX_DROPS for rate in RATES for drop in (0.0, m)]
    lines = []
    for max_drop, rate, drop in cases:
        ended = simulated(rate, drop, max_drop, SAMPLES)
        count = Counter(each.conclusion for each in ended)
        lines.append(
            {
                "max drop": max_drop,
                "flips": rate,
                "drop": drop,
                **{conclusion.value: count[conclusion] / RUNS for conclusion in Conclusion},
                "wrong": count[Conclusion.NOT_WORSE if drop else Conclusion.WORSE] / RUNS,
                "early": float(np.mean([each.sequential for each in ended])),
                "samples": float(np.median([each.used for each in ended])),
            }
        )
        print(lines[-1], flush=True)
    write_atomic(path, json.dumps(lines, indent=1).encode())
    return lines


def simulated_line(line: dict[str, float]) -> str:
    """A row of the table of simulations."""
    shares = [f"{100 * value:.3g}" for name, value in line.items() if name != "samples"]
    return f"| {' | '.join(shares)} | {line['samples']:.0f} |"


def train(entries: Sequence[str]) -> None:
    """Trains what is missing, one at a time."""
    for entry in chosen(board(), entries):
        for seed in SEEDS:
            training(entry, seed)(lambda *_: None)


def seeded(seed: int) -> Loaded[BoardCard]:
    """The board with one seed's weights, and without the clean accuracy stated for the committed ones."""
    loaded = retrained_board(seed)
    entries = [entry.model_copy(update={"clean_accuracy": None}) for entry in loaded.card.entries]
    return replace(loaded, card=loaded.card.model_copy(update={"entries": entries}))


def evaluated(entries: Sequence[str]) -> dict[tuple[str, int], Record]:
    """The full records of every training."""
    found = {}
    for seed in SEEDS:
        options = RunOptions(entries=tuple(entries), out=FOLDER / f"seed-{seed}", workers=1)
        for name, record in run_board(seeded(seed), open_workspace(), options).records.items():
            found[name, seed] = record
    return found


@dataclass(frozen=True)
class Pair:
    """Two trainings of one recipe, gated in many orders of the samples."""

    entry: str
    seeds: tuple[int, int]
    max_drop: float
    flips: Flips
    by_compare: Conclusion  # on all samples
    item: Item  # by `rbvit gate` itself, in the first order
    ended: list[Ended]  # by its code, in every order


def paired(entry: str, seeds: tuple[int, int], records: dict[tuple[str, int], Record], max_drop: float) -> Pair:
    """One pair, gated by the program in one order and by its code in many."""
    card = board().card
    baseline, candidate = (records[entry, seed].at(card.attacks[-1], card.eps[0]) for seed in seeds)
    sides = [dict(zip(record.samples, record.robust.tolist(), strict=True)) for record in (baseline, candidate)]
    ended = []
    for seed in ORDERS:
        order = [baseline.samples[position] for position in sample_order(baseline.samples, seed)]
        ended.append(gate(order, sides[0], sides[1], max_drop, seed))
    path = FOLDER / f"seed-{seeds[0]}" / "records" / f"{entry}.json"
    asked = GateOptions(
        max_drop, ALPHA, (entry,), str(path), ORDERS[0], always=True, workers=1, out=FOLDER / f"seed-{seeds[1]}"
    )
    (item,) = gate_board(seeded(seeds[1]), open_workspace(), asked).items
    whole = flips(baseline.robust, candidate.robust)
    by_compare = conclude(whole, mcnemar(whole), max_drop, ALPHA)
    return Pair(entry, seeds, max_drop, whole, by_compare, item, ended)


def pair_line(pair: Pair) -> str:
    """A row of the table of pairs."""
    used, count = [each.used for each in pair.ended], Counter(each.conclusion for each in pair.ended)
    low, high = min(used), max(used)
    counts = ", ".join(f"{count[conclusion]} {conclusion}" for conclusion in Conclusion if count[conclusion])
    return (
        f"| {pair.entry} | {pair.seeds[0]} → {pair.seeds[1]} | {100 * pair.max_drop:g} | {100 * pair.flips.drop:.1f}"
        f" | {pair.flips.lost} + {pair.flips.gained} | {pair.by_compare} | {pair.item.conclusion}, {pair.item.used}"
        f" | {counts} | {np.median(used):.0f} ({low} to {high}) |"
    )


def summary(pairs: Sequence[Pair]) -> list[str]:
    """Medians per entry and largest drop, and how often gate and compare say the same."""
    lines = []
    for entry in dict.fromkeys(pair.entry for pair in pairs):
        for max_drop in MAX_DROPS:
            ended = [(p, e) for p in pairs if (p.entry, p.max_drop) == (entry, max_drop) for e in p.ended]
            used = np.median([each.used for _, each in ended])
            beyond = np.mean([each.evaluated - each.used for _, each in ended])
            same = np.mean([each.conclusion == pair.by_compare for pair, each in ended])
            opposite = sum({each.conclusion, pair.by_compare} == OPPOSITE for pair, each in ended)
            early = np.mean([each.sequential for _, each in ended])
            lines.append(
                f"| {entry} | {100 * max_drop:g} | {len(ended)} | {used:.0f} | {100 * early:.0f} | {beyond:.0f}"
                f" | {100 * same:.0f} | {opposite} |"
            )
    return lines


OPPOSITE = {Conclusion.WORSE, Conclusion.NOT_WORSE}

ERRORS = f"""Simulated verdicts on {SAMPLES} samples, through the code of the gate at alpha {ALPHA:g}: {RUNS:,}
gates a line. Broken samples finish first, as in the engine; the rule is asked after every sample, and what it
leaves undecided is judged on all samples. All but the last column are in percent, the first three of all samples:
the largest drop that is admitted, the samples whose verdict differs, and how much less robust the candidate is.
*wrong* are gates that say *worse* without a drop, or *not worse* at a drop of the largest admitted size; *early*
ended before the samples ran out."""

PAIRS = """Trainings of the board's entries, by their defense cards, with the seeds {seeds}; each is gated against
each other on the {n} samples of `{board}` with the board's own attack, `{attack}`, in {orders} orders of the
samples. *early*: percent decided before the samples ran out. *beyond*: finished samples, on average, that came
after the deciding one in its chunk. *same*: percent that conclude what `rbvit compare` does on all samples;
*opposite*: *worse* against *not worse*."""

EACH = """Each pair: the baseline's seed and the candidate's; *max drop* and *drop* in points; *flips* are samples
lost and gained of {n}. *compare* is what `rbvit compare` says on all samples, *gate* what `rbvit gate` itself said
in the order of seed {order}, and on how many samples; the last two columns are over all orders."""


def page(pairs: Sequence[Pair], lines: Sequence[dict[str, float]]) -> str:
    """The report."""
    worst = max(line["wrong"] for line in lines)
    about = {
        "seeds": f"{SEEDS[0]} to {SEEDS[-1]}",
        "n": pairs[0].flips.n,
        "board": board().name,
        "attack": board().card.attacks[-1],
        "orders": len(ORDERS),
        "order": ORDERS[0],
    }
    return "\n".join(
        [
            "# The gate, measured",
            "",
            "<!-- generated by `python -m benchmarks.gate`; do not edit -->",
            "",
            "What the gate decides and what it promises: [gate.md](gate.md).",
            "",
            "## Error rates",
            "",
            ERRORS,
            "",
            "| max drop | flips | drop | worse | undecided | not worse | wrong | early | samples, median |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *map(simulated_line, lines),
            "",
            f"Wrong in at most {100 * worst:.1f} % of the gates of a line; promised: {100 * ALPHA:g} %.",
            "",
            "## Trainings of one recipe",
            "",
            PAIRS.format(**about),
            "",
            "| entry | max drop | gates | samples, median | early | beyond | same | opposite |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *summary(pairs),
            "",
            EACH.format(**about),
            "",
            "| entry | seeds | max drop | drop | flips | compare | gate | in all orders | samples, median (range) |",
            "|---|---|---:|---:|---:|---|---|---|---:|",
            *map(pair_line, pairs),
            "",
            f"Made with `python -m benchmarks.gate` on: {machine()}.",
            "",
        ]
    )


def main() -> None:
    """Trains, evaluates, gates, writes the page; exits with 1 when an error rate is above what is promised."""
    entries = sys.argv[1:] or list(ENTRIES)
    train(entries)
    records = evaluated(entries)
    pairs = [
        paired(entry, seeds, records, max_drop)
        for entry in entries
        for max_drop in MAX_DROPS
        for seeds in permutations(SEEDS, 2)
    ]
    lines = simulation()
    text = page(pairs, lines)
    write_atomic(REPORT, text.encode())
    print(text)
    sys.exit(0 if max(line["wrong"] for line in lines) <= ALPHA else 1)


if __name__ == "__main__":
    main()
