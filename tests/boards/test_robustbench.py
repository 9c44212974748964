"""RobustBench's format: what is read, what is refused, and records written in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_vit.boards.robustbench import model_info, read_model_info, require_board
from robustbench_vit.cli import main
from robustbench_vit.errors import InputError
from robustbench_vit.records import Outcome, Record, Status

Make = Callable[..., Any]
ROW = {
    "link": "https://arxiv.org/abs/2001.00001",
    "name": "A Paper",
    "authors": "Ada One, Bob Two and Cy Three",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "digits",
    "venue": "ICML 2020",
    "architecture": "ViT-S",
    "eps": "1/5",
    "clean_acc": "90.10",
    "reported": "",
    "autoattack_acc": "50",
    "external": "49.5",
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the row, with other fields (None leaves one out)."""

    def write(name: str = "Row", **over: Any) -> Path:
        row = {key: value for key, value in {**ROW, **over}.items() if key not in over or value is not None}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(row), encoding="utf-8")
        return path

    return write


def test_a_row_is_read(write: Make) -> None:
    info = read_model_info(write(AA="50", footnote="So."))
    assert (info.clean_acc, info.autoattack_acc, info.external, info.reported) == (90.1, 50.0, 49.5, None)
    assert info.best_known == 49.5
    assert info.eps == 0.2
    assert info.author_list == ["Ada One", "Bob Two", "Cy Three"]
    assert info.unknown == ["AA"]
    assert read_model_info(write(external=None, clean_acc=None)).best_known == 50


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"autoattack_acc": None}, 'missing field "autoattack_acc"'),
        ({"autoattack_acc": ""}, 'field "autoattack_acc": should be a percentage as text, such as "57.71", got ""'),
        ({"autoattack_acc": 50}, 'field "autoattack_acc": should be a percentage as text, such as "57.71", got 50'),
        ({"clean_acc": "101"}, 'field "clean_acc": should lie between 0 and 100 percent, got "101"'),
        ({"clean_acc": "-1"}, 'field "clean_acc": should be a percentage as text, such as "57.71", got "-1"'),
        ({"clean_acc": "nan"}, 'field "clean_acc": should be a percentage as text, such as "57.71", got "nan"'),
        ({"eps": 0.2}, 'field "eps": should be a budget as text, such as "8/255", got 0.2'),
        ({"eps": "8/0"}, 'field "eps": division by zero in \'8/0\', got "8/0"'),
        ({"eps": "0"}, 'field "eps": should be a positive budget, got "0"'),
        ({"additional_data": "no"}, 'field "additional_data": should be a valid boolean, got "no"'),
        ({"number_forward_passes": 0}, 'field "number_forward_passes": should be greater than or equal to 1, got 0'),
        ({"architecture": ""}, 'field "architecture": should have at least 1 character, got ""'),
        (
            {"external": "50.01"},
            '"external" (50.01) is above "autoattack_acc" (50); it is what the best known attack leaves, so it'
            " cannot be",
        ),
        (
            {"clean_acc": "49.9"},
            '"autoattack_acc" (50) is above "clean_acc" (49.9); an attack cannot make a model better',
        ),
    ],
)
def test_a_wrong_row_is_refused(write: Make, over: dict[str, Any], said: str) -> None:
    path = write(**over)
    with pytest.raises(InputError) as caught:
        read_model_info(path)
    assert str(caught.value) == f"{path}: {said}"


def test_every_fault_is_named(write: Make) -> None:
    with pytest.raises(InputError) as caught:
        read_model_info(write(clean_acc=1, eps="x"))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("content", ["", "[1]", "{", '"text"', b"\xff\xfe"])
