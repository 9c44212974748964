"""Boards in Python: load_board, data frames, notebooks."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import robustbench_vit
from robustbench_vit.boards import build_table, load_board, render
from robustbench_vit.cards import Workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.errors import InputError, ProtocolMismatchError, UnknownNameError
from robustbench_vit.statistics import wilson

Make = Callable[..., Any]


@pytest.fixture
def filled(made: Any, make_record: Make) -> Any:
    """The board with two records beside its card."""
    made.save(make_record(made, "weak"), make_record(made, "strong", broken=(1, 1, 0, 0)))
    return made


def test_a_frame_has_a_row_per_entry_with_the_names_of_the_csv(filled: Any) -> None:
    table = load_board(filled.board.path).table
    frame = table.to_frame()
    header = next(csv.reader(io.StringIO(render(table, "csv"))))
    assert list(frame.columns) == ["rank", *header]
    assert list(frame["entry"]) == ["strong", "weak", "absent"]
    assert list(frame["autoattack:low"][:2]) == [wilson(7, 10)[0], wilson(6, 10)[0]]
    assert list(frame["rank"][:2]) == [1, 1]
    assert frame["autoattack:survivors:square"].tolist()[:2] == [7, 6]


def test_what_has_no_record_is_missing_and_numbers_stay_numbers(filled: Any) -> None:
    frame = load_board(filled.board.path).to_frame()
    assert list(frame[["entry", "model"]].iloc[2]) == ["absent", "digits_cnn"]
    assert [name for name in frame.columns if frame[name].isna().tolist()[2]] == [
        name for name in frame.columns if name not in ("entry", "model")
    ]
    assert {name: str(frame[name].dtype) for name in ("rank", "clean", "autoattack:low", "seconds")} == {
        "rank": "Int64",
        "clean": "float64",
        "autoattack:low": "float64",
        "seconds": "float64",
    }
    assert str(frame["autoattack:survivors:square"].dtype) == "Int64"


def test_columns_that_stand_on_the_card_are_not_repeated(make_board: Make) -> None:
    made = make_board(("columns: [entry, model,", "columns: [model, rank, policy,"))
    frame = build_table(made.board, made.workspace, {}).to_frame()
    assert list(frame.columns[:4]) == ["entry", "model", "rank", "policy"]
    assert len(frame) == 3


def test_a_custom_attack_is_called_so(made: Any) -> None:
    table = build_table(made.board, made.workspace, {})
    frame = dataclasses.replace(table, custom={"autoattack": ("lanes",)}).to_frame()
    assert "custom:autoattack:estimate" in frame.columns
    assert "pgd-40" in frame.columns


def test_a_board_is_found_by_card_folder_name_and_run(
    filled: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, run = filled.board.path, filled.folder / "runs" / "made"
    make_record(filled, "weak").save(run / "records" / "weak.json")
    monkeypatch.chdir(filled.folder)
    for given in (card, str(card), card.with_suffix(""), "made"):
        assert list(load_board(given).records) == ["weak", "strong"]
    for given in (run, "runs/made", run / "records"):
        assert list(load_board(given).records) == ["weak"]
    assert list(load_board("made", records=run / "records").records) == ["weak"]
    loose = filled.folder / "loose" / "made"
    make_record(filled, "strong").save(loose / "strong.json")
    assert list(load_board(loose).records) == ["strong"]


def test_a_card_is_read_with_the_attack_cards_beside_it(
    filled: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (filled.folder / "attacks").mkdir()
    text = "extends: pgd-40\nversion: 1\nabout: x\nreference: x\n"
    (filled.folder / "attacks" / "mine.yaml").write_text(text, encoding="utf-8")
    card: Path = filled.board.path
    text = card.read_text(encoding="utf-8").replace("attacks: [pgd-40,", "attacks: [mine, pgd-40,")
    (card.parent / "other.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    view = load_board(card.parent / "other.yaml")
    assert (view.name, view.card.attacks[0], dict(view.records)) == ("other", "mine", {})


def test_a_folder_that_belongs_to_no_board_is_refused(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled.folder)
    folder = filled.folder / "runs" / "mode"
    folder.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        load_board(folder)
    known = ", ".join(filled.workspace.names("board"))
    assert str(caught.value) == (
        f"{folder} belongs to no board: there is no mode.yaml beside it, and no board is called 'mode' "
        f"(known: {known}); give the board's card or name, and this folder as records"
    )


def test_unknown_boards_and_folders_are_refused(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled.folder)
    with pytest.raises(UnknownNameError, match="unknown board 'mad'; did you mean 'made'"):
        load_board("mad")
    with pytest.raises(InputError, match=r"no board file at leaderboards/mad\.yaml"):
        load_board("leaderboards/mad.yaml")
    with pytest.raises(InputError, match=r"^no folder with records at nowhere$"):
        load_board("made", records="nowhere")


def test_records_of_another_board_are_refused(filled: Any, make_record: Make) -> None:
    other = make_record(filled, "weak", protocol={"norm": "l2"})
    filled.save(other)
    with pytest.raises(ProtocolMismatchError, match="may not share a table"):
        load_board(filled.board.path)


def test_notebooks_show_the_table(filled: Any, make_record: Make) -> None:
    filled.save(make_record(filled, "weak", entry={"parameters": 1}, policy="C"))
    shown = load_board(filled.board.path)._repr_html_()
    assert shown.startswith("<div><table><caption>10 samples of digits/test")
    assert "protocol <code>" in shown
    assert '<td style="text-align: right">70.0 [39.7, 89.2]</td>' in shown
    assert "<li>weak: policy C, it has no useful gradient" in shown
    assert shown.count("<tr>") == 4


def test_html_escapes_what_stands_on_the_card(make_board: Make) -> None:
    family = ("name: weak,", "name: weak, family: '<b>&', training_seed: 1,")
    made = make_board(family, ("columns: [entry,", "columns: [family, entry,"))
    shown = load_board(made.board.path)._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "<b>" not in shown


@pytest.mark.parametrize("name", Workspace((builtin_layer(),)).names("board"))
def test_built_in_boards_load_with_what_papers_report(name: str) -> None:
    view = load_board(name)
    assert set(view.records) == {entry.name for entry in view.card.entries}
    assert len(view.to_frame()) == len(view.card.entries)
    assert len(view.reported) == len([*(builtin_layer() / "leaderboards" / name / "reported").glob("*.json")])


def test_load_board_is_public() -> None:
    assert robustbench_vit.load_board is load_board
