"""From records to rows: what a cell shows, in which order, and which records are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from robustbench_vit.boards import FORMATS, build_table, render
from robustbench_vit.boards.columns import Estimate, column_names
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.differences import differences
from robustbench_vit.errors import InputError, ProtocolMismatchError
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.statistics import clopper_pearson, wilson

Make = Callable[..., Any]


def cells(table: Any, entry: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row.entry == entry)
    return {column.key: cell for column, cell in zip(table.columns, row.cells, strict=True)}


def test_cells_are_recomputed_from_outcomes(made: Any, make_record: Make) -> None:
    table = build_table(made.board, made.workspace, {"weak": make_record(made, "weak")})
    assert cells(table, "weak") == {
        "entry": "weak",
        "model": "digits_cnn",
        "clean": 0.9,
        "pgd-40": 0.7,
        "autoattack:interval": Estimate(0.6, *wilson(6, 10, 0.95)),
        "autoattack:survivors:apgd-ce": 7,
        "autoattack:survivors:apgd-t": 6,
        "autoattack:survivors:fab-t": 6,
        "autoattack:survivors:square": 6,
        "autoattack:forwards": 450.0,
        "seconds": 251.75,
    }
    assert (table.samples, table.profile) == (10, "full")


def test_rows_are_ranked_by_the_last_attack_and_absent_ones_come_last(made: Any, make_record: Make) -> None:
    records = {
        "weak": make_record(made, "weak", wrong=0, broken=(9, 0, 0, 0)),
        "strong": make_record(made, "strong", wrong=5, broken=(1, 0, 0, 0)),
    }
    table = build_table(made.board, made.workspace, records)
    assert [(row.entry, row.note) for row in table.rows] == [("strong", None), ("weak", None), ("absent", "no record")]
    assert cells(table, "absent")["model"] == "digits_cnn"
    assert cells(table, "absent")["pgd-40"] is None


def test_equal_robustness_is_ranked_by_clean_accuracy_then_by_name(made: Any, make_record: Make) -> None:
    records = {
        "weak": make_record(made, "weak", wrong=1, broken=(2, 0, 0, 0)),
        "strong": make_record(made, "strong", wrong=2, broken=(1, 0, 0, 0)),
        "absent": make_record(made, "absent", wrong=2, broken=(1, 0, 0, 0)),
    }
    table = build_table(made.board, made.workspace, records)
    assert [row.entry for row in table.rows] == ["weak", "absent", "strong"]


def test_an_unfinished_record_gives_no_numbers(made: Any, make_record: Make) -> None:
    record = make_record(made, "strong")
    left_out = dataclasses.replace(record.outcomes[-1], status=Status.NOT_RUN)
    record = dataclasses.replace(record, outcomes=(*record.outcomes[:-1], left_out))
    table = build_table(made.board, made.workspace, {"strong": record, "weak": make_record(made, "weak")})
    assert [(row.entry, row.note) for row in table.rows][1:] == [("absent", "no record"), ("strong", "incomplete")]


def test_a_board_with_several_eps_has_a_column_for_each(make_board: Make, make_record: Make) -> None:
    made = make_board(eps="[4/255, 0.2]")
    table = build_table(made.board, made.workspace, {"weak": make_record(made, "weak")})
    keys = [column.key for column in table.columns]
    assert keys[3:7] == ["pgd-40@4/255", "pgd-40@0.2", "autoattack@4/255:interval", "autoattack@0.2:interval"]
    assert "autoattack@0.2:survivors:square" in keys
    assert cells(table, "weak")["pgd-40@0.2"] == 0.7


def test_every_column_that_may_be_named_works(make_board: Make, make_record: Make) -> None:
    names = column_names(["pgd-40", "autoattack"])
    quoted = ", ".join(f"'{name}'" for name in names)
    old = "entry, model, clean, pgd-40, 'autoattack:interval', 'autoattack:survivors', 'autoattack:forwards', seconds"
    made = make_board((old, quoted))
    row = cells(build_table(made.board, made.workspace, {"weak": make_record(made, "weak")}), "weak")
    of_random_models = {f"{a}:majority{i}" for a in ("pgd-40", "autoattack") for i in ("", ":interval")}
    of_others = {"family", "training_seed", "only_adaptive"}
    assert {key for key, value in row.items() if value is None} == {*of_random_models, *of_others}
    assert (row["n"], row["rank"]) == (10, 1)
    assert row["best_known:interval"] == row["autoattack:interval"]
    assert row["clean:interval"] == Estimate(0.9, *wilson(9, 10, 0.95))
    assert row["pgd-40:seconds"] == 1.25
    assert row["autoattack:backwards"] == 4.5


def test_the_card_chooses_the_interval(make_board: Make, make_record: Make) -> None:
    made = make_board(
        ("interval: wilson", "interval: clopper-pearson"),
        ("confidence: 0.95", "confidence: 0.9"),
        ("clean, pgd-40", "'clean:interval', 'pgd-40:interval'"),
    )
    row = cells(build_table(made.board, made.workspace, {"weak": make_record(made, "weak")}), "weak")
    assert row["clean:interval"] == Estimate(0.9, *clopper_pearson(9, 10, 0.9))
    assert row["pgd-40:interval"] == Estimate(0.7, *clopper_pearson(7, 10, 0.9))
    assert row["autoattack:interval"] == Estimate(0.6, *clopper_pearson(6, 10, 0.9))


def test_random_models_have_both_criteria_with_intervals(make_board: Make, make_record: Make) -> None:
    made = make_board(("'autoattack:survivors'", "'autoattack:majority', 'autoattack:majority:interval'"))
    record = make_record(made, "weak", protocol={"criterion": "untargeted"})
    most = [
        dataclasses.replace(o, criterion="majority", status=Status.SURVIVED if o.by == "apgd-t" else o.status)
        for o in record.outcomes
    ]
    both = dataclasses.replace(record, outcomes=(*record.outcomes, *most))
    row = cells(build_table(made.board, made.workspace, {"weak": both}), "weak")
    assert row["autoattack:interval"] == Estimate(0.6, *wilson(6, 10))
    assert row["autoattack:majority"] == 0.7
    assert row["autoattack:majority:interval"] == Estimate(0.7, *wilson(7, 10))


def test_unknown_time_is_nothing_not_zero(made: Any, make_record: Make) -> None:
    record = dataclasses.replace(make_record(made, "weak"), provenance={"seconds": {"pgd-40": 1.0}})
    assert cells(build_table(made.board, made.workspace, {"weak": record}), "weak")["seconds"] is None


def test_records_of_different_protocols_may_not_share_a_table(made: Any, make_record: Make) -> None:
    weak, strong = make_record(made, "weak"), make_record(made, "strong")
    other = {**strong.protocol, "data": {**strong.protocol["data"], "n": 9}, "verification": {"precision": "half"}}
    records = {"weak": weak, "strong": dataclasses.replace(strong, protocol=other)}
    with pytest.raises(ProtocolMismatchError) as caught:
        build_table(made.board, made.workspace, records)
    assert str(caught.value) == (
        "the records of 'weak' and 'strong' may not share a table; their protocols differ:\n"
        "  data.n: 10 / 9\n"
        '  verification: absent / {"precision": "half"}'
    )


def test_records_of_another_version_of_the_board_are_refused(make_board: Make, make_record: Make) -> None:
    record = make_record(make_board(), "weak")
    made = make_board(("norm: linf", "norm: l2"), ("split: test", "split: train"), eps="0.3")
    with pytest.raises(ProtocolMismatchError) as caught:
        build_table(made.board, made.workspace, {"weak": record})
    assert str(caught.value) == (
        "leaderboards/made.yaml and the record of 'weak' do not belong together; they differ:\n"
        '  data.split: "train" / "test"\n'
        "  eps.0: 0.3 / 0.2\n"
        '  norm: "l2" / "linf"'
    )


def test_records_of_another_version_of_an_attack_card_are_refused(made: Any, make_record: Make) -> None:
    record = make_record(made, "weak")
    attacks = {**record.protocol["attacks"]}
    lane = {**attacks["pgd-40"]["lanes"][0], "steps": 39}
    attacks["pgd-40"] = {**attacks["pgd-40"], "lanes": [lane]}
    changed = dataclasses.replace(record, protocol={**record.protocol, "attacks": attacks})
    with pytest.raises(ProtocolMismatchError, match=r"\n  attacks.pgd-40.lanes.0.steps: 40 / 39$"):
        build_table(made.board, made.workspace, {"weak": changed})
    smoke = dataclasses.replace(changed, protocol={**changed.protocol, "profile": "smoke"})
    assert build_table(made.board, made.workspace, {"weak": smoke}).profile == "smoke"


def in_precision(record: Record, precision: str) -> Record:
    return dataclasses.replace(record, protocol={**record.protocol, "precision": precision})


def test_another_precision_is_refused_unless_the_card_admits_it(make_board: Make, make_record: Make) -> None:
    made = make_board()
    records = {"weak": make_record(made, "weak"), "strong": in_precision(make_record(made, "strong"), "bf16")}
    hint = "rows of several precisions share a table when the board's card lists them all"
    with pytest.raises(ProtocolMismatchError) as caught:
        build_table(made.board, made.workspace, records)
    assert str(caught.value) == (
        "the records of 'weak' and 'strong' may not share a table; their protocols differ:\n"
        f'  precision: "fp32" / "bf16"\n{hint}'
    )
    with pytest.raises(ProtocolMismatchError, match=rf'do not belong .*\n  precision: "fp32" / "bf16"\n{hint}$'):
        build_table(made.board, made.workspace, {"strong": records["strong"]})
    made = make_board(("precision: fp32", "precision: [fp32, bf16]"))
    assert build_table(made.board, made.workspace, records).rows[0].note is None
    records["weak"] = in_precision(records["weak"], "tf32")
    with pytest.raises(ProtocolMismatchError, match=r'\n  precision: "tf32" / \["fp32", "bf16"\]\n'):
        build_table(made.board, made.workspace, records)


def test_admitting_a_precision_admits_no_other_difference(make_board: Make, make_record: Make) -> None:
    made = make_board(("precision: fp32", "precision: [fp32, bf16]"))
    low = in_precision(make_record(made, "strong", protocol={"verification": {}}), "bf16")
    with pytest.raises(ProtocolMismatchError, match=r"differ:\n  verification: absent / \{\}$"):
        build_table(made.board, made.workspace, {"weak": make_record(made, "weak"), "strong": low})


def test_precisions_are_shown_where_one_is_not_fp32(make_board: Make, make_record: Make) -> None:
    made = make_board(("precision: fp32", "precision: [bf16, fp32]"))
    weak = make_record(made, "weak", protocol={"precision": "fp32"})
    low = in_precision(make_record(made, "strong"), "bf16")
    mixed = build_table(made.board, made.workspace, {"weak": weak, "strong": low})
    assert [cells(mixed, name)["precision"] for name in ("weak", "strong", "absent")] == ["fp32", "bf16", None]
    assert [column.key for column in mixed.columns][:3] == ["entry", "precision", "model"]
    assert mixed.protocol_ids == {"bf16": low.protocol_id, "fp32": weak.protocol_id}
    only_low = build_table(made.board, made.workspace, {"strong": low})
    assert cells(only_low, "strong")["precision"] == "bf16"
    assert "precision" not in cells(build_table(made.board, made.workspace, {"weak": weak}), "weak")


def test_a_record_of_another_model_is_refused(made: Any, make_record: Make) -> None:
    with pytest.raises(ProtocolMismatchError) as caught:
        build_table(made.board, made.workspace, {"weak": make_record(made, "weak", entry={"model": "digits_vit"})})
    assert str(caught.value) == (
        "the record of 'weak' has the model 'digits_vit', leaderboards/made.yaml says 'digits_cnn'; "
        "evaluate the entry again"
    )


def test_an_unknown_column_is_refused(make_board: Make) -> None:
    made = make_board(("seconds]", "secnods]"))
    with pytest.raises(InputError) as caught:
        build_table(made.board, made.workspace, {})
    assert str(caught.value) == "leaderboards/made.yaml: unknown column 'secnods'; did you mean 'seconds'?"


@pytest.mark.parametrize(("old", "new"), [("confidence: 0.95", "confidence: 1"), ("alpha: 0.05", "alpha: 0")])
def test_levels_outside_0_to_1_are_refused(make_board: Make, old: str, new: str) -> None:
    made = make_board((old, new))
    name, value = new.split(": ")
    with pytest.raises(InputError) as caught:
        build_table(made.board, made.workspace, {})
    assert str(caught.value) == f"leaderboards/made.yaml: {name} lies between 0 and 1, got {value}"


def test_tables_are_counted_by_column(made: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object per sample would take minutes on a board of 100 rows and 10,000 samples."""
    records = {name: make_record(made, name) for name in ("weak", "strong")}

    def none_is_made(*_: Any) -> None:
        pytest.fail("an outcome was made")

    monkeypatch.setattr(Outcome, "__init__", none_is_made)
    table = build_table(made.board, made.workspace, records)
    assert all(render(table, form) for form in FORMATS)


