"""Second copies: the first answer counts, the other call is ended, nothing is told twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import pytest

from scaleinfer.backends import Backend, EndpointStatus
from scaleinfer.engine._adapters import Adapters
from scaleinfer.engine._call import Call
from scaleinfer.engine._copies import Copies
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._hedging import Hedger
from scaleinfer.engine._limiter import FixedLimiter
from scaleinfer.engine._pool import Pool
from scaleinfer.engine._wants import ANYWHERE
from scaleinfer.errors import EndpointError, JournalError, Transient
from scaleinfer.requests import Request
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scaleinfer.results import Attempt

pytestmark = pytest.mark.anyio

QUICK = Completion("quick", "stop", Usage(1, 1, 1))
LATE = Completion("late", "stop", Usage(1, 1, 1))


class Slow(Backend):
    """Every call waits for a future of its own."""

    kind: ClassVar[str] = "slow"

    def __init__(self) -> None:
        self.endpoint = "memory"
        self.calls: list[asyncio.Future[Completion]] = []
        self.cancelled = 0

    async def complete(
        self,
        request: Request,
        *,
        timeout: float | None = None,
    ) -> Completion:
        call: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        try:
            return await call
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


class Case:
    """A pool with places, a hedger that knows calls to take a millisecond, one call."""

    def __init__(self, places: int = 4) -> None:
        self.backend = Slow()
        self.endpoint = Endpoint("memory", FixedLimiter(places))
        self.pool = Pool([self.endpoint], asyncio.get_running_loop())
        hedger = Hedger(0.5, places=places)
        for _ in range(400):
            hedger.started()
            hedger.answered(0.001, 1)
        self.copies = Copies(
            hedger, self.pool, Adapters([self.backend], self.pool, None), lambda: 1
        )
        self.seen: list[Attempt] = []
        self.call = Call(Request(prompt="x"), 1, self.seen.append, endpoint=0)

    async def start(self) -> asyncio.Task[Completion]:
        """Start the call and wait for its second copy."""
        self.pool.enter_nowait(ANYWHERE)
        self.call.began = asyncio.get_running_loop().time()
        task = asyncio.create_task(self.copies.complete(self.call, None))
        async with asyncio.timeout(20):
            while len(self.backend.calls) < 2:  # noqa: ASYNC110 - the watcher has no event
                await asyncio.sleep(0.005)
        return task


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    made = Case()
    yield made
    await made.copies.aclose()
    # Only the place of the first call, which is not the copies' to give back.
    assert made.endpoint.limiter.in_flight == 1


async def test_the_copys_answer_counts_and_ends_the_first(case: Case) -> None:
    task = await case.start()
    case.backend.calls[1].set_result(QUICK)
    assert await task is QUICK
    assert case.backend.cancelled == 1
    assert case.call.superseded
    assert (case.call.number, [attempt.number for attempt in case.seen]) == (2, [2])
    assert task.cancelling() == 0
    assert case.copies.sent == 1


async def test_the_firsts_answer_counts_and_ends_the_copy(case: Case) -> None:
    task = await case.start()
    case.backend.calls[0].set_result(LATE)
    assert await task is LATE
    await asyncio.sleep(0)
    assert case.backend.cancelled == 1
    assert not case.call.superseded
    assert [attempt.status for attempt in case.seen] == ["cancelled"]


async def test_both_answer_in_the_same_turn(case: Case) -> None:
    task = await case.start()
    for call, answer in zip(case.backend.calls, (LATE, QUICK), strict=True):
        call.set_result(answer)
    assert (await task).text in {"late", "quick"}
    assert task.cancelling() == 0


async def test_a_first_that_fails_waits_for_its_copy(case: Case) -> None:
    task = await case.start()
    case.backend.calls[0].set_exception(Transient("broke"))
    await asyncio.sleep(0.01)
    assert not task.done()
    case.backend.calls[1].set_result(QUICK)
    assert await task is QUICK


async def test_a_copy_that_fails_leaves_the_first_alone(case: Case) -> None:
    task = await case.start()
    case.backend.calls[1].set_exception(Transient("broke"))
    await asyncio.sleep(0.01)
    assert [attempt.status for attempt in case.seen] == ["Transient"]
    case.backend.calls[0].set_result(LATE)
    assert await task is LATE


async def test_both_fail(case: Case) -> None:
    task = await case.start()
    case.backend.calls[0].set_exception(Transient("the first"))
    case.backend.calls[1].set_exception(Transient("the copy"))
    with pytest.raises(EndpointError, match="the first"):
        await task


@pytest.mark.parametrize("first_failed", [False, True])
async def test_cancelled_from_outside_ends_both(first_failed: bool, case: Case) -> None:
    task = await case.start()
    if first_failed:
        case.backend.calls[0].set_exception(Transient("broke"))
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert case.backend.cancelled == (1 if first_failed else 2)


async def test_cancelled_from_outside_as_the_copy_answers(case: Case) -> None:
    task = await case.start()
    case.backend.calls[1].set_result(QUICK)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_listener_that_fails_for_the_copy_fails_the_call(case: Case) -> None:
    def full(attempt: Attempt) -> None:
        raise JournalError("the disk is full")

    case.call.attempted = full
    task = await case.start()
    case.backend.calls[1].set_result(QUICK)
    with pytest.raises(JournalError, match="disk is full"):
        await task
    assert task.cancelling() == 0


async def test_no_copy_without_a_place() -> None:
    case = Case(places=1)
    case.pool.enter_nowait(ANYWHERE)
    case.call.began = asyncio.get_running_loop().time()
    task = asyncio.create_task(case.copies.complete(case.call, None))
    await asyncio.sleep(0.1)
    assert len(case.backend.calls) == 1
    case.backend.calls[0].set_result(LATE)
    assert await task is LATE
    await case.copies.aclose()
