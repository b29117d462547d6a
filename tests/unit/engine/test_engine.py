"""The engine against a scripted backend in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from scaleinfer.backends import Backend, EndpointStatus
from scaleinfer.engine import Dispatch, Endpoint, Engine, FixedLimiter, Pool, Retry
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    JournalError,
    Overloaded,
    Permanent,
    RateLimited,
    Transient,
)
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Attempt, Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

REQUEST = Request([{"role": "user", "content": "x"}])
OK = Completion("yes", usage=Usage(3, 1, 0, 1))


class Scripted(Backend):
    """Takes each call's outcome from a list; a future in it is waited for."""

    kind: ClassVar[str] = "scripted"

    def __init__(self, *script: Any) -> None:
        self.endpoint = "memory"
        self.script = list(script)
        self.timeouts: list[float | None] = []
        self.running = self.peak = self.ended = 0

    async def complete(
        self,
        request: Request,
        *,
        timeout: float | None = None,
    ) -> Completion:
        self.timeouts.append(timeout)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if isinstance(step, asyncio.Future):
                await step
                step = OK
            if isinstance(step, BaseException):
                raise step
            assert isinstance(step, Completion)
            return step
        finally:
            self.running -= 1
            self.ended += 1

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


def pool_with(*limits: int) -> Pool:
    endpoints = [
        Endpoint(f"memory{number or ''}", FixedLimiter(limit))
        for number, limit in enumerate(limits)
    ]
    return Pool(endpoints, asyncio.get_running_loop())


def engine_of(*script: Any, limit: int = 2, **rules: Any) -> tuple[Engine, Scripted]:
    backend = Scripted(*script)
    retry = Retry(**({"initial": 0.0, "maximum": 0.0} | rules))
    return Engine([backend], pool=pool_with(limit), retry=retry), backend


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_every_call_is_told_of_with_its_number() -> None:
    seen: list[Attempt] = []
    script = (Transient("broke", status=502), RateLimited("later", status=429), OK)
    engine, backend = engine_of(*script, timeout=7.0)
    assert await engine.call(REQUEST, attempted=seen.append, number=4) is OK
    told = [(a.number, a.status, a.http_status, a.error, a.completion_tokens) for a in seen]
    assert told == [
        (5, "Transient", 502, "broke", 0),
        (6, "RateLimited", 429, "later", 0),
        (7, "ok", None, "", 1),
    ]
    assert backend.timeouts == [7.0] * 3
    statistics = engine.statistics()
    assert statistics.in_flight == statistics.waiting == statistics.queued == 0
    assert (statistics.retry.successes, statistics.retry.failures) == (1, 2)
    assert isinstance(engine.last_error, RateLimited)


async def test_come_back_later_does_not_use_up_attempts() -> None:
    engine, _ = engine_of(*[Overloaded("full")] * 4, Transient("x"), OK, attempts=2)
    assert await engine.call(REQUEST, attempted=lambda attempt: None) is OK


@pytest.mark.parametrize("error", [Permanent("bad"), AuthError("key"), Transient("x", fatal=True)])
async def test_given_up_at_once(error: EndpointError) -> None:
    engine, backend = engine_of(error)
    with pytest.raises(type(error)) as caught:
        await engine.call(REQUEST, attempted=lambda attempt: None)
    assert caught.value is error
    assert backend.ended == 1


async def test_attempts_end() -> None:
    engine, backend = engine_of(Transient("broke"), attempts=4)
    with pytest.raises(Transient):
        await engine.call(REQUEST, attempted=lambda attempt: None)
    assert backend.ended == 4
    assert engine.statistics().retry.retries == 3


async def test_a_defect_of_the_adapter_costs_the_item_alone() -> None:
    engine, _ = engine_of(ZeroDivisionError("oops"))
    with pytest.raises(Permanent, match="scripted backend raised ZeroDivisionError: oops"):
        await engine.call(REQUEST, attempted=lambda attempt: None)
    assert engine.statistics().in_flight == 0


async def test_never_more_in_flight_than_allowed() -> None:
    release = asyncio.get_running_loop().create_future()
    engine, backend = engine_of(release, limit=3)
    calls = [
        asyncio.create_task(engine.call(REQUEST, attempted=lambda attempt: None)) for _ in range(10)
    ]
    await turns()
    assert backend.running == 3
    assert engine.statistics().queued == 7
    release.set_result(None)
    await asyncio.gather(*calls)
    assert backend.peak == 3
    assert engine.statistics().in_flight == 0


async def test_waiting_holds_no_place() -> None:
    engine, backend = engine_of(Transient("later"), OK, limit=1, initial=600.0, maximum=600.0)
    patient = asyncio.create_task(engine.call(REQUEST, attempted=lambda attempt: None))
    await turns()
    assert engine.statistics().waiting == 1
    assert engine.statistics().in_flight == 0
    assert await engine.call(REQUEST, attempted=lambda attempt: None) is OK
    assert backend.ended == 2
    patient.cancel()
    await turns()
    assert patient.cancelled()
    assert engine.statistics().waiting == 0


@pytest.mark.parametrize("when", ["in flight", "queued"])
async def test_cancelled_calls_leave_their_place(when: str) -> None:
    release = asyncio.get_running_loop().create_future()
    engine, backend = engine_of(release, limit=1)
    first = asyncio.create_task(engine.call(REQUEST, attempted=lambda attempt: None))
    await turns()
    second = asyncio.create_task(engine.call(REQUEST, attempted=lambda attempt: None))
    await turns()
    gone, stays = (first, second) if when == "in flight" else (second, first)
    backend.script = [OK]
    gone.cancel()
    await turns()
    assert gone.cancelled()
    if not release.done():
        release.set_result(None)
    assert await stays is not None
    assert engine.statistics().in_flight == engine.statistics().queued == 0


