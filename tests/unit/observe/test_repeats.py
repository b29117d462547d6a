from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.observe._repeats import Repeats


def test_the_first_of_a_kind_is_shown_and_then_powers_of_ten() -> None:
    repeats = Repeats()
    shown = [repeats.count("item 1: slow down", "RateLimited", now) for now in range(0, 20000, 20)]
    assert [number for number in shown if number] == [1, 10, 100, 1000]
    assert repeats.repeated() == [("RateLimited", 1000)]


def test_a_fast_storm_stays_quiet_for_a_while() -> None:
    repeats = Repeats()
    shown = [repeats.count("x", None, number / 1000) for number in range(30_000)]
    assert [number for number in shown if number] == [1, 10_001]


def test_texts_that_differ_in_numbers_are_one_kind() -> None:
    repeats = Repeats()
    assert repeats.count("item 1: timed out after 30 s", None, 0) == 1
    assert repeats.count("item 2: timed out after 31 s", None, 0) == 0
    assert repeats.count("item 2: refused", None, 0) == 1
    assert repeats.repeated() == [("item #: timed out after # s", 2)]


@given(st.lists(st.text(max_size=5), max_size=300))
def test_every_message_is_counted_and_few_kinds_are_kept(texts: list[str]) -> None:
    repeats = Repeats()
    shown = [repeats.count(text, None, 0) for text in texts]
    assert sum(1 for number in shown if number) <= 51
    assert sum(repeats._counts.values()) == len(texts)
    assert len(repeats._counts) <= 51
