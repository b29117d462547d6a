from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.observe import _format


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (999, "999"), (1000, "1k"), (12345, "12.3k"), (999_600, "1M"), (2.5e9, "2.5G")],
)
def test_amount(number: float, words: str) -> None:
    assert _format.amount(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (4.25, "4.2 s"),
        (42, "42 s"),
        (59.7, "1:00"),
        (187, "3:07"),
        (7500, "2 h 05 min"),
        (280_000, "3 d 05 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert _format.duration(seconds) == words


@pytest.mark.parametrize(
    ("per_second", "words"),
    [(0.07, "4.2/min"), (1, "1/s"), (23.12, "23.1/s"), (15_000, "15k/s")],
)
def test_rate(per_second: float, words: str) -> None:
    assert _format.rate(per_second) == words


def test_percent_is_100_only_at_the_end() -> None:
    assert _format.percent(999, 1000) == "99%"
    assert _format.percent(0, 0) == "100%"


@pytest.mark.parametrize(
    ("usd", "words"), [(0, "$0.00"), (0.0312, "$0.031"), (1234.5, "$1,234.50")]
)
def test_money(usd: float, words: str) -> None:
    assert _format.money(usd) == words


@given(st.text(), st.integers(2, 30))
def test_one_line_is_one_short_printable_line(text: str, width: int) -> None:
    line = _format.one_line(text, width)
    assert len(line) <= width
    assert all(c.isprintable() for c in line)


def test_one_line_marks_what_is_cut() -> None:
    assert _format.one_line("a\n b\x1b[31m", 20) == "a b[31m"
    assert _format.one_line("abcdef", 4) == "abc…"
    assert _format.one_line("a" + " " * 1000 + "b", 10) == "a…"
