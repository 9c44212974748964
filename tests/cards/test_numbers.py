"""Numbers as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vit.cards import parse_number
from robustbench_vit.cards.numbers import show_number


@pytest.mark.parametrize(
    ("written", "meant"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.2", 0.2), ("1e-3", 1e-3), (0.2, 0.2), (1, 1.0), ("-1/4", -0.25)],
)
def test_reads_what_people_write(written: Any, meant: float) -> None:
    assert parse_number(written) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("8/0", "division by zero in '8/0'"),
        ("8/", "expected a number such as 0.2 or 8/255, got '8/'"),
        ("8/255/2", "expected a number such as 0.2 or 8/255, got '8/255/2'"),
        ("1.2.3/4", "expected a number such as 0.2 or 8/255, got '1.2.3/4'"),
        ("", "expected a number such as 0.2 or 8/255, got ''"),
        ("__import__('os')", "expected a number such as 0.2 or 8/255, got \"__import__('os')\""),
        (True, "expected a number such as 0.2 or 8/255, got True"),
        (None, "expected a number such as 0.2 or 8/255, got None"),
        ([1], "expected a number such as 0.2 or 8/255, got [1]"),
        ("inf", "expected a finite number, got inf"),
        ("nan", "expected a finite number, got nan"),
        ("1e999/1", "expected a finite number, got inf"),
    ],
)
def test_refuses_the_rest(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"expected|division") as caught:
        parse_number(written)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.2, "0.2"),
        (8 / 255, "8/255"),
        (1 / 255, "1/255"),
        (0.5, "0.5"),
        (51 / 255, "0.2"),
        (1 / 3, "85/255"),
        (3.0, "3"),
    ],
)
def test_shows_short_decimals_and_255ths(value: float, shown: str) -> None:
    assert show_number(value) == shown


@given(st.floats(min_value=1e-6, max_value=100))
def test_what_is_shown_reads_back(value: float) -> None:
    assert parse_number(show_number(value)) == value
