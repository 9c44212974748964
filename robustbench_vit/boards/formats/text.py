"""What every form of a table says in words: its caption, its titles, its cells, its notes.

Code stands between backticks, which Markdown understands and the other forms replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vit.boards.columns import BEST_KNOWN, ONLY_ADAPTIVE, RANK, Column, Estimate, Kind, Value
from robustbench_vit.boards.families import Family
from robustbench_vit.boards.table import Row, Table
from robustbench_vit.cards import BoardCard
from robustbench_vit.cards.numbers import show_number

MISSING = "–"
"""A cell without a value."""

_POLICIES = {
    "B": "it answers at random: gradients are averaged over draws, and one wrong draw breaks a sample",
    "C": "it has no useful gradient: attacked by scores and decisions only, so the number says little",
}
INTERVAL_NAMES = {"wilson": "Wilson", "clopper-pearson": "Clopper–Pearson"}


@dataclass(frozen=True)
class Grid:
    """The texts of a table; `right` says which columns stand to the right."""

    header: list[str]
    rows: list[list[str]]
    right: list[bool]


def caption(table: Table) -> str:
    """What all rows of the table share, in a sentence or two."""
    card = table.card
    eps = ", ".join(show_number(value) for value in card.eps)
    about = f"{card.data.name}/{card.data.split}, {card.norm}, eps {eps}"
    if table.samples is None:
        return f"No records yet; {about}."
    if table.profile == "smoke":
        return f"Smoke profile: {table.samples} samples and shortened attacks; these numbers mean nothing."
    shares = "percent of all samples"
    if any(column.kind is Kind.INTERVAL for column in table.columns):
        shares += f", [{_intervals(table)}]"
    n = table.samples if table.half_width is None else f"n of {table.samples}"
    clauses = [f"{n} samples of {about}", *_stopped(table), shares, *_counts(table), _order(table), _protocols(table)]
    return f"{'; '.join(clauses)}."


def _stopped(table: Table) -> list[str]:
    """Why rows have fewer samples, where they stopped early."""
    if table.half_width is None:
        return []
    return [f"each row stopped when {ranking(table.card)} was known within ± {100 * table.half_width:g} points"]


def _intervals(table: Table) -> str:
    """Of which kind intervals are; those of rows that stopped early hold at all n at once."""
    share = f"{100 * table.card.confidence:g} %"
    fixed = f"{INTERVAL_NAMES[table.card.interval]} {share} intervals"
    return fixed if table.half_width is None else f"{share} confidence sequences"


def _counts(table: Table) -> list[str]:
    """What is counted, in the columns that count."""
    said = []
    if any(":survivors:" in column.key for column in table.columns):
        said.append("'after' counts the samples a lane left robust")
    if any(column.kind is Kind.MEAN for column in table.columns):
        said.append("passes are means per sample")
    return [", ".join(said)] if said else []


def _order(table: Table) -> str:
    """What orders the rows, and what their ranks mean where they are shown."""
    by = ranking(table.card)
    if all(column.key != RANK for column in table.columns):
        return f"ranked by {by}"
    said = f"ordered by {by}, rank: 1 + rows significantly above ({significance(table.card)})"
    return f"{said}; too few samples for any row to be significantly above another" if _hopeless(table) else said


def _hopeless(table: Table) -> bool:
    """Whether even a row that keeps every sample could not be told from one that keeps none."""
    rows = sum(row.rank is not None for row in table.rows)
    pairs = rows * (rows - 1) // 2
    return pairs > 0 and pairs * 0.5 ** ((table.samples or 0) - 1) >= table.card.alpha


def significance(card: BoardCard) -> str:
    """How it is decided whether one row is above another."""
    return f"exact McNemar, Holm, α = {card.alpha:g}"


def ranking(card: BoardCard) -> str:
    """What rows are ranked by: the last attack, at the first eps where there are several."""
    attack = card.attacks[-1]
    return f"{attack} at eps {show_number(card.eps[0])}" if len(card.eps) > 1 else attack


def _protocols(table: Table) -> str:
    """The protocol's id; where rows differ in their precision, an id for each."""
    if len(table.protocol_ids) == 1:
        return f"protocol `{next(iter(table.protocol_ids.values()))}`"
    return f"protocols {', '.join(f'`{name}` ({precision})' for precision, name in table.protocol_ids.items())}"


