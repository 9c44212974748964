"""Outcomes are a view of retired rows: those of running lanes and turns one after another."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vit.records import Status
from robustbench_vit.records.rows import CleanResult, LaneSpec, breaking_row, credited, outcome

checked = settings(deadline=None, max_examples=200, derandomize=True, database=None)
RIGHT, WRONG = CleanResult("s", True, b""), CleanResult("s", False, b"")


def by_key(*rows):
    return {row.key: row for row in rows}


def test_a_misclassified_sample_was_never_attacked(lanes, row):
    found = outcome("a", "linf", lanes, 0.1, WRONG, by_key(row("key-1", "s", 0, True)))
    assert (found.status, found.forwards, found.backwards, found.by) == (Status.MISCLASSIFIED, 1, 0, None)


def test_the_first_lane_that_breaks_is_named_and_later_ones_cost_nothing(lanes, row):
    rows = by_key(row("key-1", "s", 0, True, 7, 2), row("key-2", "s", 0, True, 100, 100))
    found = outcome("a", "linf", lanes, 0.1, RIGHT, rows)
    assert (found.status, found.by, found.distance) == (Status.BROKEN, "first", 0.05)
    assert (found.forwards, found.backwards) == (1 + 7, 2)
    assert breaking_row(lanes, 0.1, "s", rows) == row("key-1", "s", 0, True, 7, 2)


def test_turns_count_up_to_the_first_success(lanes, row):
    rows = by_key(
        row("key-1", "s", 0, False, 5, 5),
        row("key-2", "s", 2, True, 1000, 1000),  # speculated, and too late
        row("key-2", "s", 1, True, 30, 20),
        row("key-2", "s", 0, False, 10, 10),
    )
    found = outcome("a", "linf", lanes, 0.1, RIGHT, rows)
    assert (found.by, found.restart, found.target) == ("second", 1, 1)
    assert (found.forwards, found.backwards) == (1 + 5 + 10 + 30, 5 + 10 + 20)


def test_what_has_not_run_is_said_so(lanes, row):
    rows = by_key(row("key-1", "s", 0, False), row("key-2", "s", 0, False), row("key-2", "s", 2, True))
    assert outcome("a", "linf", lanes, 0.1, RIGHT, rows).status is Status.NOT_RUN
    assert breaking_row(lanes, 0.1, "s", rows) is None
    assert outcome("a", "linf", lanes, 0.1, RIGHT, {}).status is Status.NOT_RUN


def test_a_survivor_paid_for_every_turn(lanes, row):
    rows = by_key(row("key-1", "s", 0, False), *(row("key-2", "s", turn, False) for turn in range(3)))
    found = outcome("a", "linf", lanes, 0.1, RIGHT, rows)
    assert (found.status, found.by, found.distance) == (Status.SURVIVED, None, None)
    assert (found.forwards, found.backwards) == (1 + 4 * 10, 4 * 3)


@pytest.mark.parametrize("other", [("key-9", "s"), ("key-1", "t")])
def test_rows_of_other_samples_lanes_and_radii_do_not_count(lanes, row, other):
    rows = by_key(row(other[0], other[1], 0, True))
    assert outcome("a", "linf", lanes, 0.1, RIGHT, rows).status is Status.NOT_RUN
    assert outcome("a", "linf", lanes, 0.2, RIGHT, by_key(row("key-1", "s", 0, True))).status is Status.NOT_RUN


@checked
@given(found=st.lists(st.none() | st.booleans(), min_size=1, max_size=7), seed=st.integers(0, 100))
def test_credit_does_not_depend_on_the_order_in_which_rows_retired(row, found, seed):
    rows = [row("k", "s", turn, hit) for turn, hit in enumerate(found) if hit is not None]
    random.Random(seed).shuffle(rows)
    counted, broken = credited(LaneSpec("l", "k", len(found)), 0.1, "s", by_key(*rows))
    expected = next((i for i, hit in enumerate(found) if hit is not False), len(found))
    assert [r.key.turn for r in counted[:expected]] == list(range(expected))
    if expected == len(found):
        assert broken is False
    else:
        assert broken is (True if found[expected] else None)
        assert len(counted) == expected + bool(found[expected])
