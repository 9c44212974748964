"""How tables are written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards import FORMATS, build_table, render
from robustbench_vit.statistics import wilson

Make = Callable[..., Any]


@pytest.fixture
def table(made: Any, make_record: Make) -> Any:
    records = {
        "weak": make_record(made, "weak"),
        "strong": make_record(made, "strong", wrong=1, broken=(1, 1, 0, 0)),
    }
    return build_table(made.board, made.workspace, records)


def test_markdown(table: Any) -> None:
    text = render(table, "md")
    lines = text.splitlines()
    assert lines[0] == (
        "10 samples of digits/test, linf, eps 0.2; percent of all samples, [Wilson 95 % intervals]; "
        "'after' counts the samples a lane left robust, passes are means per sample; "
        f"ranked by autoattack; protocol `{table.protocol_ids['fp32']}`."
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][:5] == ["entry", "model", "clean %", "pgd-40 %", "autoattack % [95 %]"]
    assert cells[0][5:] == ["after apgd-ce", "after apgd-t", "after fab-t", "after square", "forwards", "seconds"]
    assert cells[2] == ["strong", "digits_vit", "90.0", "80.0", "70.0 [39.7, 89.2]", "8", "7", "7", "7", "450", "252"]
    assert cells[4] == ["absent", "digits_cnn", "no record", *["–"] * 8]
    assert len({len(line) for line in lines[2:]}) == 1
    assert text.endswith("|\n")


def test_csv_has_numbers_and_the_interval_in_three_columns(table: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    low, high = wilson(6, 10)
    weak = next(row for row in rows if row["entry"] == "weak")
    assert float(weak["autoattack:estimate"]) == 0.6
    assert float(weak["autoattack:low"]) == pytest.approx(low, abs=1e-6)
    assert float(weak["autoattack:high"]) == pytest.approx(high, abs=1e-6)
    assert (weak["clean"], weak["autoattack:survivors:square"]) == ("0.9", "6")
    absent = next(row for row in rows if row["entry"] == "absent")
    assert (absent["clean"], absent["autoattack:low"], absent["model"]) == ("", "", "digits_cnn")


def test_json_has_numbers_as_numbers(table: Any) -> None:
    content = json.loads(render(table, "json"))
    assert (content["board"], content["samples"], content["eps"]) == ("made", 10, [0.2])
    weak = next(row for row in content["rows"] if row["entry"] == "weak")
    assert weak["note"] is None
    assert weak["autoattack:interval"]["estimate"] == 0.6
    assert (weak["pgd-40"], weak["autoattack:survivors:apgd-ce"], weak["seconds"]) == (0.7, 7, 251.75)
    absent = next(row for row in content["rows"] if row["entry"] == "absent")
    assert (absent["note"], absent["pgd-40"], absent["autoattack:interval"]) == ("no record", None, None)


def test_a_board_without_records_says_so(made: Any) -> None:
    text = render(build_table(made.board, made.workspace, {}), "md")
    assert text.startswith("No records yet; digits/test, linf, eps 0.2.\n")


def test_a_smoke_table_promises_nothing(made: Any, make_record: Make) -> None:
    record = make_record(made, "weak", protocol={"profile": "smoke"})
    text = render(build_table(made.board, made.workspace, {"weak": record}), "md")
    assert text.startswith("Smoke profile: 10 samples and shortened attacks; these numbers mean nothing.\n")
    assert "robust accuracy" not in text


@pytest.mark.parametrize("form", FORMATS)
def test_equal_tables_give_equal_text(table: Any, form: str) -> None:
    assert render(table, form) == render(table, form)
    assert render(table, form).endswith("\n")
    assert not render(table, form).endswith("\n\n")


def test_every_format_shows_the_precision_of_each_row(make_board: Make, make_record: Make) -> None:
    made = make_board(("precision: fp32", "precision: [fp32, bf16]"))
    strong = make_record(made, "strong", protocol={"precision": "bf16"})
    table = build_table(made.board, made.workspace, {"weak": make_record(made, "weak"), "strong": strong})
    ids = table.protocol_ids
    lines = render(table, "md").splitlines()
    assert lines[0].endswith(f"protocols `{ids['fp32']}` (fp32), `{ids['bf16']}` (bf16).")
    shown = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[4:7]]
    assert sorted(shown) == [["absent", "–"], ["strong", "bf16"], ["weak", "fp32"]]
    rows = {row["entry"]: row["precision"] for row in csv.DictReader(io.StringIO(render(table, "csv")))}
    assert rows == {"weak": "fp32", "strong": "bf16", "absent": ""}
    content = json.loads(render(table, "json"))
    assert content["protocol_ids"] == ids
    assert {r["entry"]: r["precision"] for r in content["rows"]} == {"weak": "fp32", "strong": "bf16", "absent": None}