def test_what_is_no_row_at_all_is_refused(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "row.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"row\.json: not "):
        read_model_info(path)
    with pytest.raises(InputError, match=r"gone\.json: not readable JSON"):
        read_model_info(tmp_path / "gone.json")


def test_a_row_belongs_to_one_board(made: Any, write: Make) -> None:
    path = write()
    require_board(read_model_info(path), made.board.card, "made", path)
    with pytest.raises(InputError) as caught:
        require_board(read_model_info(write(dataset="mnist")), made.board.card, "made", path)
    assert str(caught.value) == f"{path}: is about the data set 'mnist', made about 'digits'"
    with pytest.raises(InputError) as caught:
        require_board(read_model_info(write(eps="0.21")), made.board.card, "made", path)
    assert str(caught.value) == f"{path}: has eps 0.21, made has 0.2; such numbers don't compare"


def test_a_record_is_exported_and_can_be_imported_again(made: Any, make_record: Make, tmp_path: Path) -> None:
    record = make_record(made, "weak")
    written = model_info(record, about={"authors": "Ada One"})
    assert written == {
        "link": None,
        "name": "weak",
        "authors": "Ada One",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": "digits",
        "venue": None,
        "architecture": "digits_cnn",
        "eps": "0.2",
        "clean_acc": "90.00",
        "reported": "60.00",
        "autoattack_acc": "60.00",
        "footnote": f"Measured by robustbench_vit on 10 samples of digits/test; protocol {record.protocol_id}.",
        "unreliable": False,
    }
    path = tmp_path / "exported.json"
    path.write_text(json.dumps(written), encoding="utf-8")
    info = read_model_info(path)
    require_board(info, made.board.card, "made", path)
    assert (info.clean_acc, info.best_known) == (90, 60)


def test_one_eps_of_several_is_exported(make_board: Make, make_record: Make) -> None:
    made = make_board(eps="[4/255, 8/255]")
    record = make_record(made, "weak")
    assert model_info(record, eps=8 / 255)["eps"] == "8/255"
    with pytest.raises(InputError) as caught:
        model_info(record)
    assert str(caught.value) == "the record holds several eps (4/255, 8/255); choose one with --eps"
    with pytest.raises(InputError) as caught:
        model_info(record, eps=0.5)
    assert str(caught.value) == "the record holds eps 4/255, 8/255, not 0.5"


def refusal(record: Record) -> str:
    with pytest.raises(InputError) as caught:
        model_info(record)
    return str(caught.value).removeprefix("cannot be exported for RobustBench: ")


def test_what_is_not_autoattack_as_published_is_not_exported(made: Any, make_record: Make) -> None:
    record = make_record(made, "weak")
    attacks = record.protocol["attacks"]
    custom = {**attacks, "autoattack": {**attacks["autoattack"], "custom": ["steps: 5, published is 100"]}}
    unfinished = Outcome("digits:99", "autoattack", "linf", 0.2, "untargeted", Status.NOT_RUN)
    assert refusal(make_record(made, "weak", protocol={"profile": "smoke"})).startswith("it is a smoke profile")
    assert refusal(make_record(made, "weak", protocol={"profile": "until"})).startswith("it stopped early")
    assert refusal(make_record(made, "weak", protocol={"attacks": {"pgd-40": attacks["pgd-40"]}})) == (
        "it has no attack 'autoattack', only pgd-40"
    )
    assert refusal(make_record(made, "weak", policy="B")) == (
        "it ran under policy B, where autoattack-rand replaces autoattack"
    )
    assert refusal(make_record(made, "weak", protocol={"attacks": custom})) == (
        "its 'autoattack' is custom, not the published protocol: steps: 5, published is 100"
    )
    assert refusal(make_record(made, "weak", protocol={"norm": "l1"})) == (
        "its norm is l1; RobustBench has boards for linf and l2"
    )
    assert refusal(dataclasses.replace(record, outcomes=(*record.outcomes, unfinished))).startswith("it is incomplete")


def test_the_commands(made: Any, make_record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, written = tmp_path / "weak.json", tmp_path / "out" / "Own2026_weak.json"
    make_record(made, "weak").save(saved)
    run("export", str(saved), "--authors", "Ada One", "--venue", "none yet", "-o", str(written))
    run("--workspace", str(made.folder), "import", str(written), "--board", "made")
    said = capsys.readouterr().out
    assert "took Own2026_weak: digits_cnn, 60.00 % under AutoAttack, 60.00 % under the best known attack" in said
    target = made.folder / "leaderboards/made/reported/Own2026_weak.json"
    assert target.read_bytes() == written.read_bytes()
    run("--workspace", str(made.folder), "import", str(written), "--board", "made")
    assert "already there Own2026_weak" in capsys.readouterr().out
    run("export", str(saved), code=0)
    assert json.loads(capsys.readouterr().out)["autoattack_acc"] == "60.00"
    run("export", str(saved), "--eps", "8/0", code=2)
    assert "error: --eps: division by zero" in capsys.readouterr().err


def run(*arguments: str, code: int = 0) -> None:
    """Runs rbvit, which must exit with `code`."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == code
