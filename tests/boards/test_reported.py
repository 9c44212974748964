"""Rows that others report: read strictly, shown apart, imported whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.boards.generated import board_table, board_text, publish, stale
from robustbench_vit.boards.reported import CAPTION, import_rows, reported_rows
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.check import board_faults
from robustbench_vit.errors import InputError
from robustbench_vit.running.board import RunOptions, run_board
from robustbench_vit.running.entries import chosen

Make = Callable[..., Any]
ROW = {"name": "A Paper", "dataset": "digits", "architecture": "ViT-S", "eps": "0.2", "clean_acc": "90.00"}
NO_ENTRIES = "entries: []\n"
PUBLISHED = {
    "cifar10-linf": {
        ("WideResNet-34-20", 86.03, 57.71),
        ("WideResNet-34-10", 85.21, 56.94),
        ("XCiT-S12", 90.06, 56.14),
        ("XCiT-M12", 91.30, 57.27),
        ("XCiT-L12", 91.73, 57.58),
        ("WideResNet-70-16", 92.23, 66.58),
    },
    "imagenet-linf": {
        ("ViT-S + ConvStem", 72.56, 48.08),
        ("ViT-B + ConvStem", 76.30, 54.66),
        ("XCiT-S12", 72.34, 41.78),
        ("XCiT-M12", 74.04, 45.24),
        ("XCiT-L12", 73.76, 47.60),
        ("Swin-B", 74.66, 38.30),
        ("ViT-B", 68.38, 34.40),
        ("ConvNeXt-B", None, 55.82),
        ("Swin-B", None, 56.16),
        ("Swin-L", None, 59.56),
        ("DeiT-S", 66.50, 35.50),
    },
}


def report(made: Any, name: str, aa: str, **over: Any) -> Path:
    """Puts a reported row into the board's folder."""
    path = made.folder / "leaderboards" / "made" / "reported" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**ROW, "autoattack_acc": aa, **over}), encoding="utf-8")
    return path


@pytest.fixture
def without_entries(made: Any) -> Any:
    """The same board, whose card has no entries."""
    path = made.folder / "leaderboards" / "made.yaml"
    path.write_text(path.read_text(encoding="utf-8").split("entries:")[0] + NO_ENTRIES, encoding="utf-8")
    return type(made)(made.folder, made.workspace, made.workspace.board("made"))


def test_rows_are_ranked_by_the_best_known_attack(made: Any) -> None:
    report(made, "first", "60.00", external="40.00")
    report(made, "second", "50.00")
    report(made, "third", "50.00")
    assert [(row.name, row.rank) for row in reported_rows(made.board)] == [("second", 1), ("third", 1), ("first", 3)]


def test_rows_of_several_budgets_are_ranked_apart(make_board: Make) -> None:
    made = make_board(eps="[0.1, 0.2]")
    report(made, "small", "60.00", eps="0.1")
    report(made, "large", "50.00")
    assert [(row.name, row.rank) for row in reported_rows(made.board)] == [("small", 1), ("large", 1)]
    assert "| 0.1 |" in board_text(made.board, made.workspace, "md").split(CAPTION)[1]


def test_every_file_that_does_not_belong_is_named(made: Any) -> None:
    wrong = [report(made, "a", "60.00", dataset="mnist"), report(made, "b", "x"), report(made, "c", "50", eps="0.3")]
    report(made, "fine", "50")
    with pytest.raises(InputError) as caught:
        reported_rows(made.board)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [str(path) for path in wrong]
    assert sum(str(path) in fault for path in wrong for fault in board_faults(made.board, made.workspace)) == 3


