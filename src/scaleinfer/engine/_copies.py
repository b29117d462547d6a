"""Second copies of calls that straggle in the tail of a run: the asyncio side of hedging."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from scaleinfer.engine._call import Call, as_endpoint_error, outcome_of, settle_place
from scaleinfer.engine._limiter import Outcome
from scaleinfer.engine._wants import Want

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine._adapters import Adapters
    from scaleinfer.engine._hedging import Hedger
    from scaleinfer.engine._payment import Payment
    from scaleinfer.engine._pool import Pool
    from scaleinfer.results import Completion

__all__ = ["Copies"]

_LOOK_EVERY = 0.02


class _Running:
    """A call that may get a second copy."""

    __slots__ = ("answer", "call", "cancels", "raised", "second", "task", "timeout")

    def __init__(self, call: Call, task: asyncio.Task[object], timeout: float | None) -> None:
        self.call = call
        self.task = task
        self.timeout = timeout
        self.cancels = task.cancelling()
        self.second: asyncio.Task[None] | None = None
        self.answer: Completion | None = None
        self.raised: Exception | None = None

    def outcome(self) -> Completion | None:
        """Return the second copy's answer; `None` if it brought none.

        Raises:
            Exception: Whoever was told of it raised this: the journal, say.
        """
        if self.raised is not None:
            raise self.raised
        return self.answer


class Copies:
    """Makes calls, and second copies of those that take far too long.

    The first answer counts. The other call's task is cancelled, which closes its connection, so
    that the endpoint stops working on it.

    Args:
        hedger: Decides when a call straggles and how many copies may be sent.
        pool: The endpoints' state.
        adapters: Their adapters.
        remaining: Items left in the run; `None` if that is not known.
        payment: Pays for copies; `None` if nobody counts.

    Attributes:
        sent: Copies that were sent.
    """

    def __init__(
        self,
        hedger: Hedger,
        pool: Pool,
        adapters: Adapters,
        remaining: Callable[[], int | None],
        *,
        payment: Payment | None = None,
    ) -> None:
        self.sent = 0
        self._hedger = hedger
        self._pool = pool
        self._adapters = adapters
        self._remaining = remaining
        self._payment = payment
        self._running: set[_Running] = set()
        self._seconds: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    async def complete(
        self,
        call: Call,
        timeout: float | None,  # noqa: ASYNC109 - the wire client keeps it
    ) -> Completion:
        """Make a call; its answer may be that of its second copy.

        Raises:
            EndpointError: Neither brought a usable answer.
        """
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())
        task = asyncio.current_task()
        assert task is not None
        running = _Running(call, task, timeout)
        self._running.add(running)
        self._hedger.started()
        try:
            completion = await self._first_answer(running)
        finally:
            self._running.discard(running)
            if running.second is not None:
                running.second.cancel()
        took = time.monotonic() - call.began
        self._hedger.answered(took, completion.usage.completion_tokens)
        return completion

    def resize(self, places: int) -> None:
        """Another number of calls may be in flight now."""
        self._hedger.places = places

    async def aclose(self) -> None:
        """End what is still in flight."""
        tasks = [*self._seconds, *([] if self._watch is None else [self._watch])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._watch = None

    async def _first_answer(self, running: _Running) -> Completion:
        call = running.call
        backend = self._adapters.at(call.endpoint)
        try:
            return await backend.complete(call.request, timeout=running.timeout)
        except asyncio.CancelledError:
            # The copy that answered first cancelled us; so may have somebody else as well.
            told = running.answer is not None or running.raised is not None
            if not told or running.task.uncancel() > running.cancels:
                raise
            call.superseded = True
            answer = running.outcome()
            assert answer is not None
            return answer
        except Exception as error:
            if running.second is None:
                raise
            call.error = as_endpoint_error(backend, error)
            # It may still be answered; only the copy's answer ends this wait by itself.
            self._running.discard(running)
            await asyncio.wait({running.second})
            answer = running.outcome()
            if answer is None:
                raise
            call.superseded = True
            return answer

    async def _look(self) -> None:
        """Look every few milliseconds for calls that straggle."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            after = self._hedger.hedge_after(self._remaining())
            if after is None:
                continue
            now = time.monotonic()
            for running in [r for r in self._running if r.second is None]:
                if now - running.call.began < after:
                    continue
                if not self._send(running):
                    break

    def _send(self, running: _Running) -> bool:
        """Send a second copy if there is a place for it and the budget allows it."""
        audience = running.call.audience
        want = Want(avoid=(running.call.endpoint,), audience=audience)
        place = self._pool.enter_nowait(want)
        if place is None:
            return False
        if not self._hedger.take(shrinking=self._pool.endpoints[place].limiter.shrinking):
            self._pool.unused(place)
            return False
        first = running.call
        call = first.again()
        call.endpoint = place
        if self._payment is not None and not self._payment.reserve_copy(call):
            self._pool.unused(place)
            return False
        self.sent += 1
        running.second = asyncio.create_task(self._second(running, call, want))
        self._seconds.add(running.second)
        running.second.add_done_callback(self._seconds.discard)
        return True

    async def _second(self, running: _Running, call: Call, want: Want) -> None:
        first, place = running.call, call.endpoint
        call.began, call.started = time.monotonic(), time.time()
        backend = self._adapters.at(place)
        outcome, completion, error = Outcome.CANCELLED, None, None
        try:
            completion = await backend.complete(call.request, timeout=running.timeout)
            outcome = Outcome.OK
        except Exception as failure:
            error = as_endpoint_error(backend, failure)
            outcome = outcome_of(error)
        finally:
            if self._payment is not None:
                call.error = error
                if completion is not None:
                    self._payment.answered(call, backend, completion)
                self._payment.ended(call, backend)
                self._payment.settle(call)
            settle_place(
                self._pool.endpoints[place],
                call,
                want,
                time.monotonic(),
                outcome,
                completion,
                error,
            )
            if completion is None and error is None:
                call.cut_off(backend.endpoint, call.number)
            self._pool.wake()
        first.number = call.number
        try:
            if completion is not None:
                call.answered(backend.endpoint, completion, time.monotonic() - call.began)
            elif error is not None:
                call.failed(backend.endpoint, error)
                return
        except Exception as raised:
            running.raised = raised
        running.answer = completion
        if running in self._running:
            running.task.cancel()
