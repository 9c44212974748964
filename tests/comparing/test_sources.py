"""Where records come from, which belong together, and which may be compared at all."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from robustbench_vit.cards import Workspace, open_workspace
from robustbench_vit.cards.workspace import builtin_layer
from robustbench_vit.comparing.judge import compare
from robustbench_vit.comparing.sources import Source, find, load, match
from robustbench_vit.errors import InputError, ProtocolMismatchError, UnknownNameError
from tests.comparing.made import COMMITTED, make_record, source, write


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The built-in cards; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return open_workspace()


def files(*entries: tuple[str, str]) -> Source:
    """A source of records given as a file."""
    return Source("file.json", COMMITTED / "cnn-pgd-at.json", {name: make_record(text, name) for name, text in entries})


def test_records_are_found_wherever_they_lie(workspace: Workspace, tmp_path: Path) -> None:
    run = write(tmp_path / "runs" / "made" / "records", make_record("rb", "one"), make_record("rb", "two"))
    (run / "table.json").write_text("{}", encoding="utf-8")
    (run / "baseline.jsonl").write_text("{}\n", encoding="utf-8")
    for name in ("runs/made", "runs/made/records", str(run)):
        assert list(load(name, workspace).records) == ["one", "two"]
    single = load("runs/made/records/two.json", workspace)
    assert (list(single.records), single.is_file) == (["two"], True)


def test_images_are_not_kept_in_memory(workspace: Workspace, tmp_path: Path) -> None:
    images = np.zeros((2, 1, 2, 2), np.float32)
    write(tmp_path / "run" / "records", make_record("rb", images=images))
    for name in ("run", "run/records/net.json"):
        assert load(name, workspace).records["net"].images is None


def test_a_board_stands_for_its_committed_records(workspace: Workspace, tmp_path: Path) -> None:
    assert find("digits-linf", workspace) == COMMITTED
    assert find(str(builtin_layer() / "leaderboards" / "digits-linf.yaml"), workspace) == COMMITTED
    assert find(str(builtin_layer() / "leaderboards" / "digits-linf"), workspace) == COMMITTED
    assert "cnn-pgd-at" in load("digits-linf", workspace).records


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-lin", "no records at digits-lin; did you mean 'digits-linf'?"),
        ("runs/mad", "no records at runs/mad; did you mean 'runs/made'?"),
        ("runs/made/on.json", "no records at runs/made/on.json; did you mean 'runs/made/one.json'?"),
        ("zzz", "no records at zzz; give a record, a folder of records, a run's folder or a board"),
        ("runs", "no records in runs; did you mean runs/made?"),
        ("above", "no records in above; did you mean above/nested?"),
        ("empty", "no records in empty"),
        ("/dev/null", "/dev/null is neither a file nor a folder"),
    ],
)
def test_what_isnt_there_is_told(workspace: Workspace, tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "runs" / "made", make_record("rb", "one"))
    write(tmp_path / "above" / "nested" / "records", make_record("rb", "one"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        load(name, workspace)
    assert str(error.value) == message


def test_a_boards_card_that_isnt_there_is_told(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"^no board file at no\.yaml; known boards: "):
        load("no.yaml", workspace)


def test_a_board_without_records_is_told(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "leaderboards").mkdir()
    shutil.copy(builtin_layer() / "leaderboards" / "digits-linf.yaml", tmp_path / "leaderboards" / "mine.yaml")
    with pytest.raises(InputError, match=r"no records in .*leaderboards/mine/records$"):
        load("mine", open_workspace(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "robustbench_vit/record/99"}', '{"format": "another/table/1"}', "not JSON"]
)
def test_a_file_that_is_no_record_of_this_version_is_named(workspace: Workspace, tmp_path: Path, text: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "net.json").write_text(text, encoding="utf-8")
    for name in ("new", "new/net.json"):
        with pytest.raises(InputError, match=re.escape("new/net.json: ")):
            load(name, workspace)


def test_an_altered_record_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path, make_record("rb")) / "net.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["protocol"]["eps"] = [0.3]
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(InputError, match="the file was altered"):
        load("net.json", workspace)


def test_entries_belong_together_by_name() -> None:
    before = source(make_record("r", "one"), make_record("r", "two"))
    after = source(make_record("r", "three"), make_record("r", "two"), make_record("r", "one"))
    found = match(before, after)
    assert [(pair.entry, pair.candidate_entry) for pair in found.pairs] == [("one", "one"), ("two", "two")]
    assert found.new == ("three",)
    chosen = match(before, after, ["two", "two"])
    assert [pair.entry for pair in chosen.pairs] == ["two"]
    assert chosen.new == ()


def test_one_record_against_one_belongs_together_whatever_the_names() -> None:
    one, two = source(make_record("r", "one")), source(make_record("r", "two"))
    three = source(make_record("r", "three"), make_record("r", "four"))
    assert match(files(("one", "r")), two).pairs[0].candidate_entry == "two"
    assert match(one, files(("two", "r"))).pairs[0].candidate_entry == "two"
    assert match(three, files(("two", "r")), ["four"]).pairs[0].entry == "four"
    with pytest.raises(InputError):
        match(one, two)  # two folders: an entry is missing


def test_missing_entries_are_named_with_the_nearest() -> None:
    before = source(make_record("r", "vit"), make_record("r", "cnn-one"), make_record("r", "mlp"), name="old")
    after = source(make_record("r", "vit"), make_record("r", "cnn-two"), name="new")
    with pytest.raises(InputError) as error:
        match(before, after)
    assert str(error.value) == (
        "new lacks 2 of the 3 entries of the baseline old:\n"
        "  'cnn-one'; did you rename it to 'cnn-two'?\n"
        "  'mlp'\n"
        "--entry NAME compares only the entries that it names"
    )
    assert match(before, after, ["vit"]).pairs[0].entry == "vit"


def test_an_entry_that_the_baseline_lacks_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"^old: unknown entry 'vitt'; did you mean 'vit'\?$"):
        match(source(make_record("r", "vit"), name="old"), source(make_record("r", "vit")), ["vitt"])


def test_incomplete_records_are_refused_on_either_side() -> None:
    whole, part = source(make_record("rrb"), name="whole"), source(make_record("rrx"), name="part")
    message = (
        "part: the record of 'net' is incomplete: 1 of 3 outcomes were not run; run the same command again to finish it"
    )
    for sides in ((whole, part), (part, whole)):
        with pytest.raises(InputError) as error:
            compare(*sides)
        assert str(error.value) == message


def test_an_incomplete_entry_that_isnt_asked_about_is_no_hindrance() -> None:
    before = source(make_record("rrb", "one"), make_record("rxx", "two"))
    assert compare(before, before, entries=["one"]).items[0].entry == "one"


def test_a_smoke_profile_is_refused() -> None:
    smoke = source(make_record("rrb", protocol={"profile": "smoke"}), name="quick")
    with pytest.raises(InputError) as error:
        compare(smoke, smoke)
    assert str(error.value) == (
        "quick: the record of 'net' is of a smoke profile, whose numbers mean nothing; run it without --smoke"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"profile": "until"}, 'profile: "full" / "until"'),
        ({"precision": "bf16"}, 'precision: "fp32" / "bf16"'),
        ({"norm": "l2"}, 'norm: "linf" / "l2"'),
        (
            {"attacks": {"cascade": {"version": 1, "lanes": [{"name": "lane", "steps": 20}]}}},
            "attacks.cascade.lanes.0.steps: 10 / 20",
        ),
        ({"verification": {"draws": 5}}, 'verification: absent / {"draws": 5}'),
        ({"data": {"name": "made", "source_sha256": "t"}}, 'data.source_sha256: "s" / "t"'),
        ({"data": {"name": "other", "source_sha256": "s"}}, 'data.name: "made" / "other"'),
    ],
)
def test_another_protocol_is_refused_with_what_differs(change: dict[str, object], line: str) -> None:
    before, after = source(make_record("rb"), name="old"), source(make_record("rb", protocol=change), name="new")
    with pytest.raises(ProtocolMismatchError) as error:
        compare(before, after)
    assert str(error.value) == f"the records of 'net' in old and new cannot be compared; they differ:\n  {line}"


def test_another_eps_is_refused_and_others_counted() -> None:
    def board(eps: float) -> Source:
        return source(*(make_record("rb", name, eps=[eps]) for name in "abc"), name=str(eps))

    with pytest.raises(ProtocolMismatchError) as error:
        compare(board(0.1), board(0.2))
    assert str(error.value) == (
        "the records of 'a' in 0.1 and 0.2 cannot be compared; they differ, and so do those of 2 more entries:\n"
        "  eps.0: 0.1 / 0.2"
    )


def test_another_policy_is_refused_because_other_attacks_ran() -> None:
    before, after = make_record("rb"), make_record("rb", policy="C")
    with pytest.raises(ProtocolMismatchError) as error:
        compare(source(before, name="old"), source(after, name="new"))
    assert str(error.value).splitlines()[1:] == [
        '  policy: "A" / "C"',
        "under another policy intake has other attacks run; see docs/intake.md",
    ]


def test_a_model_that_answers_at_random_is_not_compared_with_one_that_does_not() -> None:
    """Policy C holds models of both kinds; one of them is asked 20 times about each image."""
    before = make_record("rb", policy="C")
    majority = tuple(dataclasses.replace(outcome, criterion="majority") for outcome in before.outcomes)
    after = dataclasses.replace(before, outcomes=(*before.outcomes, *majority))
    with pytest.raises(ProtocolMismatchError, match="  criteria: "):
        compare(source(before), source(after))


def test_other_samples_of_the_same_source_share_none() -> None:
    with pytest.raises(InputError) as error:
        compare(source(make_record("rb")), source(make_record("rbr", first=7)))
    assert str(error.value) == (
        "the records of 'net' share no sample: 2 such as 'made:0' in the baseline, 3 such as 'made:7' in the candidate"
    )