def test_reported_rows_stand_below_the_measured_ones(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    measured = {form: board_text(made.board, made.workspace, form) for form in ("md", "csv", "json", "tex")}
    report(
        made,
        "Ada2020Row_ViT",
        "99.00",
        clean_acc="99.00",
        external="98.00",
        authors="Ada One, Bob Two, Cy Three",
        venue="ICML 2020",
        link="https://example.org/a",
        additional_data=True,
        footnote="Uses \\(x\\) | more.<br>",
        unreliable=True,
    )
    shown = {form: board_text(made.board, made.workspace, form) for form in measured}
    assert shown["md"] == measured["md"] + (
        f"\n{CAPTION}.\n\n"
        "| rank | row            | architecture | clean % | AutoAttack % | best known % | extra data "
        f"| {'paper':46} |\n"
        "| ---: | -------------- | ------------ | ------: | -----------: | -----------: | ---------- "
        f"| {'-' * 46} |\n"
        "|    1 | Ada2020Row_ViT | ViT-S        |   99.00 |        99.00 |        98.00 | yes        "
        "| [One et al., ICML 2020](https://example.org/a) |\n"
        "\n"
        "- Ada2020Row_ViT: Uses x | more.\n"
        "- Ada2020Row_ViT: RobustBench flags AutoAttack's number as unreliable.\n"
    )
    assert shown["csv"] == measured["csv"]
    assert shown["tex"].startswith(measured["tex"])
    assert r"1 & Ada2020Row\_ViT & ViT-S & 99.00 & 99.00 & 98.00 & yes & One et al., ICML 2020 \\" in shown["tex"]
    both, own = json.loads(shown["json"]), json.loads(measured["json"])
    reported = both.pop("reported")
    assert both == own
    assert reported["caption"] == CAPTION
    assert [(row["row"], row["best_known"], row["clean"]) for row in reported["rows"]] == [
        ("Ada2020Row_ViT", 0.98, 0.99)
    ]


def test_reported_rows_change_no_measured_rank(made: Any, make_record: Make) -> None:
    made.save(make_record(made, "weak"))
    before = [(row.entry, row.rank) for row in board_table(made.board, made.workspace).rows]
    report(made, "better", "99.00", clean_acc="99.00")
    assert [(row.entry, row.rank) for row in board_table(made.board, made.workspace).rows] == before


def test_text_of_a_row_cannot_leave_its_cell(made: Any) -> None:
    report(made, "row", "50", venue="a | b <!-- /board -->\nc", link="javascript:x", authors="A [x](http://y)")
    text = board_text(made.board, made.workspace, "md").split(CAPTION)[1]
    assert "<!--" not in text
    assert "a \\| b c |" in text
    assert "javascript" not in text


def test_markup_in_a_row_is_shown_not_obeyed(made: Any) -> None:
    footnote = "![i](http://e/x.png) `a` <b>bold</b> at eps < 8 and > 2 <!-- x"
    report(made, "row", "50", architecture="<img src=x>[V](http://v)", footnote=footnote)
    text = board_text(made.board, made.workspace, "md").split(CAPTION)[1]
    assert "| \\[V\\](http://v) |" in text
    assert "- row: !\\[i\\](http://e/x.png) \\`a\\` bold at eps \\< 8 and > 2 \\<!-- x" in text


def test_they_get_a_csv_of_their_own(made: Any) -> None:
    report(made, "row", "50.00", external="49.99", venue="X, Y")
    path = made.folder / "leaderboards" / "made" / "table.reported.csv"
    assert path in publish(made.board, made.workspace)
    (line,) = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    assert (line["row"], line["autoattack"], line["best_known"], line["venue"]) == ("row", "0.5", "0.4999", "X, Y")
    assert line["claimed"] == line["additional_data"] == ""
    (made.folder / "leaderboards/made/reported/row.json").unlink()
    assert f"{path}: nothing stands behind it any more" in stale(made.board, made.workspace)
    publish(made.board, made.workspace)
    assert not path.exists()


def test_a_board_without_entries_shows_what_others_report(without_entries: Any) -> None:
    made = without_entries
    (fault,) = board_faults(made.board, made.workspace)
    assert fault.endswith("made.yaml: a board needs entries, or rows that papers report in made/reported/")
    report(made, "row", "50.00")
    assert board_faults(made.board, made.workspace) == []
    text = board_text(made.board, made.workspace, "md")
    assert text.startswith(f"Nothing is measured here; digits/test, linf, eps 0.2.\n\n{CAPTION}.\n\n| rank |")
    assert "entry" not in text
    assert "% Nothing is measured here" in board_text(made.board, made.workspace, "tex")
    assert json.loads(board_text(made.board, made.workspace, "json"))["rows"] == []
    publish(made.board, made.workspace)
    assert stale(made.board, made.workspace) == []


def test_its_data_need_not_be_there(without_entries: Any) -> None:
    made = without_entries
    path = made.folder / "leaderboards" / "made.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("name: digits", "name: imagenet"), encoding="utf-8")
    report(made, "row", "50.00", dataset="imagenet")
    assert board_faults(made.workspace.board("made"), made.workspace) == []
    report(made, "typo", "50.00", dataset="imagnet")
    (fault,) = board_faults(made.workspace.board("made"), made.workspace)
    assert "is about the data set 'imagnet'" in fault


def test_there_is_nothing_to_run_on_a_board_without_entries(without_entries: Any) -> None:
    said = "has no entries, so there is nothing to run; it shows what papers report"
    with pytest.raises(InputError, match=said):
        chosen(without_entries.board, [])
    with pytest.raises(InputError, match=said):
        run_board(without_entries.board, without_entries.workspace, RunOptions(entries=("x",)))


def test_files_are_imported_all_or_none(made: Any, tmp_path: Path) -> None:
    folder = made.folder / "leaderboards" / "made" / "reported"
    good, bad, other = (tmp_path / "in" / name for name in ("good.json", "bad.json", "good.txt"))
    good.parent.mkdir()
    good.write_text(json.dumps({**ROW, "autoattack_acc": "50"}), encoding="utf-8")
    bad.write_text(json.dumps({**ROW, "autoattack_acc": "50", "dataset": "mnist"}), encoding="utf-8")
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        import_rows([good, bad, other], made.board)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [str(bad), str(other)]
    assert not folder.exists()
    assert not import_rows([good], made.board)[good].present
    assert import_rows([good], made.board)[good].present
    good.write_text(json.dumps({**ROW, "autoattack_acc": "51"}), encoding="utf-8")
    with pytest.raises(InputError, match="has another row 'good'; rename the file"):
        import_rows([good], made.board)
    assert json.loads((folder / "good.json").read_text(encoding="utf-8"))["autoattack_acc"] == "50"


def test_two_files_of_one_name_clash(made: Any, tmp_path: Path) -> None:
    paths = [tmp_path / part / "row.json" for part in ("a", "b")]
    for path, share in zip(paths, ("50", "51"), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps({**ROW, "autoattack_acc": share}), encoding="utf-8")
    with pytest.raises(InputError, match="another row 'row'"):
        import_rows(paths, made.board)


def test_nothing_is_imported_into_an_installed_package(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = made.folder / "_workspace"
    (made.folder / "leaderboards").rename(installed.with_name("moved"))
    installed.mkdir()
    (made.folder / "moved").rename(installed / "leaderboards")
    monkeypatch.setattr("robustbench_vit.boards.folder.builtin_layer", lambda: installed)
    row = made.folder / "row.json"
    row.write_text(json.dumps({**ROW, "autoattack_acc": "50"}), encoding="utf-8")
    with pytest.raises(InputError, match="which is never written to; put a board of your own"):
        import_rows([row], Workspace((builtin_layer(), installed)).board("made"))
    assert not (installed / "leaderboards/made").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_built_in_boards_show_the_published_rows(name: str) -> None:
    workspace = Workspace((builtin_layer(),))
    board = workspace.board(name)
    found = {(row.info.architecture, row.info.clean_acc, row.info.autoattack_acc) for row in reported_rows(board)}
    assert found == PUBLISHED[name]
    assert board_faults(board, workspace) == []
    assert all(row.info.link and row.info.venue and row.info.author_list for row in reported_rows(board))
