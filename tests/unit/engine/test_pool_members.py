"""Pools whose endpoints come and go, with calls in flight."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer import Backend
from scaleinfer.backends import EndpointStatus
from scaleinfer.engine import Breaker, Engine, Retry, pool_of
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._limiter import FixedLimiter, Outcome
from scaleinfer.engine._router import Router
from scaleinfer.engine._wants import ANYWHERE, Want
from scaleinfer.requests import Request
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer.backends import Follower

pytestmark = pytest.mark.anyio


class Member(Backend):
    """Answers with its own name."""

    kind: ClassVar[str] = "member"

    def __init__(self, name: str, model: str | None = "m") -> None:
        self.endpoint = name
        self.model = model
        self.asked: list[str | None] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        self.asked.append(request.model)
        await asyncio.sleep(0)
        await self.go_on.wait()
        return Completion(self.endpoint, usage=Usage(1, 1, 0, 1))

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, True, "")


class Many(Member):
    """A set whose members a test changes."""

    many: ClassVar[bool] = True

    def __init__(self, *members: Member) -> None:
        super().__init__("set")
        self.members = list(members)
        self.follower: Follower | None = None

    def follow(self, follower: Follower) -> Sequence[Backend]:
        self.follower = follower
        return list(self.members)

    def join(self, member: Member) -> None:
        assert self.follower is not None
        self.members.append(member)
        self.follower.joined(member)

    def leave(self, member: Member) -> None:
        assert self.follower is not None
        self.members.remove(member)
        self.follower.left(member)


def engine_of(*backends: Backend, concurrency: int = 2) -> Engine:
    pool = pool_of(backends, concurrency)
    return Engine(backends, pool=pool, retry=Retry(initial=0.01), model="m")


async def ask(engine: Engine, times: int) -> list[str]:
    calls = [
        engine.call(Request([{"role": "user", "content": str(n)}], model="m"), attempted=_ignore)
        for n in range(times)
    ]
    return [completion.text for completion in await asyncio.gather(*calls)]


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def _ignore(_: object) -> None:
    return None


async def test_calls_go_to_members_and_to_those_that_come() -> None:
    one, two = Member("one"), Member("two", model="other-name")
    many = Many(one)
    engine = engine_of(many)
    assert set(await ask(engine, 20)) == {"one"}
    many.join(two)
    assert engine.limit == 4
    assert set(await ask(engine, 40)) == {"one", "two"}
    assert set(one.asked) == {"m"} or set(one.asked) == {"m", None}
    assert set(two.asked) == {None}  # by its own name for the model
    assert [endpoint.name for endpoint in engine.endpoints()] == ["one", "two"]
    assert engine.adapters() == [one, two]


async def test_calls_in_flight_at_one_that_leaves_end_as_they_would_have() -> None:
    one, two = Member("one"), Member("two")
    many = Many(one, two)
    engine = engine_of(many)
    one.go_on.clear()
    two.go_on.clear()
    calls = asyncio.create_task(ask(engine, 4))
    await until(lambda: len(one.asked) == len(two.asked) == 2)
    two.go_on.set()
    assert many.follower is not None
    assert many.follower.busy(one)
    many.leave(one)
    assert set(await ask(engine, 20)) == {"two"}
    assert len(one.asked) == 2
    one.go_on.set()
    assert sorted(await calls).count("one") == 2
    assert not many.follower.busy(one)
    assert [endpoint.left for endpoint in engine.endpoints()] == [True, False]
    assert many.follower.calls() == 24


async def test_one_that_comes_back_has_its_old_place() -> None:
    first, two, again = Member("one"), Member("two"), Member("one")
    many = Many(first, two)
    engine = engine_of(many)
    await ask(engine, 20)
    before = len(first.asked)
    many.leave(first)
    many.join(again)
    await ask(engine, 40)
    assert len(first.asked) == before
    assert again.asked
    assert len(engine.endpoints()) == 2


async def test_those_who_wait_get_the_place_of_one_that_comes() -> None:
    one, two = Member("one"), Member("two")
    many = Many(one)
    engine = engine_of(many)
    one.go_on.clear()
    calls = asyncio.create_task(ask(engine, 4))
    await until(lambda: engine.queued == 2)
    many.join(two)
    await until(lambda: len(two.asked) == 2)
    one.go_on.set()
    assert sorted(await calls) == ["one", "one", "two", "two"]


async def test_a_set_that_is_empty_makes_calls_wait() -> None:
    many = Many()
    engine = engine_of(many)
    assert engine.limit >= 1
    calls = asyncio.create_task(ask(engine, 3))
    await asyncio.sleep(0.01)
    assert engine.queued == 3
    many.join(Member("late"))
    assert await calls == ["late"] * 3


async def test_a_set_beside_an_endpoint() -> None:
    alone, one, two = Member("alone"), Member("one"), Member("two")
    many = Many(one)
    engine = engine_of(many, alone)
    many.join(two)
    assert [endpoint.name for endpoint in engine.endpoints()] == ["alone", "one", "two"]
    assert engine.adapters() == [alone, one, two]
    assert set(await ask(engine, 60)) == {"alone", "one", "two"}


async def test_a_later_run_has_the_members_of_that_moment() -> None:
    one, two, three = Member("one"), Member("two"), Member("three")
    many = Many(one, two)
    pool = pool_of([many], 2)
    many.members = [two, three]  # while nobody followed
    assert pool_of([many], 2) is pool
    assert [endpoint.left for endpoint in pool.endpoints] == [True, False, False]
    many.members = [one]
    pool_of([many], 2)
    assert [endpoint.left for endpoint in pool.endpoints] == [False, True, True]


async def test_a_pool_does_not_keep_its_set() -> None:
    import weakref

    many = Many(Member("one"))
    pool_of([many], 2)
    kept = weakref.ref(many)
    del many
    gc.collect()
    assert kept() is None


async def test_a_broken_member_waits_for_a_check() -> None:
    one, two = Member("one"), Member("two")
    many = Many(one, two)
    pool = pool_of([many], 8)
    follower = many.follower
    assert follower is not None
    loop = asyncio.get_running_loop()
    now = loop.time()
    for _ in range(5):
        pool.endpoints[0].started(now)
        pool.endpoints[0].ended(now, Outcome.FAILED, began=now, broken=True)
    assert list(follower.troubled()) == [one]
    assert {pool.enter_nowait(ANYWHERE) for _ in range(6)} == {1}
    follower.mended(one)
    assert pool.enter_nowait(Want(avoid=(1,))) == 0
    many.leave(one)
    assert list(follower.troubled()) == []


def test_a_breaker_that_is_mended_lets_a_probe_through_at_once() -> None:
    breaker = Breaker(failures=1, first_pause=60)
    breaker.mended(0.0)
    assert breaker.closed
    breaker.failed(1.0)
    assert breaker.is_open
    assert not breaker.allows(30.0)
    breaker.mended(30.0)
    assert breaker.allows(30.0)
    breaker.started(30.0)
    assert not breaker.allows(30.0)
    breaker.failed(31.0)
    assert breaker.is_open
    assert not breaker.allows(32.0)


class Churn(RuleBasedStateMachine):
    """Endpoints come, go and come back; calls start and end; nothing is lost or misplaced."""

    @initialize(count=st.integers(0, 12))
    def begin(self, count: int) -> None:
        self.now = 0.0
        self.names = 0
        self.router = Router([self._new() for _ in range(count)], growing=True)
        self.calls: list[tuple[int, float]] = []

    def _new(self) -> Endpoint:
        self.names += 1
        return Endpoint(f"e{self.names}", FixedLimiter(2))

    @rule()
    def come(self) -> None:
        index = self.router.add(self._new())
        assert index == len(self.router.endpoints) - 1

    @precondition(lambda self: self.router.endpoints)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.router.remove(data.draw(st.integers(0, len(self.router.endpoints) - 1)))

    @precondition(lambda self: self.router.endpoints)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        self.router.restore(data.draw(st.integers(0, len(self.router.endpoints) - 1)))

    @rule(affinity=st.none() | st.integers(0, 3), avoid=st.sets(st.integers(0, 3), max_size=2))
    def call(self, affinity: int | None, avoid: set[int]) -> None:
        chosen = self.router.choose(self.now, affinity=affinity, avoid=tuple(avoid))
        roomy = [one for one in self.router.endpoints if one.has_room(self.now)]
        if chosen is None:
            assert not roomy or {one.index for one in roomy} <= avoid
            return
        endpoint = self.router.endpoints[chosen]
        assert not endpoint.left
        assert endpoint in roomy
        endpoint.started(self.now)
        self.calls.append((chosen, self.now))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), ok=st.booleans(), seconds=st.floats(0, 10))
    def end(self, data: st.DataObject, ok: bool, seconds: float) -> None:
        self.now += seconds
        index, began = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        outcome = Outcome.OK if ok else Outcome.FAILED
        self.router.endpoints[index].ended(self.now, outcome, began=began, broken=not ok)

    @invariant()
    def what_is_free_is_there_once(self) -> None:
        free = self.router._free
        assert len(free) == len({id(one) for one in free})
        for place, endpoint in enumerate(free):
            assert not endpoint.left
            assert not endpoint.parked
            assert self.router._place[endpoint.index] == place
        for endpoint in self.router.endpoints:
            assert endpoint.left or endpoint.parked or endpoint in free
            assert endpoint.calls == sum(index == endpoint.index for index, _ in self.calls)


TestChurn = Churn.TestCase
TestChurn.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