async def test_a_listener_that_fails_frees_the_place_too() -> None:
    def listener(error: Exception) -> Callable[[Attempt], None]:
        def attempted(attempt: Attempt) -> None:
            raise error

        return attempted

    engine, _ = engine_of(Transient("x"), OK)
    for _ in range(2):
        with pytest.raises(JournalError):
            await engine.call(REQUEST, attempted=listener(JournalError("full")))
    assert engine.statistics().in_flight == 0


async def test_identical_deterministic_requests_in_flight_share_a_call() -> None:
    release = asyncio.get_running_loop().create_future()
    engine, backend = engine_of(release, limit=8)
    request = Request([{"role": "user", "content": "x"}], sampling=Sampling(temperature=0))
    settled: list[Completion] = []

    async def settle(completion: Completion) -> None:
        settled.append(completion)

    calls = [
        asyncio.ensure_future(engine.call(request, attempted=lambda attempt: None, settle=settle))
        for _ in range(4)
    ]
    await turns()
    assert backend.running == 1
    release.set_result(None)
    answers = await asyncio.gather(*calls)
    assert {answer.text for answer in answers} == {"yes"}
    assert len(settled) == 4
    assert sum(answer.usage.prompt_tokens for answer in answers) == OK.usage.prompt_tokens
    assert (engine.statistics().calls, engine.statistics().shared) == (1, 3)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7), Sampling(temperature=0, n=2)]
)
async def test_requests_that_depend_on_chance_are_each_asked(sampling: Sampling) -> None:
    release = asyncio.get_running_loop().create_future()
    engine, backend = engine_of(release, limit=8)
    request = Request([{"role": "user", "content": "x"}], sampling=sampling)
    calls = [
        asyncio.ensure_future(engine.call(request, attempted=lambda attempt: None))
        for _ in range(3)
    ]
    await turns()
    assert backend.running == 3
    release.set_result(None)
    await asyncio.gather(*calls)


async def test_a_second_endpoint_takes_over_at_once_and_for_no_attempt() -> None:
    broken, fine = Scripted(Transient("broke", endpoint="memory")), Scripted(OK)
    retry = Retry(initial=600.0, maximum=600.0, attempts=1)
    engine = Engine([broken, fine], pool=pool_with(1, 1), retry=retry)
    for _ in range(6):
        assert await engine.call(REQUEST, attempted=lambda attempt: None) is OK
    assert broken.ended >= 1
    assert fine.ended == 6


async def test_each_endpoint_is_asked_for_its_own_name_of_the_model() -> None:
    asked: list[tuple[str, str | None]] = []

    class Named(Scripted):
        async def complete(
            self,
            request: Request,
            *,
            timeout: float | None = None,
        ) -> Completion:
            asked.append((self.model or "", request.model))
            return await super().complete(request, timeout=timeout)

    backends = [Named(OK), Named(OK)]
    backends[0].model, backends[1].model = "llama", "meta/llama"
    engine = Engine(backends, pool=pool_with(1, 1), retry=Retry(), model="llama")
    request = Request([{"role": "user", "content": "x"}], model="llama")
    for _ in range(4):
        await engine.call(request, attempted=lambda attempt: None)
    assert {name for name, _ in asked} == {"llama", "meta/llama"}
    assert all(model in {None, name} for name, model in asked)
    other = Request([{"role": "user", "content": "x"}], model="another")
    await engine.call(other, attempted=lambda attempt: None)
    assert asked[-1][1] == "another"


async def test_a_higher_priority_overtakes_on_the_same_pool() -> None:
    pool = pool_with(1)
    release = asyncio.get_running_loop().create_future()
    backend = Scripted(release, OK)
    batch = Engine([backend], pool=pool, retry=Retry())
    urgent = Engine([backend], pool=pool, retry=Retry(), priority=1)
    order: list[str] = []

    async def ask(engine: Engine, name: str) -> None:
        await engine.call(REQUEST, attempted=lambda attempt: None)
        order.append(name)

    tasks = [asyncio.create_task(ask(batch, f"batch {number}")) for number in range(4)]
    await turns()
    tasks.append(asyncio.create_task(ask(urgent, "urgent")))
    await turns()
    release.set_result(None)
    await asyncio.gather(*tasks)
    assert order[:2] == ["batch 0", "urgent"]


async def test_a_straggler_gets_a_second_copy_and_the_first_answer_counts() -> None:
    never = asyncio.get_running_loop().create_future()
    backend = Scripted(*[OK] * 400, never, OK)
    engine = Engine([backend], pool=pool_with(8), retry=Retry(), dispatch=Dispatch(hedging=True))
    engine.remaining = 1
    seen: list[Attempt] = []
    for _ in range(400):
        await engine.call(REQUEST, attempted=lambda attempt: None)
    async with asyncio.timeout(20):
        assert await engine.call(REQUEST, attempted=seen.append) is OK
    assert engine.statistics().hedged == 1
    assert backend.running == 0
    assert [(attempt.number, attempt.status) for attempt in seen] == [(2, "ok"), (1, "cancelled")]
    await engine.aclose()
