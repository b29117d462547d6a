from __future__ import annotations

import math
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing._schedule import Slots, Timers


def test_unlimited_slots_let_everybody_in() -> None:
    slots: Slots[int] = Slots(None)
    assert all(slots.enter(i) for i in range(1000))
    assert slots.leave() is None


@given(capacity=st.integers(1, 4), moves=st.lists(st.sampled_from("elw"), max_size=60))
def test_slots_are_kept_in_order_of_arrival(capacity: int, moves: list[str]) -> None:
    slots: Slots[int] = Slots(capacity)
    held, queue = 0, deque[int]()
    for number, move in enumerate(moves):
        if move == "e":
            if slots.enter(number):
                held += 1
            else:
                queue.append(number)
        elif move == "l" and held:
            following = slots.leave()
            assert following == (queue.popleft() if queue else None)
            held -= following is None
        elif move == "w" and queue:
            gone = queue.pop()
            assert slots.withdraw(gone)
            assert not slots.withdraw(gone)
        assert slots.taken == held <= capacity
        assert slots.waiting == len(queue)
        assert not queue or held == capacity


@given(
    dues=st.lists(st.floats(0, 1, allow_nan=False), max_size=50),
    step=st.floats(0.0005, 0.3),
)
def test_timers_are_never_early_and_at_most_a_tick_late(dues: list[float], step: float) -> None:
    timers: Timers[float] = Timers(tick=0.001)
    for due in dues:
        timers.add(due, due)
    popped: list[float] = []
    now = 0.0
    while timers.next_due is not None:
        now = max(now + step, timers.next_due)
        batch = timers.pop(now)
        assert batch
        assert all(due <= now + 1e-9 for due in batch)
        assert timers.next_due is None or timers.next_due > now
        popped += batch
    assert sorted(popped) == sorted(dues)
    ticks = [math.ceil(due / 0.001) for due in popped]
    assert ticks == sorted(ticks)


def test_what_is_due_is_popped_within_a_tick() -> None:
    timers: Timers[str] = Timers(tick=0.01)
    timers.add(0.005, "a")
    assert timers.pop(0.0049) == []
    assert timers.pop(0.01) == ["a"]
    assert timers.next_due is None
