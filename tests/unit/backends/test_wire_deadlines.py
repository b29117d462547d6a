"""One timer for all calls."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends import _wire_deadlines
from scaleinfer.backends._wire_deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that goes on by hand, and a loop that has but timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Timer]] = []
        self.armed = 0

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self.timers.append((self.now + delay, timer))
        self.armed += 1
        return timer

    def run_until(self, end: float) -> None:
        while True:
            due = [entry for entry in self.timers if not entry[1].gone and entry[0] <= end]
            if not due:
                break
            at, timer = min(due, key=lambda entry: entry[0])
            self.now = max(self.now, at)
            timer.gone = True
            timer.callback()
        self.now = end


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.gone = False

    def cancel(self) -> None:
        self.gone = True


class Call:
    def __init__(self, clock: Clock, deadline: float) -> None:
        self.clock, self.deadline = clock, deadline
        self.expired_at: float | None = None

    def expire(self) -> None:
        assert self.expired_at is None
        self.expired_at = self.clock.now
        self.deadline = math.inf


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_wire_deadlines, "time", clock)
    return clock


def deadlines(clock: Clock, calls: list[Call]) -> Deadlines:
    loop: Any = clock
    return Deadlines(loop, lambda: calls)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 10), st.booleans()), max_size=30))
def test_never_early_and_hardly_late(plan: list[tuple[float, float, bool]]) -> None:
    clock, calls = Clock(), list[Call]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_wire_deadlines, "time", clock)
        watch = deadlines(clock, calls)
        for wait, timeout, ends in plan:
            clock.run_until(clock.now + wait)
            call = Call(clock, clock.now + timeout)
            calls.append(call)
            watch.note(call.deadline)
            if ends:  # it is answered at once
                call.deadline = math.inf
        asked = [(call, call.deadline) for call in calls]
        clock.run_until(clock.now + 20)
    for call, deadline in asked:
        if math.isinf(deadline):
            continue
        assert call.expired_at is not None
        assert deadline <= call.expired_at <= deadline + 0.0201
    assert all(timer.gone for _, timer in clock.timers)


def test_calls_of_one_length_share_a_timer(clock: Clock) -> None:
    calls: list[Call] = []
    watch = deadlines(clock, calls)
    for _ in range(1000):
        call = Call(clock, clock.now + 60)
        calls.append(call)
        watch.note(call.deadline)
        clock.run_until(clock.now + 0.5)
        call.deadline = math.inf
    assert clock.armed < 20


def test_calls_without_a_deadline_need_no_timer(clock: Clock) -> None:
    deadlines(clock, []).note(math.inf)
    assert clock.armed == 0


def test_stop(clock: Clock) -> None:
    call = Call(clock, 101.0)
    watch = deadlines(clock, [call])
    watch.note(call.deadline)
    watch.stop()
    clock.run_until(200)
    assert call.expired_at is None


@pytest.mark.anyio
async def test_on_a_real_loop() -> None:
    ended = asyncio.Event()

    class Real:
        deadline = 0.0

        def expire(self) -> None:
            self.deadline = math.inf
            ended.set()

    Deadlines(asyncio.get_running_loop(), lambda: [Real()]).note(0.0)
    await ended.wait()
