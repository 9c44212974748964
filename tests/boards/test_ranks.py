"""Ranks: 1 + the rows significantly above, by hand on a few samples."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from robustbench_vit.boards import build_table, render
from robustbench_vit.boards.columns import column_names
from robustbench_vit.records import Record, Status

Make = Callable[..., Any]
RANKED = ("columns: [entry,", "columns: [rank, entry,")
ALL = "1" * 20


def ranks(made: Any, records: Mapping[str, Record]) -> dict[str, int | None]:
    return {row.entry: row.rank for row in build_table(made.board, made.workspace, records).rows}


def lines(made: Any, records: Mapping[str, Record]) -> list[list[str]]:
    page = render(build_table(made.board, made.workspace, records), "md").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page if line.startswith("|")]


@pytest.fixture
def three(make_board: Make, make_record: Make) -> tuple[Any, dict[str, Record]]:
    """Of 20 samples 20, 10 and 9 robust: p = 2/2^10 and 2/2^11 below the first, 1 between the others."""
    made = make_board(RANKED)
    robust = {"strong": ALL, "weak": "1" * 10 + "0" * 10, "absent": "1" * 9 + "0" * 11}
    return made, {name: make_record(made, name, robust=digits) for name, digits in robust.items()}


def test_rows_that_a_test_cannot_tell_apart_share_a_rank(three: Any) -> None:
    made, records = three
    assert ranks(made, records) == {"strong": 1, "weak": 2, "absent": 2}
    assert [line[:2] for line in lines(made, records)][2:] == [["1", "strong"], ["2", "weak"], ["2", "absent"]]


def test_more_pairs_need_stronger_evidence(make_board: Make, make_record: Make) -> None:
    """Six lost and none gained is p = 2/2^6 = 0.031: enough for one pair, not for two of three (Holm: 3 × 0.031)."""
    made = make_board(RANKED)
    weak, strong = (make_record(made, n, robust=d) for n, d in (("weak", "0" * 6 + "1" * 14), ("strong", ALL)))
    again = make_record(made, "absent", robust=ALL)
    assert ranks(made, {"weak": weak, "strong": strong}) == {"strong": 1, "weak": 2, "absent": None}
    all_three = {"weak": weak, "strong": strong, "absent": again}
    assert ranks(made, all_three) == {"absent": 1, "strong": 1, "weak": 1}
    assert ranks(make_board(RANKED, ("alpha: 0.05", "alpha: 0.1")), all_three) == {"absent": 1, "strong": 1, "weak": 3}


def test_flips_in_both_directions_weaken_the_evidence(make_board: Make, make_record: Make) -> None:
    """8 lost and 2 gained: p = 2 (1 + 10 + 45) / 2^10 = 0.109, although the drop is that of 6 lost and none gained."""
    made = make_board(RANKED)
    strong = make_record(made, "strong", robust="00" + "1" * 18)
    weak = make_record(made, "weak", robust="11" + "0" * 8 + "1" * 10)
    assert ranks(made, {"strong": strong, "weak": weak})["weak"] == 1


def test_the_last_attack_at_the_first_eps_ranks(make_board: Make, make_record: Make) -> None:
    made = make_board(RANKED, eps="[0.1, 0.2]")
    strong, weak = (make_record(made, name, robust=ALL) for name in ("strong", "weak"))

    def broken(attack: str, eps: float) -> Record:
        kept = [
            dataclasses.replace(o, status=Status.BROKEN, by="apgd-ce") if (o.attack, o.eps) == (attack, eps) else o
            for o in weak.outcomes
        ]
        return dataclasses.replace(weak, outcomes=tuple(kept))

    assert ranks(made, {"strong": strong, "weak": broken("autoattack", 0.1)})["weak"] == 2
    for attack, eps in [("autoattack", 0.2), ("pgd-40", 0.1)]:
        assert ranks(made, {"strong": strong, "weak": broken(attack, eps)})["weak"] == 1
    caption = render(build_table(made.board, made.workspace, {"strong": strong}), "md").splitlines()[0]
    assert "ordered by autoattack at eps 0.1, rank: 1 + rows significantly above" in caption


def test_samples_are_matched_by_their_ids(three: Any) -> None:
    made, records = three
    turned = dataclasses.replace(records["weak"], outcomes=tuple(reversed(records["weak"].outcomes)))
    assert ranks(made, {**records, "weak": turned}) == ranks(made, records)


def test_rows_on_other_samples_have_no_rank(three: Any) -> None:
    made, records = three
    other = [
        dataclasses.replace(o, sample="digits:99") if o.sample == "digits:0" else o for o in records["weak"].outcomes
    ]
    changed = {**records, "weak": dataclasses.replace(records["weak"], outcomes=tuple(other))}
    assert set(ranks(made, changed).values()) == {None}
    assert [line[0] for line in lines(made, changed)[2:]] == ["–"] * 3


def test_a_smoke_profile_ranks_nothing(make_board: Make, make_record: Make) -> None:
    made = make_board(RANKED)
    records = {
        name: make_record(made, name, robust=digits, protocol={"profile": "smoke"})
        for name, digits in (("strong", ALL), ("weak", "0" * 20))
    }
    assert set(ranks(made, records).values()) == {None}
    assert "rank:" not in render(build_table(made.board, made.workspace, records), "md")


def test_an_unfinished_record_is_left_out_of_the_tests(three: Any) -> None:
    made, records = three
    first, *rest = records["strong"].outcomes
    cut = dataclasses.replace(records["strong"], outcomes=(dataclasses.replace(first, status=Status.NOT_RUN), *rest))
    assert ranks(made, {**records, "strong": cut}) == {"weak": 1, "absent": 1, "strong": None}


def test_the_note_of_a_row_without_a_record_does_not_stand_under_rank(three: Any) -> None:
    made, records = three
    last = lines(made, {"strong": records["strong"]})[-1]
    assert last[:4] == ["–", "weak", "digits_cnn", "no record"]


def test_the_caption_says_what_ranks_mean(three: Any, make_board: Make) -> None:
    made, records = three
    said = "ordered by autoattack, rank: 1 + rows significantly above (exact McNemar, Holm, α = 0.05); protocol `"
    assert said in render(build_table(made.board, made.workspace, records), "md")
    plain = make_board()
    page = render(build_table(plain.board, plain.workspace, records), "md")
    assert "; ranked by autoattack; protocol `" in page
    assert "McNemar" not in page


@pytest.mark.parametrize(("n", "hopeless"), [(5, True), (6, False)])
def test_too_few_samples_to_rank_anything_are_said_to_be(
    make_board: Make, make_record: Make, n: int, hopeless: bool
) -> None:
    """One pair: the smallest p is 2/2^n, which is 0.063 for five samples and 0.031 for six."""
    made = make_board(RANKED)
    records = {"strong": make_record(made, "strong", robust="1" * n), "weak": make_record(made, "weak", robust="0" * n)}
    page = render(build_table(made.board, made.workspace, records), "md")
    assert ("; too few samples for any row to be significantly above another; protocol" in page) == hopeless
    assert ranks(made, records)["weak"] == (1 if hopeless else 2)


def test_every_form_has_the_ranks(three: Any) -> None:
    made, records = three
    table = build_table(made.board, made.workspace, records)
    expected = {"strong": 1, "weak": 2, "absent": 2}
    assert {r["entry"]: int(r["rank"]) for r in csv.DictReader(io.StringIO(render(table, "csv")))} == expected
    content = json.loads(render(table, "json"))
    assert {row["entry"]: row["rank"] for row in content["rows"]} == expected
    assert (content["alpha"], content["interval"]) == (0.05, "wilson")


def test_json_has_ranks_that_are_not_a_column(made: Any, make_record: Make) -> None:
    table = build_table(made.board, made.workspace, {"weak": make_record(made, "weak")})
    rows = {row["entry"]: row["rank"] for row in json.loads(render(table, "json"))["rows"]}
    assert rows == {"weak": 1, "strong": None, "absent": None}


def test_rank_is_a_column_that_may_be_named() -> None:
    assert column_names(["pgd-40"])[0] == "rank"
