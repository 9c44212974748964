"""Outcomes held by column: a sequence like a tuple of them, and summaries that build none."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vit.records import Outcome, Record, Status
from robustbench_vit.records.outcomes import Outcomes

checked = settings(deadline=None, max_examples=80, derandomize=True, database=None)
RADII = st.none() | st.floats(0, 10)
LINES = st.lists(
    st.builds(
        Outcome,
        sample=st.text(max_size=2),
        attack=st.sampled_from(["a", "b"]),
        norm=st.just("linf"),
        eps=st.sampled_from([0.1, 0.2, 8 / 255]),
        criterion=st.sampled_from(["untargeted", "majority"]),
        status=st.sampled_from(list(Status)),
        by=st.none() | st.sampled_from(["first", "second"]),
        restart=st.none() | st.integers(0, 5),
        target=st.none() | st.integers(0, 999),
        distance=RADII,
        radius=RADII,
        k_of_m=st.none() | st.tuples(st.integers(0, 9), st.integers(1, 9)),
        forwards=st.integers(0, 10**12),
        backwards=st.integers(0, 10**12),
    ),
    max_size=8,
)
ONE = Outcome("s", "a", "linf", 0.1, "untargeted", Status.BROKEN, "first", 0, 3, 0.05, 0.5, (1, 2), 10, 5)
OTHERS: dict[str, Any] = {
    **dict.fromkeys(("sample", "attack", "norm", "criterion", "by"), "other"),
    **dict.fromkeys(("eps", "restart", "target", "distance", "radius", "forwards", "backwards"), 7),
    "status": Status.SURVIVED,
    "k_of_m": (2, 2),
}


def test_there_is_a_column_for_every_field():
    names = [field.name for field in dataclasses.fields(Outcomes)]
    assert names == [field.name for field in dataclasses.fields(Outcome)]


@checked
@given(lines=LINES)
def test_outcomes_are_a_sequence_like_their_tuple(lines):
    held, plain = Outcomes.of(iter(lines)), tuple(lines)
    assert tuple(held) == plain
    assert held == plain
    assert plain == held
    assert len(held) == len(plain)
    assert [held[i] for i in range(-len(plain), len(plain))] == [*plain, *plain]
    assert held[1:] == plain[1:]
    assert held[::-2] == plain[::-2]
    assert held[1:] != plain or not plain
    assert Outcomes.of(reversed(lines))[::-1] == held, "whatever the order of the vocabularies"
    assert Outcomes.of(held) is held
    assert pickle.loads(pickle.dumps(held)) == held
    with pytest.raises(IndexError):
        _ = held[len(plain)]


@checked
@given(lines=LINES)
def test_columns_say_what_the_outcomes_say(lines):
    held = Outcomes.of(lines)
    assert held.robust.tolist() == [o.robust for o in lines]
    assert held.verdicts == [o.verdict for o in lines]
    assert held.budgets() == list(dict.fromkeys((o.attack, o.eps) for o in lines))
    assert held.criterion.present() == list(dict.fromkeys(o.criterion for o in lines))
    assert held.where(attack="a", eps=0.2) == tuple(o for o in lines if (o.attack, o.eps) == ("a", 0.2))
    assert held.sample.distinct() == len({o.sample for o in lines})


@checked
@given(lines=LINES)
def test_json_gives_them_back_value_by_value(lines):
    again = Outcomes.unfolded(json.loads(json.dumps(Outcomes.of(lines).folded())))
    assert [dataclasses.astuple(o) for o in again] == [dataclasses.astuple(o) for o in lines]
    for one, other in zip(again, lines, strict=True):
        assert [*map(type, vars(one).values())] == [*map(type, vars(other).values())]


@pytest.mark.parametrize("name", OTHERS)
def test_a_difference_in_any_field_is_one(name):
    held = Outcomes.of([ONE, ONE])
    other = (ONE, dataclasses.replace(ONE, **{name: OTHERS[name]}))
    assert held == (ONE, ONE)
    assert held != other
    assert held != Outcomes.of(other)
    assert held != [ONE, ONE], "as a tuple would"


def test_no_number_differs_from_every_number():
    there, missing = (Outcomes.of([dataclasses.replace(ONE, distance=d)]) for d in (0.0, None))
    assert there != missing
    assert missing == (dataclasses.replace(ONE, distance=None),)
    assert missing[0].distance is None


WRONG = {
    "forwards": ("12", "'forwards': an integer is expected, not str"),
    "backwards": (1.5, "'backwards': an integer is expected, not float"),
    "distance": ("far", "'distance': a number is expected, not str"),
    "radius": (True, "'radius': a number is expected, not bool"),
    "sample": (7, "'sample' may be no int"),
    "eps": (None, "'eps' may be no NoneType"),
    "restart": ("0", "'restart' may be no str"),
    "target": (True, "'target' may be no bool"),
    "by": ([], "'by': unhashable type: 'list'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_other_types_are_refused(name):
    value, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        Outcomes.of([ONE, dataclasses.replace(ONE, **{name: value})])


def test_what_is_no_outcome_is_refused():
    with pytest.raises(TypeError, match="an Outcome is expected, not None"):
        Record({}, {}, (ONE, None), (), {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a number is expected, not nan"):
        Outcomes.of([dataclasses.replace(ONE, distance=math.nan)])


def test_a_line_says_what_they_are():
    assert repr(Outcomes.of([ONE, dataclasses.replace(ONE, eps=0.25)])) == "<2 outcomes: a at 0.1, a at 0.25>"


def test_summaries_tables_and_files_build_no_outcome(record, tmp_path, monkeypatch):
    """What makes boards of many samples quick."""
    record.save(tmp_path / "made.json")

    def built(self: Outcome, *args: Any, **fields: Any) -> None:
        raise AssertionError("an outcome was built")

    monkeypatch.setattr(Outcome, "__init__", built)
    loaded = Record.load(tmp_path / "made.json")
    small = loaded.at("cascade", 0.1)
    assert (loaded.n, small.robust_accuracy, small.complete) == (6, 1 / 6, True)
    assert small.survivors("cascade", 0.1) == {"first": 3, "second": 1}
    assert len(small.verdicts) == len(small.samples) == len(small.to_frame()) == 6
    assert loaded._repr_html_()
    assert loaded.outcomes == record.outcomes[:]
    loaded.save(tmp_path / "again.json")
    with pytest.raises(AssertionError, match="an outcome was built"):
        _ = loaded.outcomes[0]


def test_records_of_the_same_samples_share_their_ids(tmp_path):
    """A hundred records of ten thousand samples would else hold a million strings."""
    lines = [dataclasses.replace(ONE, sample=f"digits:{i}") for i in range(50)]
    first, second = (Record.load(Record({}, {}, lines, (), {}).save(tmp_path / name)) for name in ("a.json", "b.json"))
    assert all(a is b for a, b in zip(first.samples, second.samples, strict=True))


def test_columns_are_small():
    """Of an outcome: four numbers, a code of two bytes for the sample, and a byte for each other field."""
    held = Outcomes.of(dataclasses.replace(ONE, sample=f"{i}", distance=i / 7, forwards=i) for i in range(2000))
    columns = [getattr(held, field.name) for field in dataclasses.fields(held)]
    arrays = [column.codes if hasattr(column, "codes") else column.values for column in columns]
    assert all(isinstance(array, np.ndarray) for array in arrays)
    assert sum(array.nbytes for array in arrays) <= 2000 * (4 * 8 + 2 + 9)
