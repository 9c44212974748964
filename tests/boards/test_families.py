"""One recipe trained several times: the spread between trainings, apart from the intervals of rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards import build_table, render

Make = Callable[..., Any]
TRAININGS = (
    (
        "{name: weak, model: digits_cnn, defense: standard,",
        "{name: weak, model: digits_cnn, defense: standard, family: plain, training_seed: 2000,",
    ),
    (
        "{name: absent, model: digits_cnn, defense: pgd-at,",
        "{name: absent, model: digits_cnn, defense: standard, family: plain, training_seed: 1,",
    ),
    ("columns: [entry,", "columns: [entry, family, training_seed,"),
)


@pytest.fixture
def family(make_board: Make, make_record: Make) -> tuple[Any, dict[str, Any]]:
    made = make_board(*TRAININGS)
    robust = {"weak": "1" * 5 + "0" * 15, "absent": "1" * 8 + "0" * 12, "strong": "1" * 20}
    return made, {name: make_record(made, name, robust=digits) for name, digits in robust.items()}


def test_a_family_has_a_mean_and_a_spread_between_trainings(family: Any) -> None:
    made, records = family
    (found,) = build_table(made.board, made.workspace, records).families
    assert (found.name, found.entries, found.training_seeds) == ("plain", ("absent", "weak"), (1, 2000))
    assert found.robust == pytest.approx(0.325)
    assert found.deviation == pytest.approx(statistics.stdev([0.25, 0.4]))
    assert (found.low, found.high, found.clean, found.missing) == (0.25, 0.4, 1.0, 0)


def test_markdown_shows_families_below_the_rows(family: Any) -> None:
    made, records = family
    blocks = render(build_table(made.board, made.workspace, records), "md").rstrip("\n").split("\n\n")
    assert len(blocks) == 4
    assert blocks[2] == (
        "Recipes trained several times, on the same 20 samples; percent under autoattack: mean, standard deviation "
        "(n − 1) and extremes between trainings, a spread that the intervals of single rows do not contain."
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in blocks[3].splitlines()]
    assert rows[0] == ["family", "trainings", "training seeds", "clean %", "autoattack %", "deviation", "min–max"]
    assert rows[2:] == [["plain", "2", "1, 2000", "100.0", "32.5", "10.61", "25.0–40.0"]]


def test_the_rows_name_their_family_and_seed(family: Any) -> None:
    made, records = family
    page = render(build_table(made.board, made.workspace, records), "md")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:7]]
    assert rows[0][:3] == ["entry", "family", "training seed"]
    assert [row[:3] for row in rows[2:]] == [["strong", "–", "–"], ["absent", "plain", "1"], ["weak", "plain", "2000"]]


def test_a_row_without_a_record_says_so_beside_its_seed(family: Any) -> None:
    made, records = family
    page = render(build_table(made.board, made.workspace, {"strong": records["strong"]}), "md")
    last = [cell.strip() for cell in page.splitlines()[-1].strip("|").split("|")]
    assert last[:5] == ["weak", "plain", "2000", "digits_cnn", "no record"]


def test_one_complete_training_is_no_spread(family: Any) -> None:
    made, records = family
    table = build_table(made.board, made.workspace, {name: records[name] for name in ("weak", "strong")})
    assert table.families == ()
    assert "Recipes" not in render(table, "md")
    assert json.loads(render(table, "json"))["families"] == []


def test_a_missing_training_is_counted(make_board: Make, make_record: Make) -> None:
    third = ("defense: pgd-at, weights: weights/strong", "defense: pgd-at, family: plain, training_seed: 3, weights: w")
    made = make_board(*TRAININGS, third)
    records = {name: make_record(made, name) for name in ("weak", "absent")}
    (found,) = build_table(made.board, made.workspace, records).families
    assert (found.entries, found.missing, found.deviation) == (("absent", "weak"), 1, 0.0)
    assert " 2 of 3 | 1, 2000 " in render(build_table(made.board, made.workspace, records), "md")


def test_a_smoke_profile_has_no_families(make_board: Make, make_record: Make) -> None:
    made = make_board(*TRAININGS)
    records = {name: make_record(made, name, protocol={"profile": "smoke"}) for name in ("weak", "absent")}
    assert build_table(made.board, made.workspace, records).families == ()


def test_json_and_latex_hold_families_too(family: Any) -> None:
    made, records = family
    table = build_table(made.board, made.workspace, records)
    (said,) = json.loads(render(table, "json"))["families"]
    assert said == {
        "family": "plain",
        "entries": ["absent", "weak"],
        "training_seeds": [1, 2000],
        "missing": 0,
        "clean": 1.0,
        "robust": 0.325,
        "deviation": 0.106066,
        "low": 0.25,
        "high": 0.4,
    }
    page = render(table, "tex")
    assert page.count(r"\begin{tabular}") == 2
    assert r"\label{tab:made-families}" in page
    assert r"plain & 2 & 1, 2000 & 100.0 & 32.5 & 10.61 & 25.0--40.0 \\" in page
    assert "standard deviation (n $-$ 1)" in page
