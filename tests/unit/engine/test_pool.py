"""The pool: who shares it, on which loop, and that nobody waits for a place for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleinfer import OpenAIBackend
from scaleinfer.engine import Concurrency, RateLimit, pool_of
from scaleinfer.engine import _pool as pools
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._limiter import FixedLimiter, Outcome
from scaleinfer.engine._pool import Pool
from scaleinfer.engine._wants import ANYWHERE, Want

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


def backend(**more: float) -> OpenAIBackend:
    return OpenAIBackend("http://127.0.0.1:9/v1", model="m", **more)  # type: ignore[arg-type] # numbers only


@pytest.fixture
def two() -> Iterator[list[OpenAIBackend]]:
    yield [backend(), backend()]
    gc.collect()


async def test_the_same_adapters_and_rules_share_a_pool(two: list[OpenAIBackend]) -> None:
    bounds = Concurrency(max=8)
    for rules in ((None, None), (4, None), (bounds, None), (None, RateLimit(60))):
        assert pool_of(two, *rules) is pool_of(two, *rules)
    found = {id(pool_of(two, *rules)) for rules in ((None, None), (4, None), (bounds, None))}
    assert len(found) == 3
    # Equal bounds that are another object may be changed apart.
    assert pool_of(two, Concurrency(max=8)) is not pool_of(two, bounds)
    assert pool_of(two[:1], None) is not pool_of(two, None)
    assert pool_of([backend()], None) is not pool_of([backend()], None)


async def test_pools_do_not_add_up(two: list[OpenAIBackend]) -> None:
    for _ in range(300):
        pool_of(two, Concurrency(max=8))
        pool_of([two[0], backend()], None)
    assert len(pools._POOLS[two[0]]) <= 64
    kept = pool_of(two, 4)
    for _ in range(50):
        pool_of(two, Concurrency(max=8))
        assert pool_of(two, 4) is kept


def test_a_pool_follows_its_adapters_from_loop_to_loop(two: list[OpenAIBackend]) -> None:
    async def found() -> Pool:
        return pool_of(two, 4)

    assert asyncio.run(found()) is asyncio.run(found())

    async def left_in_flight() -> Pool:
        pool = pool_of(two, 4)
        assert pool.enter_nowait(ANYWHERE) is not None
        return pool

    # Its loop ended under a call, whose place nobody will give back.
    assert asyncio.run(left_in_flight()) is not asyncio.run(found())


def test_loops_that_run_at_the_same_time_have_a_pool_each(two: list[OpenAIBackend]) -> None:
    both, first = threading.Barrier(2, timeout=20), threading.Event()
    found: list[Pool] = []

    async def idle(wait: bool) -> None:
        if wait:
            first.wait(20)
        pool = pool_of(two, 4)
        first.set()
        await asyncio.to_thread(both.wait)  # nothing is in flight in either of them
        assert pool_of(two, 4) is pool
        found.append(pool)

    threads = [threading.Thread(target=lambda w=w: asyncio.run(idle(w))) for w in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pool) for pool in found}) == 2


async def test_a_single_endpoint_is_never_shut_off(two: list[OpenAIBackend]) -> None:
    def break_it(pool: Pool) -> Endpoint:
        endpoint = pool.endpoints[0]
        for number in range(100):
            endpoint.started(float(number))
            endpoint.ended(number + 0.5, Outcome.FAILED, began=float(number), broken=True)
        return endpoint

    assert break_it(pool_of(two[:1], 4)).breaker.closed
    assert not break_it(pool_of(two, 4)).breaker.closed


async def test_open_files_cap_the_places() -> None:
    one = backend(concurrency=64)
    one.most_in_flight = 10
    assert pool_of([one], 1000).limit == 10
    assert pool_of([one], 5).limit == 5
    assert pool_of([one], None).limit == 10


async def test_who_waits_is_woken_when_time_alone_makes_room() -> None:
    one = backend(rate_limit=RateLimit(requests_per_minute=1200))  # type: ignore[arg-type] # a limit
    pool = pool_of([one], 100)
    async with asyncio.timeout(20):
        places = await asyncio.gather(*(pool.enter(ANYWHERE, 0) for _ in range(24)))
    assert places == [0] * 24
    assert pool.queued == 0


@settings(max_examples=60, deadline=None)
@given(
    limits=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    script=st.lists(
        st.tuples(st.sampled_from(["enter", "cancel", "end"]), st.integers(0, 9)), max_size=50
    ),
)
def test_no_place_is_lost_and_none_given_twice(
    limits: list[int], script: list[tuple[str, int]]
) -> None:
    async def play() -> None:
        endpoints = [Endpoint(f"{n}", FixedLimiter(most)) for n, most in enumerate(limits)]
        pool = Pool(endpoints, asyncio.get_running_loop())
        tasks: list[asyncio.Task[int]] = []

        def end(task: asyncio.Task[int]) -> None:
            tasks.remove(task)
            endpoints[task.result()].ended(1.0, Outcome.FAILED, began=0.0)
            pool.wake()

        for what, number in script:
            if what == "enter":
                want = Want(avoid=(number % len(limits),)) if number > 5 else ANYWHERE
                tasks.append(asyncio.create_task(pool.enter(want, number % 2)))
            elif what == "cancel" and tasks:
                task = tasks[number % len(tasks)]
                if not task.done():
                    task.cancel()
                    tasks.remove(task)
            elif done := [task for task in tasks if task.done()]:
                end(done[number % len(done)])
            for _ in range(number % 3):
                await asyncio.sleep(0)
            for endpoint, most in zip(endpoints, limits, strict=True):
                assert 0 <= endpoint.limiter.in_flight <= most
        async with asyncio.timeout(20):
            while tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in tasks if task.done()]:
                    end(task)
            while pool.queued:  # noqa: ASYNC110 - the cancelled ones leave in the next turn
                await asyncio.sleep(0)
        assert pool.in_flight == 0

    asyncio.run(play())
