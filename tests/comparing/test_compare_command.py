"""rbvit compare: what it prints, writes and exits with."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vit.records import Record
from tests.comparing.conftest import Ran
from tests.comparing.made import COMMITTED, letters, make_record, write

Rbvit = Callable[..., Ran]


@pytest.fixture
def sides(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a baseline and a candidate that flip so often; returns both folders."""

    def make(lost: int, gained: int, n: int) -> tuple[Path, Path]:
        before, after = letters(lost, gained, n)
        return write(tmp_path / "old", make_record(before)), write(tmp_path / "new", make_record(after, weights="bb"))

    return make


@pytest.mark.parametrize(
    ("lost", "gained", "n", "conclusion", "code", "strictly"),
    [
        (31, 5, 500, "worse", 1, 1),
        (20, 14, 500, "undecided", 0, 1),
        (0, 0, 500, "not worse", 0, 0),
        (0, 0, 1, "undecided", 0, 1),
        (500, 0, 500, "worse", 1, 1),
    ],
)
def test_exit_codes(
    rbvit: Rbvit,
    sides: Callable[..., tuple[Path, Path]],
    lost: int,
    gained: int,
    n: int,
    conclusion: str,
    code: int,
    strictly: int,
) -> None:
    old, new = sides(lost, gained, n)
    ran = rbvit("compare", old, new)
    assert (ran.code, ran.err) == (code, "")
    assert f"net, cascade (linf 0.1): {conclusion}. " in ran.out
    assert rbvit("compare", old, new, "--strict").code == strictly


def test_options_reach_the_comparison(rbvit: Rbvit, sides: Callable[..., tuple[Path, Path]]) -> None:
    old, new = sides(31, 5, 500)
    assert rbvit("compare", old, new, "--max-drop", "0.1").code == 0
    assert rbvit("compare", old, new, "--alpha", "0.000001").code == 0
    assert "(largest admitted drop 10 points, alpha 0.01)" in rbvit(
        "compare", old, new, "--max-drop", "0.1", "--alpha", "0.01"
    ).out  # fmt: skip


def test_files_are_written_even_when_it_fails(rbvit: Rbvit, sides: Callable[..., tuple[Path, Path]]) -> None:
    old, new = sides(31, 5, 500)
    ran = rbvit("compare", old, new, "--junit", "out/junit.xml", "--markdown", "out/comment.md", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["conclusion"] == "worse"
    assert ET.parse("out/junit.xml").getroot().get("failures") == "1"
    assert Path("out/comment.md").read_text(encoding="utf-8").startswith("### Robustness: worse\n")


def test_strict_is_in_the_junit_file_too(rbvit: Rbvit, sides: Callable[..., tuple[Path, Path]]) -> None:
    old, new = sides(20, 14, 500)
    for options, failures in (((), "0"), (("--strict",), "1")):
        rbvit("compare", old, new, "--junit", "junit.xml", *options)
        assert ET.parse("junit.xml").getroot().get("failures") == failures


def test_a_board_equals_itself(rbvit: Rbvit) -> None:
    ran = rbvit("compare", "digits-linf", COMMITTED.parent)
    assert ran.code == 0
    assert ran.out.count("not worse. ") == 2 * len(list(COMMITTED.glob("*.json")))
    assert ran.out.count("none of 500 samples flipped, the weights are the same") == 2 * len(
        list(COMMITTED.glob("*.json"))
    )


def test_two_committed_records_of_other_names(rbvit: Rbvit) -> None:
    ran = rbvit("compare", COMMITTED / "ic-cnn-pgd-at.json", COMMITTED / "cnn-pgd-at.json", "--json")
    assert ran.code == 1
    said = json.loads(ran.out)
    assert [item["conclusion"] for item in said["items"]] == ["worse", "worse"]
    autoattack = said["items"][1]
    records = {name: Record.load(COMMITTED / f"{name}.json") for name in ("ic-cnn-pgd-at", "cnn-pgd-at")}
    robust = {name: set(_robust(record)) for name, record in records.items()}
    assert {flip["sample"] for flip in autoattack["lost"]} == robust["ic-cnn-pgd-at"] - robust["cnn-pgd-at"]
    assert {flip["sample"] for flip in autoattack["gained"]} == robust["cnn-pgd-at"] - robust["ic-cnn-pgd-at"]
    assert (autoattack["entry"], autoattack["candidate_entry"]) == ("ic-cnn-pgd-at", "cnn-pgd-at")


def _robust(record: Record) -> list[str]:
    return [outcome.sample for outcome in record.outcomes if outcome.attack == "autoattack" and outcome.robust]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "none"), "error: no records at none; give a record, a folder of records, a run's folder or a board"),
        (("digits-linf", "digits-lin"), "error: no records at digits-lin; did you mean 'digits-linf'?"),
        (("digits-linf", "digits-linf", "--entry", "vit"), "error: digits-linf: unknown entry 'vit'"),
        (
            ("none", "none", "--max-drop", "2"),
            "--max-drop is a share between 0 and 1, got 2; did you mean 0.02?",
        ),
        (
            ("digits-linf", "digits-l2"),
            "in digits-linf and digits-l2 cannot be compared; they differ, and so do those of 9 more",
        ),
        (("digits-linf", COMMITTED / "cnn-pgd-at.json"), "lacks 9 of the 10 entries of the baseline digits-linf:"),
    ],
)
def test_bad_input_exits_with_2(rbvit: Rbvit, arguments: tuple[str, ...], message: str) -> None:
    ran = rbvit("compare", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("value", ["2%", "two"])
def test_a_max_drop_that_is_no_number_is_bad_usage(rbvit: Rbvit, value: str) -> None:
    assert rbvit("compare", "digits-linf", "digits-linf", "--max-drop", value).code == 2


def test_a_record_of_a_newer_format_is_named(rbvit: Rbvit, tmp_path: Path) -> None:
    path = write(tmp_path / "old", make_record("rb")) / "net.json"
    newer = re.sub(r"/record/\d+", "/record/99", path.read_text(encoding="utf-8"))
    path.write_text(newer, encoding="utf-8")
    ran = rbvit("compare", "old", "old")
    assert ran.code == 2
    assert ran.err.startswith("error: old/net.json: written by a newer version of robustbench_vit")


def test_no_shared_sample_exits_with_2(rbvit: Rbvit, tmp_path: Path) -> None:
    write(tmp_path / "old", make_record("rb"))
    write(tmp_path / "new", make_record("rb", first=2))
    ran = rbvit("compare", "old", "new")
    assert ran.code == 2
    assert "share no sample" in ran.err


def test_files_that_cannot_be_written_are_told(rbvit: Rbvit, sides: Callable[..., tuple[Path, Path]]) -> None:
    old, new = sides(0, 0, 500)
    ran = rbvit("compare", old, new, "--junit", old / "net.json" / "junit.xml")
    assert ran.code == 2
    assert ran.err.startswith("error: cannot write ")
