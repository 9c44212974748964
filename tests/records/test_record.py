"""Records: saved, loaded, summed up, and refused when they were altered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vit.errors import InputError, StorageError
from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.records.outcomes import same_verdicts
from robustbench_vit.records.record import protocol_id
from robustbench_vit.statistics import wilson
from robustbench_vit.storage import write_atomic

COMMITTED = sorted((Path(__file__).parents[2] / "leaderboards").glob("*/records/*.json"))
checked = settings(deadline=None, max_examples=60, derandomize=True, database=None)
LINES = st.lists(
    st.builds(
        Outcome,
        sample=st.text(max_size=5),
        attack=st.sampled_from(["a", "b"]),
        norm=st.just("linf"),
        eps=st.floats(1e-6, 1),
        criterion=st.just("untargeted"),
        status=st.sampled_from(list(Status)),
        by=st.none() | st.text(min_size=1, max_size=4),
        restart=st.none() | st.integers(0, 5),
        target=st.none() | st.integers(0, 999),
        distance=st.none() | st.floats(0, 10),
        radius=st.none() | st.floats(0, 10),
        k_of_m=st.none() | st.tuples(st.integers(0, 9), st.integers(1, 9)),
        forwards=st.integers(0, 10**7),
        backwards=st.integers(0, 10**7),
    ),
    max_size=6,
)


def test_a_record_comes_back_as_it_was_saved(record, tmp_path):
    path = record.save(tmp_path / "deep" / "made.json")
    loaded = Record.load(path)
    assert dataclasses.replace(loaded, images=None) == dataclasses.replace(record, images=None)
    assert loaded.images.tobytes() == record.images.tobytes()
    assert loaded.outcomes[3].k_of_m == (2, 5)
    assert loaded.outcomes[0].status is Status.MISCLASSIFIED
    assert loaded.protocol_id == record.protocol_id
    assert sorted(p.name for p in path.parent.iterdir()) == ["made.images.safetensors", "made.json"]


@checked
@given(outcomes=LINES)
def test_all_outcomes_come_back(outcomes, tmp_path_factory):
    made = Record({}, {"schema": 1}, tuple(outcomes), (), {})
    assert Record.load(made.save(tmp_path_factory.mktemp("records") / "r.json")) == made


def test_records_without_images_leave_none_behind(record, tmp_path):
    path = record.save(tmp_path / "made.json")
    dataclasses.replace(record, images=None).save(path)
    loaded = Record.load(path)
    assert loaded.images is None
    with pytest.raises(InputError, match="this record kept no images; evaluate with adversarials=True"):
        _ = loaded.adversarials


def test_weights_of_the_same_name_are_not_touched(record, tmp_path):
    weights = tmp_path / "made.safetensors"
    weights.write_bytes(b"weights")
    assert Record.load(record.save(tmp_path / "made.json")).images is not None
    assert weights.read_bytes() == b"weights"


def test_an_altered_protocol_is_detected(record, tmp_path):
    path = record.save(tmp_path / "made.json")
    raw = json.loads(path.read_text())
    raw["protocol"]["eps"] = [0.05, 0.2]
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=rf"the protocol does not match its id {record.protocol_id} .* was altered"):
        Record.load(path)


def without(*path: str) -> Any:
    """Removes a field."""

    def change(raw: dict[str, Any]) -> dict[str, Any]:
        at = raw
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]
        return raw

    return change


def with_column(name: str, values: Any) -> Any:
    """Puts other values into the outcomes."""

    def change(raw: dict[str, Any]) -> dict[str, Any]:
        raw["outcomes"]["same"].pop(name, None)
        raw["outcomes"]["each"][name] = values
        return raw

    return change


DAMAGES = {
    "no protocol id": (without("protocol_id"), r"damaged record: KeyError\('protocol_id'\)"),
    "no protocol": (without("protocol"), r"damaged record: KeyError\('protocol'\)"),
    "no outcomes": (without("outcomes"), r"damaged record: KeyError\('outcomes'\)"),
    "a column gone": (without("outcomes", "each", "sample"), "damaged record: TypeError"),
    "too few lines": (
        lambda raw: {**raw, "outcomes": {**raw["outcomes"], "n": 13}},
        "damaged record: IndexError",
    ),
    "another version": (lambda raw: {**raw, "format": "robustbench_vit/record/0"}, "not a record of this version"),
    "a list": (lambda raw: [raw], "not a record of this version"),
    "a list for the protocol": (lambda raw: {**raw, "protocol": [1]}, "does not match its id"),
    "too many lines": (
        lambda raw: {**raw, "outcomes": {**raw["outcomes"], "n": 11}},
        "damaged record: IndexError",
    ),
    "a field too many": (
        lambda raw: {**raw, "outcomes": {**raw["outcomes"], "same": {"odd": 1}}},
        "damaged record: TypeError.*no field 'odd'",
    ),
    "passes in words": (with_column("forwards", ["1"] * 12), "damaged record: TypeError.*'forwards': an integer"),
    "too many passes": (with_column("forwards", [10**30] * 12), "damaged record: OverflowError"),
    "ids that are no text": (with_column("sample", [*range(12)]), "damaged record: TypeError"),
    "a distance that is none": (with_column("distance", [float("nan")] * 12), "damaged record: ValueError"),
    "a column in words": (with_column("by", "twelve words"), "damaged record: TypeError.*'by' is no list"),
    "outcomes in words": (lambda raw: {**raw, "outcomes": "many"}, "damaged record: TypeError"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_records_are_refused(record, tmp_path, case):
    change, message = DAMAGES[case]
    path = record.save(tmp_path / "made.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message) as caught:
        Record.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("form", ["robustbench_vit/record/3", "robustbench_vit/record/10"])
def test_a_newer_format_asks_for_an_upgrade(record, tmp_path, form):
    path = record.save(tmp_path / "made.json")
    path.write_text(json.dumps({"format": form, "outcomes": "in another way"}))
    with pytest.raises(InputError) as caught:
        Record.load(path)
    assert str(caught.value) == (
        f"{path}: written by a newer version of robustbench_vit, as {form};"
        " this version reads robustbench_vit/record/2; upgrade robustbench_vit to read it"
    )


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_committed_records_are_saved_byte_by_byte_as_they_stand(path, tmp_path):
    assert Record.load(path).save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_an_unknown_status_is_refused(record, tmp_path):
    path = record.save(tmp_path / "made.json")
    path.write_text(path.read_text().replace('"survived"', '"odd"'))
    with pytest.raises(InputError, match="damaged record: ValueError"):
        Record.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"<html>", b"\xff\xfe\x00"])
def test_files_that_are_no_json_are_refused(tmp_path, content):
    path = tmp_path / "made.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable record"):
        Record.load(path)
    with pytest.raises(InputError, match="not a readable record"):
        Record.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_images_are_refused(record, tmp_path, content):
    path = record.save(tmp_path / "made.json")
    path.with_suffix(".images.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"made\.images\.safetensors: not the images of a record"):
        Record.load(path)


def test_summaries_are_counted_from_the_outcomes(record):
    small, large = record.at(eps=0.1), record.at("cascade", 0.2)
    assert record.n == small.n == 6
    assert small.clean_accuracy == pytest.approx(5 / 6)
    assert small.robust_accuracy == pytest.approx(1 / 6)
    assert large.robust_accuracy == 0
    assert small.verdicts == ["misclassified", "first", "first", "second", "second", "robust"]
    assert small.interval() == wilson(1, 6, 0.95)
    assert small.interval(0.5) == wilson(1, 6, 0.5) != small.interval()
    assert record.survivors("cascade", 0.1) == {"first": 3, "second": 1}
    assert record.survivors("cascade", 0.2) == {"first": 3, "second": 0}
    assert torch.equal(record.adversarials, torch.from_numpy(record.images))


def test_a_narrowed_record_says_which_samples_are_robust_and_what_they_cost(record):
    small = record.at(eps=0.1)
    assert small.samples == [f"s{i}" for i in range(6)]
    assert small.robust.dtype == bool
    assert small.robust.tolist() == [False] * 5 + [True]
    assert small.mean("forwards") == (1 + 11 + 12 + 99) / 6
    assert small.mean("backwards") == 4 * 4 / 6
    assert small.interval(method="wilson") == small.interval()
    with pytest.raises(InputError, match="no mean of 'seconds'; there are: forwards, backwards"):
        small.mean("seconds")
    with pytest.raises(InputError, match="no interval 'wald'; there are: wilson"):
        small.interval(method="wald")


def test_numbers_follow_the_outcomes_and_nothing_else(record):
    fallen = tuple(dataclasses.replace(o, status=Status.BROKEN, by="second") for o in record.at(eps=0.1).outcomes)
    changed = dataclasses.replace(record, outcomes=fallen)
    assert changed.robust_accuracy == 0
    assert changed.clean_accuracy == 1
    assert changed.protocol_id == record.protocol_id


def test_several_budgets_need_a_choice(record):
    for summary in ("robust_accuracy", "verdicts", "samples", "robust"):
        with pytest.raises(InputError, match=r"several attacks or budgets, \[\('cascade', 0.1\), \('cascade', 0.2\)\]"):
            getattr(record, summary)
    with pytest.raises(InputError, match=r"no outcomes for attack 'pgd' at eps None; the record holds cascade at "):
        record.at("pgd")
    with pytest.raises(InputError, match=r"no outcomes for attack None at eps 0\.3"):
        record.at(eps=0.3)


def test_a_frame_has_a_line_per_outcome(record):
    frame = record.to_frame()
    assert len(frame) == 12
    assert list(frame.columns[:9]) == [
        "sample",
        "attack",
        "norm",
        "eps",
        "verdict",
        "by",
        "forwards",
        "backwards",
        "distance",
    ]
    assert frame[frame.eps == 0.1].verdict.tolist() == record.at(eps=0.1).verdicts
    assert frame[frame.eps == 0.1].forwards.tolist() == [1, 11, 12, 0, 0, 99]
    assert set(frame.columns) == {f.name for f in dataclasses.fields(Outcome)} | {"verdict"}


def test_equal_protocols_have_equal_ids_whatever_the_order_of_their_fields():
    assert protocol_id({"a": 1, "b": [1.0, "é"]}) == protocol_id({"b": [1.0, "é"], "a": 1})
    assert len({protocol_id({"a": value}) for value in (1, 2, "1", [1], None)}) == 5
    assert len(protocol_id({})) == 16


def test_only_survivors_and_certified_samples_are_robust():
    made = {s: Outcome("s", "a", "linf", 0.1, "untargeted", s, by="lane") for s in Status}
    assert {s for s, outcome in made.items() if outcome.robust} == {Status.SURVIVED, Status.CERTIFIED}
    assert {s: outcome.verdict for s, outcome in made.items()} == {
        Status.MISCLASSIFIED: "misclassified",
        Status.BROKEN: "lane",
        Status.SURVIVED: "robust",
        Status.CERTIFIED: "robust",
        Status.ABSTAINED: "abstained",
        Status.NOT_RUN: "not_run",
    }


def test_differing_verdicts_are_named(record):
    assert same_verdicts(record.outcomes, record.outcomes) == {}
    other = [dataclasses.replace(o, status=Status.SURVIVED) if o.sample == "s1" else o for o in record.outcomes]
    assert same_verdicts(record.outcomes, other[:-1]) == {"cascade": ["s1", "s1", "s5"]}
    slower = [dataclasses.replace(o, forwards=o.forwards + 1) for o in record.outcomes]
    assert same_verdicts(record.outcomes, slower) == {}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(self: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_images_keep_their_bits(record, tmp_path):
    images = np.nextafter(np.full((2, 1, 2, 2), 0.1, np.float32), np.float32(1))[:, :, ::-1]
    loaded = Record.load(dataclasses.replace(record, images=images).save(tmp_path / "r.json"))
    assert np.array_equal(loaded.images, images)
    assert loaded.images.dtype == np.float32


def test_the_pages_python_runs(monkeypatch, capsys):
    root = Path(__file__).parents[2]
    lines = (root / "docs" / "records.md").read_text(encoding="utf-8").splitlines()
    monkeypatch.chdir(root)
    if not COMMITTED:
        pytest.skip("no committed records")
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), names)
    assert len(names["lost"]) == round(names["best"].n * (1 - names["best"].robust_accuracy)) > 0
    assert capsys.readouterr().out.startswith("0.6")
