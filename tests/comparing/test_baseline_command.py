"""rbvit baseline: records replaced, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustbench_vit.boards.folder import load_records
from robustbench_vit.records import Record
from tests.comparing.conftest import Ran
from tests.comparing.made import COMMITTED, letters, make_record, write

Rbvit = Callable[..., Ran]
BEFORE, AFTER = letters(31, 5, 500)


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """A baseline with 'net' and 'kept', a candidate with another 'net' and with 'more'."""
    old = write(tmp_path / "old", make_record(BEFORE), make_record("rb", "kept"))
    new = write(tmp_path / "new", make_record(AFTER, weights="bb"), make_record("rb", "more"))
    return old, new


def log(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "baseline.jsonl").read_text(encoding="utf-8").splitlines()]


def test_records_are_replaced_and_added_and_the_reason_is_kept(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    old, new = both
    ran = rbvit("baseline", "update", old, new, "--reason", " a smaller net ")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("net, cascade (linf 0.1): worse. robust 52.6 % → 47.4 %")
    assert "more: added\n" in ran.out
    assert f"2 of 2 written to {old}\nlogged in {old / 'baseline.jsonl'}\n" in ran.out
    held = load_records(old)
    assert {name: record.entry["weights_sha256"] for name, record in held.items()} == {
        "kept": "aa", "more": "aa", "net": "bb",
    }  # fmt: skip
    assert (old / "net.json").read_bytes() == (new / "net.json").read_bytes()
    changed, added = log(old)
    assert changed == {
        "date": changed["date"],
        "reason": "a smaller net",
        "entry": "net",
        "from": _said(make_record(BEFORE), "aa", 0.526),
        "to": _said(make_record(AFTER), "bb", 0.474),
        "conclusion": "worse",
        "differs": [],
    }
    assert (added["entry"], added["from"], added["conclusion"]) == ("more", None, "added")


def _said(record: Record, weights: str, accuracy: float) -> dict[str, object]:
    return {
        "weights_sha256": weights,
        "protocol_id": record.protocol_id,
        "n": 500,
        "robust_accuracy": [{"attack": "cascade", "norm": "linf", "eps": 0.1, "value": accuracy}],
    }


def test_after_an_update_nothing_is_worse_and_another_changes_nothing(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    old, new = both
    assert rbvit("compare", old, new, "--entry", "net").code == 1
    rbvit("baseline", "update", old, new, "--reason", "first")
    assert rbvit("compare", old, new, "--entry", "net").code == 0
    ran = rbvit("baseline", "update", old, new, "--reason", "second")
    assert ran.out == ("more: the same record already, nothing to do\nnet: the same record already, nothing to do\n")
    assert len(log(old)) == 2


def test_the_log_only_grows(rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = both
    rbvit("baseline", "update", old, new, "--reason", "first")
    first = (old / "baseline.jsonl").read_text(encoding="utf-8")
    again = write(tmp_path / "again", make_record(BEFORE, weights="cc"))
    rbvit("baseline", "update", old, again, "--reason", "second")
    assert (old / "baseline.jsonl").read_text(encoding="utf-8").startswith(first)
    assert [(line["reason"], line["conclusion"]) for line in log(old)][-1] == ("second", "not worse")


def test_show_prints_the_log(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    old, new = both
    rbvit("baseline", "update", old, new, "--reason", "a smaller\nnet")
    ran = rbvit("baseline", "show", old)
    date = log(old)[0]["date"]
    assert ran == Ran(
        0,
        f"{date} net: worse. a smaller net\n"
        "  cascade (linf 0.1): 52.6 % → 47.4 %\n"
        "  weights: aa → bb\n"
        f"{date} more: added. a smaller net\n"
        "  cascade (linf 0.1): 50.0 %\n"
        "  weights: aa\n",
        "",
    )
    as_it_is = rbvit("baseline", "show", old, "--json").out
    assert as_it_is == (old / "baseline.jsonl").read_text(encoding="utf-8")


def test_other_protocols_may_replace_a_baseline_and_the_log_says_so(
    rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path
) -> None:
    old, _ = both
    other = write(tmp_path / "other", make_record(AFTER, eps=(0.2,), weights="bb"))
    assert rbvit("compare", old, other, "--entry", "net").code == 2
    ran = rbvit("baseline", "update", old, other, "--reason", "a larger eps")
    assert ran.code == 0
    assert ran.out.startswith("net: replaced; the record before is not comparable:\n  eps.0: 0.1 / 0.2\n")
    assert [log(old)[0][key] for key in ("conclusion", "differs")] == ["not comparable", ["eps.0: 0.1 / 0.2"]]
    assert "  cascade (linf 0.2): 47.4 %\n" in rbvit("baseline", "show", old).out


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (make_record("rrx"), "the record before is incomplete"),
        (make_record("rrb", first=900), "no sample in common"),
    ],
)
def test_records_that_cannot_be_compared_are_replaced(rbvit: Rbvit, tmp_path: Path, before: Record, said: str) -> None:
    write(tmp_path / "old", before)
    write(tmp_path / "new", make_record("rrb"))
    ran = rbvit("baseline", "update", "old", "new", "--reason", "repaired")
    assert (ran.code, ran.err) == (0, "")
    assert said in ran.out
    assert rbvit("compare", "old", "new").code == 0


def test_an_empty_folder_becomes_a_baseline(rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    assert rbvit("baseline", "update", "first", both[1], "--reason", "the first").code == 0
    assert sorted(load_records(tmp_path / "first")) == ["more", "net"]


def test_images_are_left_behind(rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path) -> None:
    images = np.zeros((500, 1, 2, 2), np.float32)
    new = write(tmp_path / "images", replace(make_record(AFTER, weights="bb"), images=images))
    assert (new / "net.images.safetensors").is_file()
    rbvit("baseline", "update", both[0], new, "--reason", "with images")
    assert load_records(both[0])["net"].images is None


def test_only_the_entries_asked_for(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    old, new = both
    rbvit("baseline", "update", old, new, "--reason", "some", "--entry", "more")
    assert load_records(old)["net"].entry["weights_sha256"] == "aa"
    assert [line["entry"] for line in log(old)] == ["more"]
    ran = rbvit("baseline", "update", old, new, "--reason", "some", "--entry", "nett")
    assert (ran.code, ran.err) == (2, f"error: {new}: unknown entry 'nett'; did you mean 'net'?\n")


def test_a_single_record_may_be_a_baseline(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    old, new = both
    ran = rbvit("baseline", "update", old / "net.json", new, "--reason", "one")
    assert (ran.code, ran.err) == (
        2,
        f"error: {old / 'net.json'} is one record, {new} has 2; choose one with --entry\n",
    )
    assert rbvit("baseline", "update", old / "net.json", new / "more.json", "--reason", "one").code == 0
    assert load_records(old)["net"].entry["name"] == "more"
    assert [line["entry"] for line in log(old)] == ["net"]
    assert rbvit("baseline", "show", old / "net.json").code == 0


def test_the_boards_tables_are_called_stale(rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path) -> None:
    records = write(tmp_path / "leaderboards" / "mine" / "records", make_record(BEFORE))
    (records.parent / "table.md").write_text("old", encoding="utf-8")
    ran = rbvit("baseline", "update", records.parent, both[1], "--reason", "x", "--entry", "net")
    assert ran.out.endswith("the board's tables are stale now; run: rbvit table mine --write\n")


def test_nothing_changes_when_a_record_is_unusable(rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = both
    held = {path.name: path.read_bytes() for path in old.iterdir()}
    part = write(tmp_path / "part", make_record(AFTER, weights="bb"), make_record("rx", "kept"))
    ran = rbvit("baseline", "update", old, part, "--reason", "x")
    assert ran.code == 2
    assert "the record of 'kept' is incomplete" in ran.err
    assert {path.name: path.read_bytes() for path in old.iterdir()} == held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("update", "old", "new", "--reason", " "),
            "--reason is empty; say why the baseline changes",
        ),
        (("update", "oldd", "new", "--reason", "x"), "no records at oldd; did you mean 'old'?"),
        (("update", "old", "neww", "--reason", "x"), "no records at neww; did you mean 'new'?"),
        (("update", "old", "new", "--reason", "x", "--max-drop", "3"), "did you mean 0.03?"),
        (("show", "old"), "old has no baseline.jsonl: it was never changed by `rbvit baseline update`"),
    ],
)
def test_bad_input_exits_with_2(
    rbvit: Rbvit, both: tuple[Path, Path], arguments: tuple[str, ...], message: str
) -> None:
    ran = rbvit("baseline", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (both[0] / "baseline.jsonl").exists()


def test_a_missing_reason_is_bad_usage(rbvit: Rbvit, both: tuple[Path, Path]) -> None:
    ran = rbvit("baseline", "update", *both)
    assert ran.code == 2
    assert "--reason" in ran.err


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"from": null, "to": {}, "differs": []}'])
def test_a_damaged_log_is_told_by_its_line(rbvit: Rbvit, both: tuple[Path, Path], line: str) -> None:
    old, new = both
    rbvit("baseline", "update", old, new, "--reason", "x")
    with (old / "baseline.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(f"{line}\n")
    ran = rbvit("baseline", "show", old)
    assert ran.code == 2
    assert "baseline.jsonl, line 3: not a line of a baseline's log" in ran.err


def test_the_installed_package_is_never_written_to(
    rbvit: Rbvit, both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "_workspace"
    records = write(installed / "leaderboards" / "b" / "records", make_record(BEFORE))
    monkeypatch.setattr("robustbench_vit.comparing.update.builtin_layer", lambda: installed)
    ran = rbvit("baseline", "update", records, both[1], "--reason", "x")
    assert ran.code == 2
    assert "is part of the installed package, which is never written to" in ran.err


def test_the_log_disturbs_no_table(rbvit: Rbvit, tmp_path: Path) -> None:
    records = write(tmp_path / "records", Record.load(COMMITTED / "cnn-pgd-at.json"))
    new = write(tmp_path / "new", replace(Record.load(COMMITTED / "cnn-pgd-at.json"), provenance={"device": "other"}))
    before = rbvit("table", "digits-linf", "--records", records).out
    assert rbvit("baseline", "update", records, new, "--reason", "another machine").code == 0
    assert (records / "baseline.jsonl").is_file()
    assert "cnn-pgd-at" in before
    assert rbvit("table", "digits-linf", "--records", records).code == 0


def test_a_board_takes_no_record_that_stopped_early(rbvit: Rbvit, tmp_path: Path) -> None:
    records = tmp_path / "leaderboards" / "mine" / "records"
    records.mkdir(parents=True)
    card = tmp_path / "leaderboards" / "mine.yaml"
    card.touch()
    new = write(tmp_path / "new", make_record("rb", protocol={"profile": "until", "until": {"half_width": 0.1}}))
    ran = rbvit("baseline", "update", records, new, "--reason", "quicker")
    assert (ran.code, [*records.iterdir()]) == (2, [])
    assert "the record of 'net' stopped early (--until), and rows of a board share all samples" in ran.err
    card.unlink()
    assert rbvit("baseline", "update", records, new, "--reason", "quicker").code == 0