def notes(table: Table) -> list[str]:
    """What a reader must know of single rows: attacks that deviate, other policies, evidence of masked gradients."""
    lines = [f"`{attack}` here is custom: {'; '.join(fields)}." for attack, fields in table.custom.items()]
    for row in table.rows:
        if row.policy in _POLICIES:
            lines.append(f"{row.entry}: policy {row.policy}, {_POLICIES[row.policy]}.")
        for eps, found in row.reliability.items():
            if found.against:
                said = "; ".join(reason.message for reason in found.against)
                at = f" at eps {show_number(eps)}" if len(row.reliability) > 1 else ""
                lines.append(f"{row.entry}: {found.evidence} evidence of masked gradients{at}: {said}")
    return lines + _adaptive_notes(table)


def _adaptive_notes(table: Table) -> list[str]:
    """What best known means, and on which rows adaptive attacks ran."""
    shown = any(column.key.startswith((BEST_KNOWN, ONLY_ADAPTIVE)) for column in table.columns)
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in table.rows:
        if row.adaptive:
            groups.setdefault(row.adaptive, []).append(row.entry)
    said = [
        f"adaptive attacks on {listed(entries)}: {listed([f'`{attack}`' for attack in attacks])}."
        for attacks, entries in groups.items()
    ]
    if shown:
        said.insert(0, _best_known_means(table))
    return said + [
        f"{row.entry}: {listed([f'`{attack}`' for attack in row.missing])} on its card never ran, so best known may be"
        " too high; run the board again."
        for row in table.rows
        if row.missing
    ]


def _best_known_means(table: Table) -> str:
    floor = table.card.attacks[-1]
    only = any(column.key.startswith(ONLY_ADAPTIVE) for column in table.columns)
    counted = " Only adaptive: samples that no attack of the board broke, and an adaptive one did." if only else ""
    return (
        f"best known: what {floor} and the adaptive attacks on a row leave together, so {floor}'s own number where"
        f" there are none; {floor} alone ranks.{counted}"
    )


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def grid(table: Table) -> Grid:
    """The titles and cells of the main table."""
    return Grid(
        [_title(column, table) for column in table.columns],
        [_cells(row, table.columns) for row in table.rows],
        [column.kind is not Kind.TEXT for column in table.columns],
    )


def _title(column: Column, table: Table) -> str:
    """A column's title; an attack that is not what its name claims is called custom."""
    name = table.custom_name(column.title)
    return column.title if name is None else f"custom ({name}){column.title.removeprefix(name)}"


def _cells(row: Row, columns: Sequence[Column]) -> list[str]:
    """A row's cells; the note of a row without a record stands in its first empty number."""
    texts = [cell_text(value, column.kind) for value, column in zip(row.cells, columns, strict=True)]
    empty = [i for i, c in enumerate(columns) if c.kind is not Kind.TEXT and row.cells[i] is None]
    if row.note and empty:
        texts[next((i for i in empty if columns[i].key != RANK), empty[0])] = row.note
    return texts


def cell_text(value: Value, kind: Kind) -> str:
    """A value as it is read: shares in percent, thousands separated."""
    if value is None:
        return MISSING
    if isinstance(value, Estimate):
        return f"{_percent(value.value)} [{_percent(value.low)}, {_percent(value.high)}]"
    if isinstance(value, str):
        return value
    if kind is Kind.SHARE:
        return _percent(value)
    if kind is Kind.LABEL:
        return str(value)
    if kind is Kind.COUNT:
        return f"{value:,}"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def families_caption(table: Table) -> str:
    """What the table of families shows."""
    return (
        f"Recipes trained several times, on the same {table.samples} samples; percent under {ranking(table.card)}: "
        "mean, standard deviation (n − 1) and extremes between trainings, a spread that the intervals of single rows "
        "do not contain."
    )


def families_grid(table: Table) -> Grid:
    """The titles and cells of the table of families."""
    attack = table.card.attacks[-1]
    name = f"custom ({attack})" if attack in table.custom else attack
    header = ["family", "trainings", "training seeds", "clean %", f"{name} %", "deviation", "min–max"]
    rows = [_family_cells(family) for family in table.families]
    best = [[] if family.best_known is None else [_percent(family.best_known)] for family in table.families]
    if any(best):
        header.append("best known %")
    return Grid(header, [row + more for row, more in zip(rows, best, strict=True)], _FAMILY_SIDES[: len(header)])


_FAMILY_SIDES = [False, True, False, True, True, True, True, True]


def _family_cells(family: Family) -> list[str]:
    ran = len(family.entries)
    return [
        family.name,
        f"{ran} of {ran + family.missing}" if family.missing else str(ran),
        ", ".join(str(seed) for seed in family.training_seeds),
        _percent(family.clean),
        _percent(family.robust),
        f"{100 * family.deviation:.2f}",
        f"{_percent(family.low)}–{_percent(family.high)}",
    ]
