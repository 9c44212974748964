"""What a table says of single rows: attacks that deviate, other policies, evidence of masked gradients."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards import build_table, render
from robustbench_vit.records import Evidence, Judgement, Reason, Record, Reliability

Make = Callable[..., Any]
MASKED = Reliability(
    Evidence.STRONG,
    (Reason("large-eps", Evidence.STRONG, "9 of 10 samples survive any change", "use lanes without gradients"),),
    {"forwards": 10, "backwards": 5},
    0.1,
)


def text(made: Any, record: Record, form: str = "md") -> str:
    return render(build_table(made.board, made.workspace, {record.entry["name"]: record}), form)


@pytest.fixture
def masked(made: Any, make_record: Make) -> Record:
    record = make_record(made, "weak")
    judged = (Judgement("autoattack", made.board.card.eps[0], MASKED),)
    return dataclasses.replace(record, judgements=judged)


def test_a_table_says_which_entries_mask_their_gradients(made: Any, masked: Record) -> None:
    lines = text(made, masked).splitlines()
    assert "- weak: strong evidence of masked gradients: 9 of 10 samples survive any change" in lines


def test_a_table_without_such_entries_has_no_notes(made: Any, make_record: Make) -> None:
    assert not [line for line in text(made, make_record(made, "weak")).splitlines() if line.startswith("- ")]


def test_the_reliability_column_names_the_checks(make_board: Make, make_record: Make, masked: Record) -> None:
    made = make_board(("seconds]", "seconds, reliability, policy]"))
    assert "| strong: large-eps |" in text(made, masked)
    assert "| not assessed" in text(made, make_record(made, "weak"))


def test_json_holds_the_whole_verdict_and_no_time(made: Any, masked: Record) -> None:
    row = next(row for row in json.loads(text(made, masked, "json"))["rows"] if row["entry"] == "weak")
    assert row["verdict"] == [{"eps": 0.2, **MASKED.to_dict(timed=False)}]
    assert "seconds" not in row["verdict"][0]


def test_an_entry_under_another_policy_says_so_and_has_no_survivors_of_lanes_it_never_ran(
    made: Any, make_record: Make
) -> None:
    record = make_record(made, "weak")
    other = dataclasses.replace(
        record,
        policy="C",
        outcomes=tuple(dataclasses.replace(o, by=o.by and "square") for o in record.outcomes),
    )
    table = build_table(made.board, made.workspace, {"weak": other})
    row = next(row for row in table.rows if row.entry == "weak")
    cells = dict(zip([column.key for column in table.columns], row.cells, strict=True))
    assert cells["autoattack:survivors:apgd-ce"] is None
    assert cells["autoattack:survivors:square"] is not None
    assert "- weak: policy C, it has no useful gradient" in render(table, "md")


def test_a_cascade_that_deviates_is_called_custom(make_board: Make, make_record: Make) -> None:
    (made := make_board()).folder.joinpath("attacks").mkdir()
    card = "version: 1\nabout: x\nreference: x\nlanes: [apgd-ce, apgd-t, fab-t, pgd-20]\n"
    (made.folder / "attacks" / "autoattack-fast.yaml").write_text(card)
    made = make_board(
        ("attacks: [pgd-40, autoattack]", "attacks: [pgd-40, autoattack-fast]"),
        ("'autoattack:interval'", "'autoattack-fast:interval'"),
        ("'autoattack:survivors'", "'autoattack-fast:survivors'"),
        ("'autoattack:forwards'", "'autoattack-fast:forwards'"),
    )
    page = text(made, make_record(made, "weak"))
    assert "| custom (autoattack-fast) % [95 %] |" in page
    assert "custom:autoattack-fast:estimate" in text(made, make_record(made, "weak"), "csv")
    assert '- `autoattack-fast` here is custom: lanes.3.algorithm: "square" in autoattack, "pgd" here; ' in page
