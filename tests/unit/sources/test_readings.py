"""What sensors send becomes a finite number, or is refused with a reason."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import ConfigError
from edge_agent.sources import readings
from edge_agent.sources.readings import Unusable

TREE = {"temperature": 21.5, "a": {"b": [{"c": 1}, {"c": True}]}, "x-1": {"Y Z": "7"}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("temperature", 21.5),
        ("a.b[0].c", 1),
        ("a.b[1].c", True),
        ("x-1.Y Z", "7"),
        ("a.b[2].c", None),
        ("temperature.x", None),
        ("a[0]", None),
        ("none", None),
    ],
)
def test_a_path_finds_its_value(path: str, value: Any) -> None:
    assert readings.at(TREE, readings.path(path)) == value


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[-1]", "a[0", "a]", "a[0]b", ".".join("a" * 20)]
)
def test_a_path_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        readings.path(text)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1),
        (-2.5, -2.5),
        (True, 1),
        (False, 0),
        ("ON", 1),
        ("off", 0),
        ("Open", 1),
        ("closed", 0),
        (" 21.5 ", 21.5),
        ("-1e3", -1000),
        (".5", 0.5),
    ],
)
def test_numbers_words_and_switches(value: Any, number: float) -> None:
    assert readings.number(value) == number


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "non_finite"),
        (math.inf, "non_finite"),
        ("nan", "non_finite"),
        ("-Infinity", "non_finite"),
        ("1e999", "non_finite"),
        (10**400, "non_finite"),
        ("", "malformed"),
        ("21,5", "malformed"),
        ("1_000", "malformed"),
        ("٣", "malformed"),
        ("12 °C", "malformed"),
        ([1], "malformed"),
        ({}, "malformed"),
        (None, "malformed"),
        ("9" * 100, "malformed"),
    ],
)
def test_what_is_no_finite_number_is_refused_with_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        readings.number(value)
    assert caught.value.reason == reason


def test_a_decimal_comma_where_it_was_asked_for() -> None:
    assert readings.number("21,5", decimal=",") == 21.5


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"[" * 60_000, "malformed"),
        (b"{" * 10, "malformed"),
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (b'{"a": NaN}', "malformed"),
        (b" " * 70_000, "oversize"),
    ],
)
def test_bytes_that_are_no_message_are_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        readings.decode(payload)
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
def test_any_bytes_become_finite_numbers_or_are_refused(payload: bytes) -> None:
    try:
        tree = readings.decode(payload)
        numbers = [readings.number(value) for _, value in readings.leaves(tree)]
    except Unusable:
        return
    assert all(map(math.isfinite, numbers))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    )
)
def test_leaves_are_found_in_anything(tree: Any) -> None:
    for name, value in readings.leaves(tree):
        assert isinstance(name, str)
        with contextlib.suppress(Unusable):  # 1e999, NaN
            assert math.isfinite(readings.number(value))
