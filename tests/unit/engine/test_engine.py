"""The engine against a scripted backend in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from scaleinfer.backends import Backend, EndpointStatus
from scaleinfer.engine import Engine, Limiter, Retry
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    JournalError,
    Overloaded,
    Permanent,
    RateLimited,
    Transient,
)
from scaleinfer.requests import Request
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
        timeout: float | None = None,  # noqa: ASYNC109 - the contract's own
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


def engine_of(*script: Any, limit: int = 2, **rules: Any) -> tuple[Engine, Scripted]:
    backend = Scripted(*script)
    retry = Retry(**({"initial": 0.0, "maximum": 0.0} | rules))
    return Engine(backend, limiter=Limiter(limit), retry=retry), backend


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
    assert statistics.limiter.in_flight == statistics.waiting == statistics.queued == 0
    assert (statistics.retry.successes, statistics.retry.failures) == (1, 2)
    assert isinstance(engine.last_error, RateLimited)


async def test_come_back_later_does_not_use_up_attempts() -> None:
    engine, _ = engine_of(*[Overloaded("full")] * 20, Transient("x"), OK, attempts=2)
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
    assert engine.statistics().limiter.in_flight == 0


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
    assert engine.statistics().limiter.in_flight == 0


async def test_waiting_holds_no_place() -> None:
    engine, backend = engine_of(RateLimited("later", retry_after=600.0), OK, limit=1)
    patient = asyncio.create_task(engine.call(REQUEST, attempted=lambda attempt: None))
    await turns()
    assert engine.statistics().waiting == 1
    assert engine.statistics().limiter.in_flight == 0
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
    assert engine.statistics().limiter.in_flight == engine.statistics().queued == 0


async def test_a_listener_that_fails_frees_the_place_too() -> None:
    def listener(error: Exception) -> Callable[[Attempt], None]:
        def attempted(attempt: Attempt) -> None:
            raise error

        return attempted

    engine, _ = engine_of(Transient("x"), OK)
    for _ in range(2):
        with pytest.raises(JournalError):
            await engine.call(REQUEST, attempted=listener(JournalError("full")))
    assert engine.statistics().limiter.in_flight == 0
