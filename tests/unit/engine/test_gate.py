from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine import Gate, Limiter

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


def gate_of(limit: int) -> tuple[Gate, Limiter, Callable[[], None]]:
    limiter = Limiter(limit)
    gate = Gate(lambda: limiter.has_room, limiter.started)

    def leave() -> None:
        limiter.ended()
        gate.wake()

    return gate, limiter, leave


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    gate, limiter, leave = gate_of(1)
    order: list[int] = []

    async def caller(number: int) -> None:
        await gate.enter(leave=leave)
        order.append(number)
        await asyncio.sleep(0)
        leave()

    await asyncio.gather(*(caller(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert limiter.statistics().in_flight == 0
    assert limiter.statistics().peak_in_flight == 1
    assert gate.waiting == 0


async def test_nobody_overtakes_those_who_wait() -> None:
    gate, _, leave = gate_of(1)
    await gate.enter(leave=leave)
    first = asyncio.create_task(gate.enter(leave=leave))
    await turns()
    leave()
    # The place is first's already, though it has not run yet.
    second = asyncio.create_task(gate.enter(leave=leave))
    await turns()
    assert first.done()
    assert not second.done()
    leave()
    await second
    leave()


async def test_cancelled_while_waiting() -> None:
    gate, limiter, leave = gate_of(1)
    await gate.enter(leave=leave)
    waiter = asyncio.create_task(gate.enter(leave=leave))
    await turns()
    assert gate.waiting == 1
    waiter.cancel()
    await turns()
    assert gate.waiting == 0
    leave()
    assert limiter.statistics().in_flight == 0
    await gate.enter(leave=leave)
    leave()


async def test_cancelled_just_as_it_got_its_place() -> None:
    gate, limiter, leave = gate_of(1)
    await gate.enter(leave=leave)
    waiter = asyncio.create_task(gate.enter(leave=leave))
    next_one = asyncio.create_task(gate.enter(leave=leave))
    await turns()
    leave()
    waiter.cancel()
    await turns()
    assert waiter.cancelled()
    assert next_one.done()
    leave()
    assert limiter.statistics().in_flight == 0


@given(
    limit=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=25),
)
def test_whatever_is_cancelled_no_place_is_lost(limit: int, plan: list[tuple[int, int]]) -> None:
    async def main() -> None:
        gate, limiter, leave = gate_of(limit)

        async def caller(hold: int) -> None:
            await gate.enter(leave=leave)
            try:
                await turns(hold)
            finally:
                leave()

        tasks = []
        for hold, cancel_at in plan:
            tasks.append(asyncio.create_task(caller(hold)))
            await turns(cancel_at % 3)
            if cancel_at > 3:
                tasks[cancel_at % len(tasks)].cancel()
        await asyncio.wait(tasks, timeout=5)
        assert all(task.done() for task in tasks)
        assert limiter.statistics().in_flight == 0
        assert limiter.statistics().peak_in_flight <= limit
        assert gate.waiting == 0

    with asyncio.Runner() as runner:
        runner.run(main())
