from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.engine._breaker import Breaker


def opened(*, seed: int = 0) -> Breaker:
    breaker = Breaker(seed=seed)
    for _ in range(5):
        breaker.started(0.0)
        breaker.failed(0.0, began=-1.0)
    assert not breaker.closed
    return breaker


def wake(breaker: Breaker, now: float) -> float:
    until = breaker.wake_at(now)
    assert until is not None
    return until


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert not breaker.allows(0.0)
    assert 0.9 <= wake(breaker, 0.0) <= 1.1


def test_a_success_in_between_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(100):
        for _ in range(4):
            breaker.failed(0.0)
        breaker.succeeded(0.0)
    assert breaker.closed


def test_five_by_chance_do_not_open_a_busy_endpoint() -> None:
    breaker, draw = Breaker(), random.Random(1).random
    in_a_row = longest = 0
    for _ in range(100_000):
        if draw() < 0.2:
            breaker.failed(0.0)
            in_a_row += 1
        else:
            breaker.succeeded(0.0)
            in_a_row = 0
        longest = max(longest, in_a_row)
    assert longest >= 5, "the draw proves nothing"
    assert breaker.statistics().openings == 0


def test_a_healthy_endpoint_that_dies_is_left_after_few_calls() -> None:
    breaker = Breaker()
    for _ in range(10_000):
        breaker.succeeded(0.0)
    calls = 0
    while breaker.allows(1.0):
        breaker.started(1.0)
        breaker.failed(1.0, began=0.5)
        calls += 1
    assert calls <= 25


def test_one_probe_at_a_time() -> None:
    breaker = opened()
    now = wake(breaker, 0.0)
    assert breaker.allows(now)
    breaker.started(now)
    assert not breaker.allows(now)
    assert breaker.wake_at(now) is None


def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = opened()
    now = wake(breaker, 0.0)
    breaker.started(now)
    breaker.released(now + 1, began=now)
    assert breaker.allows(now + 1)


def test_pauses_double_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        until = wake(breaker, now)
        pauses.append(until - now)
        breaker.started(until)
        breaker.failed(until, began=until)
        now = until
    assert pauses == pytest.approx([1, 2, 4, 4, 4, 4], rel=0.1)
    assert len(set(pauses)) == len(pauses), "no jitter"


def test_jitter_comes_from_the_seed() -> None:
    times = [wake(opened(seed=seed), 0.0) for seed in (1, 1, 2)]
    assert times[0] == times[1] != times[2]


def test_calls_in_flight_when_it_opened_change_nothing() -> None:
    breaker = opened()
    until = wake(breaker, 0.0)
    for late in (0.2, 0.5, until + 0.1):
        breaker.failed(late, began=-5.0)
    assert wake(breaker, 0.5) == until
    breaker.started(until + 0.2)
    breaker.failed(until + 0.3, began=-5.0)
    breaker.released(until + 0.3, began=-5.0)
    breaker.succeeded(until + 0.3, began=-5.0)
    assert breaker.statistics().state == "half-open"
    assert not breaker.allows(until + 0.4), "a stale call gave the probe's place away"


def test_a_good_probe_lets_a_few_through_and_then_all() -> None:
    breaker = opened()
    now = wake(breaker, 0.0)
    breaker.started(now)
    breaker.succeeded(now + 1, began=now)
    now += 1
    started = 0
    while breaker.allows(now):
        breaker.started(now)
        started += 1
    assert started == 16
    for _ in range(8):
        breaker.succeeded(now + 1, began=now)
    assert breaker.closed


def test_an_endpoint_that_breaks_under_many_calls_costs_few() -> None:
    breaker, now, calls = opened(), 0.0, 0
    while now < 60:
        until = breaker.wake_at(now)
        now = now + 0.01 if until is None else until
        breaker.started(now)
        breaker.succeeded(now, began=now)
        started = 0
        while breaker.allows(now):
            breaker.started(now)
            started += 1
        for _ in range(started):
            breaker.failed(now + 0.01, began=now)
        now += 0.01
        calls += 1 + started
    assert calls <= 17 * 17, "pauses did not grow"


class Calls(RuleBasedStateMachine):
    """Calls start when allowed and end in any order, long after what became of the breaker."""

    @initialize(seed=st.integers(0, 5))
    def make(self, seed: int) -> None:
        self.breaker = Breaker(seed=seed)
        self.now = 1.0
        self.running: list[float] = []
        self.opened_at = 0.0

    @rule(seconds=st.floats(0.01, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule()
    def start(self) -> None:
        self.breaker.started(self.now)
        self.running.append(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(["failed", "failed", "succeeded", "released"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        began = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        was_open = self.breaker.statistics().state == "open"
        getattr(self.breaker, outcome)(self.now, began=began)
        if not was_open and self.breaker.statistics().state == "open":
            self.opened_at = self.now

    @invariant()
    def never_stuck_and_never_flooded(self) -> None:
        until = self.breaker.wake_at(self.now)
        since = [began for began in self.running if began > self.opened_at]
        state = self.breaker.statistics().state
        assert until is None or self.now < until <= self.now + 4.4
        assert self.breaker.closed == (state == "closed")
        if not self.breaker.allows(self.now):
            assert until is not None or since, "neither time nor a call can bring it back"
        if state == "half-open":
            assert len(since) <= 1
        elif state == "trial":
            assert len(since) <= 16


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
