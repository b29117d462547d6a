"""Intervals between messages, and how much work a worker holds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.fleet._pace import Pace, Tempo, interval_for, silence_for

SECONDS = st.floats(0.0, 100.0)


@given(st.integers(0, 100_000), st.booleans())
def test_more_workers_never_make_more_messages_than_a_mailbox_carries(
    workers: int, idle: bool
) -> None:
    interval = interval_for(workers, idle=idle)
    assert interval <= interval_for(workers + 1, idle=idle)
    assert interval >= interval_for(workers)
    assert workers / interval <= 200.0001 or interval == 60.0
    assert silence_for(interval) >= max(10.0, 3 * interval)


def test_a_few_workers_are_heard_often_and_thousands_seldom() -> None:
    assert interval_for(1) == interval_for(8) == 0.1
    assert interval_for(8, idle=True) == 0.25
    assert interval_for(2_000) == 10.0
    assert silence_for(0.1) == 10.0


def test_intervals_stretch_while_replies_are_late_and_relax_slowly() -> None:
    tempo = Tempo()
    for took in (2.0, 2.0, 0.1):
        tempo.heard(took)
    tempo.tick(1.0, 5.0)
    assert tempo.interval(1_000) == pytest.approx(7.5)
    # What is heard now is of the time before.
    tempo.heard(9.0)
    tempo.tick(1.0, 5.0)
    assert tempo.interval(1_000) == pytest.approx(7.5)
    tempo.heard(9.0)
    tempo.tick(7.0, 7.5)
    assert tempo.interval(1_000) == pytest.approx(11.25)
    tempo.heard(0.1)
    tempo.tick(1.0, 7.5)
    assert 10.0 < tempo.interval(1_000) < 11.25
    for _ in range(60):
        tempo.heard(0.1)
        tempo.tick(1.0, 7.5)
    assert tempo.interval(1_000) == 5.0


@given(st.lists(st.tuples(st.booleans(), SECONDS, st.floats(0.1, 60.0)), max_size=60))
def test_a_stretched_interval_stays_within_bounds(
    events: list[tuple[bool, float, float]],
) -> None:
    tempo = Tempo()
    for heard, seconds, interval in events:
        if heard:
            tempo.heard(seconds)
        else:
            tempo.tick(seconds, interval)
        assert interval_for(300) <= tempo.interval(300) <= min(60.0, 6 * interval_for(300))


def test_nothing_heard_changes_nothing() -> None:
    tempo = Tempo()
    tempo.heard(5.0)
    tempo.tick(1.0, 1.0)
    stretched = tempo.interval(1_000)
    tempo.tick(100.0, 1.0)
    assert tempo.interval(1_000) == stretched > interval_for(1_000)


def test_the_first_message_goes_at_once_and_the_next_after_an_interval() -> None:
    pace = Pace(2.0)
    assert pace.due(starving=False) == -math.inf
    pace.sent(10.0, 0)
    assert pace.due(starving=False) == 12.0
    assert 10.0 < pace.due(starving=True) < 12.0


def test_a_worker_holds_what_it_gets_through_before_the_reply_after_the_next() -> None:
    pace = Pace(1.0)
    assert pace.room(8) == 8
    pace.sent(0.0, 0)
    pace.sent(1.0, 100)
    assert pace.room(8) == 8 + 150
    # Down slowly: answers come in waves.
    pace.sent(2.0, 0)
    assert pace.room(8) == 8 + 105
    for second in range(3, 60):
        pace.sent(float(second), 0)
    assert pace.room(8) == 9


@given(st.lists(st.tuples(SECONDS, st.integers(0, 10_000)), max_size=30), st.integers(1, 256))
def test_the_room_is_bounded_and_never_less_than_the_places(
    messages: list[tuple[float, int]], places: int
) -> None:
    pace, now = Pace(), 0.0
    for seconds, answered in messages:
        now += seconds
        pace.sent(now, answered)
        assert places <= pace.room(places) <= places + 20_000
        assert now <= pace.due(starving=True) <= pace.due(starving=False)


def test_without_replies_messages_go_out_less_often() -> None:
    pace = Pace(4.0)
    intervals = []
    for _ in range(4):
        pace.lost()
        intervals.append(pace.interval)
    assert intervals == [8.0, 15.0, 15.0, 15.0]
    seldom = Pace(40.0)
    seldom.lost()
    assert seldom.interval == 40.0
