from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine import Gate

pytestmark = pytest.mark.anyio

ANYWHERE: frozenset[int] = frozenset()


class Places:
    """Numbered places, some of which a caller may avoid."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = list(range(limit))
        self.taken: set[int] = set()
        self.asked = 0
        self.gate: Gate[frozenset[int], int] = Gate(self.take)

    def take(self, avoid: frozenset[int]) -> int | None:
        self.asked += 1
        for place in self.free:
            if place not in avoid:
                self.free.remove(place)
                self.taken.add(place)
                return place
        return None

    def leave(self, place: int) -> None:
        self.taken.remove(place)
        self.free.append(place)
        self.gate.wake()

    async def enter(self, *avoid: int, priority: int = 0) -> int:
        wanted = frozenset(avoid) if avoid else ANYWHERE
        return await self.gate.enter(wanted, leave=self.leave, priority=priority)

    def task(self, *avoid: int, priority: int = 0) -> asyncio.Task[int]:
        return asyncio.create_task(self.enter(*avoid, priority=priority))


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    places = Places(1)
    order: list[int] = []

    async def caller(number: int) -> None:
        place = await places.enter()
        order.append(number)
        await asyncio.sleep(0)
        places.leave(place)

    await asyncio.gather(*(caller(number) for number in range(30)))
    assert order == list(range(30))
    assert places.free == [0]
    assert places.gate.waiting == 0


async def test_a_higher_priority_goes_first() -> None:
    places = Places(1)
    held = await places.enter()
    order: list[str] = []

    async def caller(name: str, priority: int) -> None:
        place = await places.enter(priority=priority)
        order.append(name)
        places.leave(place)

    names = [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", 9)]
    tasks = [asyncio.create_task(caller(*named)) for named in names]
    await turns()
    assert places.gate.waiting == 6
    places.leave(held)
    await asyncio.gather(*tasks)
    assert "".join(order) == "fceadb"


async def test_nobody_overtakes_those_who_wait() -> None:
    places = Places(1)
    held = await places.enter()
    first = places.task()
    await turns()
    places.leave(held)
    # The place is first's already, though it has not run yet.
    second = places.task()
    assert places.gate.enter_nowait(frozenset()) is None
    await turns()
    assert first.done()
    assert not second.done()
    assert places.gate.enter_nowait(frozenset()) is None
    places.leave(await first)
    places.leave(await second)
    assert places.gate.enter_nowait(frozenset()) == 0


async def test_the_place_that_was_found_is_returned() -> None:
    places = Places(3)
    assert await places.enter(0, 1) == 2
    assert places.gate.enter_nowait(frozenset({0})) == 1
    assert places.gate.enter_nowait(frozenset({0})) is None
    assert places.gate.enter_nowait(frozenset()) == 0


async def test_who_can_take_nothing_of_what_there_is_blocks_nobody() -> None:
    places = Places(2)
    both = [await places.enter(), await places.enter()]
    picky = [places.task(1) for _ in range(5)]
    easy = places.task()
    await turns()
    places.leave(both[1])
    assert await easy == 1
    assert not any(task.done() for task in picky)
    # Nor does it block who comes later.
    places.leave(1)
    assert await places.enter() == 1
    # They have kept their turn.
    late = places.task()
    await turns()
    places.leave(both[0])
    assert await picky[0] == 0
    places.leave(1)
    assert await late == 1
    for task in picky[1:]:
        task.cancel()
    await turns()
    assert places.gate.waiting == 0


async def test_few_are_asked_however_many_wait() -> None:
    places = Places(2)
    both = [await places.enter(), await places.enter()]
    tasks = [places.task(1, 2 + number) for number in range(2000)]
    await turns()
    before = places.asked
    places.leave(both[1])
    assert places.asked - before == 8
    same: Gate[None, int] = Gate(lambda _: places.take(frozenset({0, 1})))
    waiting = [asyncio.create_task(same.enter(None, leave=places.leave)) for _ in range(20)]
    await turns()
    before = places.asked
    same.wake()
    assert places.asked - before == 1
    for task in [*tasks, *waiting]:
        task.cancel()
    await asyncio.wait([*tasks, *waiting])
    assert places.gate.waiting == same.waiting == 0


async def test_take_is_not_asked_when_there_is_no_room_at_all() -> None:
    asked: list[int] = []
    room = False

    def take(number: int) -> int | None:
        asked.append(number)
        return number if room else None

    gate = Gate(take, has_room=lambda: room)
    task = asyncio.create_task(gate.enter(7, leave=asked.append))
    await turns()
    gate.wake()
    assert asked == [7]
    room = True
    gate.wake()
    assert await task == 7
    assert asked == [7, 7]


async def test_cancelled_while_waiting() -> None:
    places = Places(1)
    held = await places.enter()
    waiter = places.task()
    await turns()
    assert places.gate.waiting == 1
    waiter.cancel()
    await turns()
    assert places.gate.waiting == 0
    places.leave(held)
    assert await places.enter() == 0


async def test_cancelled_just_as_it_got_its_place() -> None:
    places = Places(1)
    held = await places.enter()
    waiter, next_one = places.task(), places.task()
    await turns()
    places.leave(held)
    waiter.cancel()
    await turns()
    assert waiter.cancelled()
    assert await next_one == 0


async def test_many_cancelled_at_once_do_not_hide_who_still_waits() -> None:
    places = Places(1)
    held = await places.enter()
    gone = [places.task() for _ in range(100)]
    stays = places.task()
    await turns()
    for task in gone:
        task.cancel()
    # Before any of their tasks has run.
    places.leave(held)
    assert await stays == 0
    await turns()
    assert places.gate.waiting == 0


async def test_a_long_queue_is_served_in_order_without_asking_many() -> None:
    places = Places(1)
    held = await places.enter()
    served: list[int] = []

    async def caller(number: int) -> None:
        place = await places.enter(priority=number % 2)
        served.append(number)
        places.leave(place)

    tasks = [asyncio.create_task(caller(number)) for number in range(5_000)]
    await turns()
    assert places.gate.waiting == 5_000
    places.leave(held)
    await asyncio.gather(*tasks)
    assert served == [*range(1, 5_000, 2), *range(0, 5_000, 2)]
    assert places.asked <= 2 * 5_000 + 2 * 8


@given(
    limit=st.integers(1, 4),
    plan=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 6), st.integers(-1, 1), st.none() | st.integers(0, 3)
        ),
        min_size=1,
        max_size=25,
    ),
)
def test_whatever_is_cancelled_no_place_is_lost(
    limit: int, plan: list[tuple[int, int, int, int | None]]
) -> None:
    async def main() -> None:
        places = Places(limit)

        async def caller(hold: int, priority: int, avoid: tuple[int, ...]) -> None:
            place = await places.enter(*avoid, priority=priority)
            assert place not in avoid
            try:
                await turns(hold)
            finally:
                places.leave(place)

        tasks = []
        for hold, cancel_at, priority, avoid in plan:
            shunned = () if avoid is None or limit == 1 else (avoid,)
            tasks.append(asyncio.create_task(caller(hold, priority, shunned)))
            await turns(cancel_at % 3)
            if cancel_at > 3:
                tasks[cancel_at % len(tasks)].cancel()
        await asyncio.wait(tasks, timeout=5)
        assert all(task.done() for task in tasks)
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        assert sorted(places.free) == list(range(limit))
        assert places.gate.waiting == 0

    with asyncio.Runner() as runner:
        runner.run(main())
