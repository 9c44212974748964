"""The order of samples, and who waits for whom."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vit.errors import InputError
from robustbench_vit.statistics import in_order, sample_order

IDS = [f"digits/test/{number}" for number in range(200)]


def test_the_order_is_fixed_for_all_times() -> None:
    """Committed decisions depend on it: a change here is a change of every gate."""
    assert sample_order(IDS[:10], 0) == [0, 7, 1, 5, 6, 8, 3, 2, 4, 9]
    assert sample_order(IDS[:10], 1) != sample_order(IDS[:10], 0)
    assert sorted(sample_order(IDS, 3)) == list(range(200))
    assert sample_order([], 0) == []


@given(st.integers(0, 2**31), st.integers(1, 200), st.randoms())
def test_two_samples_keep_their_order_whatever_stands_beside_them(seed: int, n: int, random: Random) -> None:
    some = IDS[:n]
    random.shuffle(some)
    order = [some[position] for position in sample_order(some, seed)]
    all_of_them = [IDS[position] for position in sample_order(IDS, seed)]
    assert order == [sample for sample in all_of_them if sample in set(some)]


@given(st.permutations(range(30)))
def test_samples_come_in_the_given_order_and_as_soon_as_they_may(finished: list[int]) -> None:
    waiting = in_order([str(number) for number in range(30)])
    given_out: list[tuple[str, int]] = []
    for count, number in enumerate(finished, 1):
        given_out += waiting.finish(str(number), number)
        first_missing = min(set(range(31)) - set(finished[:count]))
        assert given_out == [(str(before), before) for before in range(first_missing)]
        assert (waiting.given, waiting.waiting) == (first_missing, count - first_missing)


def test_samples_that_cannot_finish() -> None:
    waiting = in_order(["a", "b"])
    waiting.finish("b", True)
    with pytest.raises(InputError, match="sample 'b' finished twice"):
        waiting.finish("b", True)
    assert waiting.finish("a", False) == [("a", False), ("b", True)]
    with pytest.raises(InputError, match="sample 'a' finished twice"):
        waiting.finish("a", True)
    with pytest.raises(InputError, match="sample 'c' does not stand in the order"):
        waiting.finish("c", True)
    with pytest.raises(InputError, match="sample 'a' stands in the order twice"):
        in_order(["a", "b", "a"])
