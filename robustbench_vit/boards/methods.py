"""What a paper says of how a board's numbers came about: sentences to paste, made from the card and the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from robustbench_vit.boards.columns import Kind
from robustbench_vit.boards.folder import board_folder, load_records
from robustbench_vit.boards.formats.text import INTERVAL_NAMES, listed
from robustbench_vit.boards.references import DATA, INTERVALS, RANKS, Work, attack_works, works
from robustbench_vit.boards.table import Table
from robustbench_vit.cards import BoardCard, Loaded, Policy, Workspace
from robustbench_vit.cards.numbers import show_number
from robustbench_vit.errors import InputError
from robustbench_vit.records import Evidence, Record

METHODS_START = "We evaluate "
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SIZES = {
    ("digits", "test"): 500,
    ("mnist", "test"): 10_000,
    ("fashion_mnist", "test"): 10_000,
    ("cifar10", "test"): 10_000,
    ("cifar100", "test"): 10_000,
}
"""How many samples a split has, where a sentence may say 'all'."""
_NAMES = {
    "autoattack": "AutoAttack (standard)",
    "autoattack-plus": "AutoAttack (plus)",
    "autoattack-rand": "AutoAttack (rand)",
}
_DATA_NAMES = {
    "digits": "scikit-learn's handwritten digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}
_PRECISIONS = {"fp32": "IEEE float32", "tf32": "TF32", "bf16": "mixed bfloat16"}


def methods_text(
    board: Loaded[BoardCard], workspace: Workspace, table: Table, records: Mapping[str, Record] | None = None
) -> str:
    """A paragraph for a paper, ending in a newline: models, attacks, budget, samples, precision, statistics.

    `records` are those the table was made from (by entry; default: the board's own). Raises InputError when nothing is
    measured, for a smoke profile, and for records that stopped early.
    """
    if table.profile == "smoke":
        raise InputError(f"{board.shown}: these records are of a smoke profile, whose numbers mean nothing")
    if table.profile != "full":
        raise InputError(f"{board.shown}: these records stopped early, each at another n; evaluate the board in full")
    held = load_records(board_folder(board) / "records") if records is None else records
    measured = {row.entry: held[row.entry] for row in table.rows if row.note is None and row.entry in held}
    if not measured:
        todo = "run the board first" if board.card.entries else "its card has no entries"
        raise InputError(f"{board.shown}: nothing is measured yet, so there is no method to state; {todo}")
    sentences = [
        _evaluated(board, workspace, table, measured),
        *_by_policy(measured, board.card),
        *_adaptive(board, workspace, table),
        _intervals(table),
        *_families(table),
        *_masked(measured),
    ]
    return " ".join(sentences) + "\n"


def policies_of(records: Iterable[Record]) -> list[Policy]:
    """The policies under which these records ran, A first."""
    found: set[str] = {record.policy for record in records}
    order: tuple[Policy, ...] = ("A", "B", "C")
    return [policy for policy in order if policy in found]


def _evaluated(board: Loaded[BoardCard], workspace: Workspace, table: Table, measured: Mapping[str, Record]) -> str:
    """The first sentence: what was evaluated, with what, on what, how."""
    card = board.card
    attacks = listed([_attack(name, board, workspace, table) for name in card.attacks])
    eps = f"eps = {listed([show_number(value) for value in card.eps])}"
    return (
        f"{METHODS_START}{_counted(len(measured), 'model')} with {attacks} in {card.norm} at {eps} on"
        f" {_samples(table)}, {_precision(table)}, {_seeds(measured.values())}, with {_software(measured.values())}."
    )


def _counted(count: int, what: str) -> str:
    return f"{_WORDS[count] if count < len(_WORDS) else count} {what}{'' if count == 1 else 's'}"


def _attack(name: str, board: Loaded[BoardCard], workspace: Workspace, table: Table) -> str:
    """The attack's name with its works; one that isn't what its name claims says in what it differs."""
    cited = _cited(attack_works(workspace.attack(name, board.shown).card.reference, board.card.norm))
    if name in table.custom:
        differs = "; ".join(table.custom[name])
        return f"a custom attack called {name} ({differs}{f'; after {cited}' if cited else ''})"
    shown, _, version = _NAMES.get(name, name).partition(" (")
    inside = "; ".join(part for part in (version.rstrip(")"), cited) if part)
    return f"{shown} ({inside})" if inside else shown


def _cited(found: Iterable[Work]) -> str:
    return "; ".join(work.cited for work in found)


def _samples(table: Table) -> str:
    """Which samples, and how many of how many."""
    choice, n = table.card.data, table.samples or 0
    size = _SIZES.get((choice.name, choice.split))
    name = _DATA_NAMES.get(choice.name, choice.name)
    cited = _cited(works()[key] for key in DATA.get(choice.name, ()))
    about = f"{name} ({cited})" if cited else name
    if size == n:
        return f"all n = {n:,} {choice.split} images of {about}"
    if size is not None:
        return f"the first n = {n:,} of {size:,} {choice.split} images of {about}"
    return f"n = {n:,} {choice.split} images of {about}" if cited else f"n = {n:,} images of {about}/{choice.split}"


def _precision(table: Table) -> str:
    """In which precision images were searched, and that the ones found were rechecked."""
    shown = [_PRECISIONS.get(precision, precision) for precision in table.protocol_ids]
    if shown == [_PRECISIONS["fp32"]]:
        return f"searched in {shown[0]} and every adversarial image rechecked"
    several = " (as the table says)" if len(shown) > 1 else ""
    return f"searched in {' or '.join(shown)}{several} and every adversarial image rechecked in {_PRECISIONS['fp32']}"


def _seeds(records: Iterable[Record]) -> str:
    found = sorted({int(record.provenance["seed"]) for record in records if "seed" in record.provenance})
    if not found:
        return "with a fixed seed"
    return f"seed{'s' if len(found) > 1 else ''} {listed([str(seed) for seed in found])}"


def _software(records: Iterable[Record]) -> str:
    """The version that made the records, and their protocols."""
    records = list(records)
    packages = [record.provenance.get("packages", {}).get("robustbench_vit") for record in records]
    versions = sorted({version for version in packages if version})
    protocols = list(dict.fromkeys(record.protocol_id for record in records))
    shown = f"robustbench_vit {listed(versions)}" if versions else "robustbench_vit"
    return f"{shown} (protocol{'s' if len(protocols) > 1 else ''} {listed(protocols)})"


def _by_policy(measured: Mapping[str, Record], card: BoardCard) -> list[str]:
    """What differs for models that answer at random or have no useful gradient."""
    sentences = []
    for policy in [policy for policy in policies_of(measured.values()) if policy != "A"]:
        names = [name for name, record in measured.items() if record.policy == policy]
        stand_ins = list(dict.fromkeys(measured[names[0]].ran_as(attack) for attack in card.attacks))
        attack = listed([_NAMES.get(name, name) for name in stand_ins if name not in card.attacks] or stand_ins)
        run = "was" if len(names) == 1 else "were"
        sentences.append(f"{listed(names)} {run} attacked by {attack}, {_REASONS[policy]}.")
    return sentences


_REASONS = {
    "B": (
        "for answering at random: gradients are averaged over draws where the attack says so, and a sample counts as"
        " broken when one draw is wrong"
    ),
    "C": "for want of a useful gradient: scores and decisions only, so that the robust accuracy says little",
}


def _adaptive(board: Loaded[BoardCard], workspace: Workspace, table: Table) -> list[str]:
    """Which models were attacked adaptively, with what, and what that says."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in table.rows:
        if named := tuple(attack for attack in row.adaptive if attack in board.card.adaptive):
            groups.setdefault(named, []).append(row.entry)
    sentences = [
        f"{listed(entries)} {'was' if len(entries) == 1 else 'were'} also attacked adaptively, with"
        f" {listed([_attack(name, board, workspace, table) for name in attacks])}."
        for attacks, entries in groups.items()
    ]
    means = f"Best known accuracies count a sample as robust only if these failed too; {board.card.attacks[-1]} alone"
    return [*sentences, f"{means} decides ranks."] if sentences else []


def _intervals(table: Table) -> str:
    """Intervals and ranks."""
    card = table.card
    cited = works()[INTERVALS[card.interval]].cited
    given = f", given with {100 * card.confidence:g} % {INTERVAL_NAMES[card.interval]} intervals ({cited})"
    shown = any(column.kind is Kind.INTERVAL for column in table.columns)
    said = f"Accuracies are shares of all samples{f'{given} over the draw of the test images' if shown else ''}"
    ranked = sum(row.rank is not None for row in table.rows)
    if ranked < 2:
        return f"{said}."
    pairs = ranked * (ranked - 1) // 2
    mcnemar, holm = (works()[key].cited for key in RANKS)
    tests = f"exact McNemar tests ({mcnemar}), with Holm's correction ({holm}) over {_counted(pairs, 'pair')}"
    at = f" at eps = {show_number(card.eps[0])}" if len(card.eps) > 1 else ""
    under = f"under {card.attacks[-1]}{at}"
    better = f"one plus the number of rows that are significantly better {under}"
    return f"{said}; rank is {better} by {tests}, α = {card.alpha:g}."


def _families(table: Table) -> list[str]:
    return [
        f"{family.name} was trained {_counted(len(family.entries), 'time')} with different seeds; between trainings,"
        f" robust accuracies have a mean of {100 * family.robust:.1f} % and a standard deviation of"
        f" {100 * family.deviation:.1f} points."
        for family in table.families
    ]


def _masked(measured: Mapping[str, Record]) -> list[str]:
    """A warning about every model whose gradients are probably masked."""
    named = [
        name
        for name, record in measured.items()
        if any(j.reliability.evidence is Evidence.STRONG for j in record.judgements)
    ]
    if not named:
        return []
    return [f"For {listed(named)} there is strong evidence of masked gradients: robust accuracy is probably too high."]