def test_differences_are_found_at_any_depth() -> None:
    left = {"a": {"b": [1, {"c": 2}], "d": 1}, "e": None}
    right = {"a": {"b": [1, {"c": 3}], "d": 1}, "f": [1, 2]}
    assert [str(d) for d in differences(left, right)] == ["a.b.1.c: 2 / 3", "e: null / absent", "f: absent / [1, 2]"]
    assert [str(d) for d in differences({"a": [1]}, {"a": [1, 2]})] == ["a: [1] / [1, 2]"]
    assert differences(left, left) == []


def test_a_record_that_went_through_json_gives_the_same_table(made: Any, make_record: Make) -> None:
    record = make_record(made, "weak")
    path = record.save(made.folder / "weak.json")
    direct = build_table(made.board, made.workspace, {"weak": record})
    loaded = build_table(made.board, made.workspace, {"weak": Record.load(path)})
    assert loaded.rows == direct.rows
    assert loaded.protocol_ids == direct.protocol_ids


def test_the_page_on_boards_names_every_column() -> None:
    page = (builtin_layer() / "leaderboards" / "README.md").read_text(encoding="utf-8")
    assert [name for name in column_names(["ATTACK"]) if f"`{name}`" not in page] == []


def test_the_built_in_boards_have_tables() -> None:
    workspace = Workspace((builtin_layer(),))
    for name in workspace.names("board"):
        board = workspace.board(name)
        table = build_table(board, workspace, {})
        assert [row.note for row in table.rows] == ["no record"] * len(board.card.entries)
