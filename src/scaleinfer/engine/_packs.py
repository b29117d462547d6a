"""Requests that go to an endpoint several to a call: the asyncio side of packing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scaleinfer.engine._budget import NOTHING
from scaleinfer.engine._call import Call, outcome_of, settle_pack
from scaleinfer.engine._limiter import Outcome
from scaleinfer.engine._packing import Packer
from scaleinfer.errors import BudgetExceeded, EndpointError
from scaleinfer.results import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.engine._adapters import Adapters
    from scaleinfer.engine._payment import Payment
    from scaleinfer.engine._pool import Pool
    from scaleinfer.engine._statistics import CallCounts
    from scaleinfer.engine._wants import Wants
    from scaleinfer.policy import Audience
    from scaleinfer.requests import Request

    _Answer = tuple[Completion, int]
    """An answer, and the number of the endpoint that gave it."""

__all__ = ["Packs"]


class Packs:
    """Makes the calls that are for several requests at once; each takes one place.

    Args:
        pool: The endpoints' state.
        adapters: Their adapters.
        wants: What calls ask of the pool.
        counts: Counts the calls.
        most: Requests in one call at most.
        linger: Seconds to wait for more of them.
        timeout: Seconds for one call; `None` for no limit.
        priority: Calls with a higher one overtake others that wait for a place.
        payment: Books what requests use; `None` if nobody counts.

    Attributes:
        most: Requests in one call at most.
    """

    def __init__(
        self,
        pool: Pool,
        adapters: Adapters,
        wants: Wants,
        counts: CallCounts,
        *,
        most: int,
        linger: float,
        timeout: float | None,
        priority: int = 0,
        payment: Payment | None = None,
    ) -> None:
        self.most = most
        self._pool = pool
        self._adapters = adapters
        self._wants = wants
        self._counts = counts
        self._timeout = timeout
        self._priority = priority
        self._payment = payment
        self._packer: Packer[_Answer] = Packer(self._deliver, most=most, linger=linger)

    async def complete(self, call: Call, most: int) -> Completion:
        """Send a request with at most so many others, and book what it used.

        Raises:
            EndpointError: What became of this request.
            BudgetExceeded: It cannot be paid for.
        """
        payment, backend = self._payment, self._adapters.at(0)
        if payment is not None:
            # The call itself is reserved by the pack.
            await payment.reserve(call, requests=0)
        call.began, call.started = time.monotonic(), time.time()
        try:
            completion, call.endpoint = await self._packer.call(
                call.request, most=most, audience=call.audience
            )
            backend = self._adapters.at(call.endpoint)
            if payment is not None:
                payment.answered(call, backend, completion, packed=True)
            return completion
        except BudgetExceeded:
            call.used = NOTHING
            raise
        except EndpointError as error:
            if payment is not None:
                payment.failed(call, backend, error)
            raise
        finally:
            if payment is not None:
                payment.ended(call, backend)
                if call.used is not None:
                    call.used = call.used._replace(requests=0)
                payment.settle(call)

    async def _deliver(
        self, requests: Sequence[Request], audience: Audience | None
    ) -> list[_Answer | EndpointError]:
        """Make one call for several requests, if the budget has room for one."""
        spender = None if self._payment is None else self._payment.spender
        if spender is None:
            return await self._send(requests, audience)
        spender.reserve_call()
        try:
            return await self._send(requests, audience)
        finally:
            spender.settle_call()

    async def _send(
        self, requests: Sequence[Request], audience: Audience | None
    ) -> list[_Answer | EndpointError]:
        pool = self._pool
        want = self._wants.of_pack(requests, audience)
        place = pool.enter_nowait(want)
        if place is None:
            place = await pool.enter(want, self._priority)
        endpoint, backend = pool.endpoints[place], self._adapters.at(place)
        requests = [self._adapters.named(one) for one in requests]
        call = Call(requests[0], 1, lambda attempt: None, endpoint=place)
        call.began = time.monotonic()
        self._counts.began()
        outcome, answers = Outcome.CANCELLED, list[Completion | EndpointError]()
        try:
            answers = await backend.complete_many(requests, timeout=self._timeout)
            outcome = Outcome.OK
        finally:
            self._counts.ended()
            good = [answer for answer in answers if isinstance(answer, Completion)]
            first = next((a for a in answers if isinstance(a, EndpointError)), None)
            if not good and first is not None:
                outcome = outcome_of(first)
            settle_pack(endpoint, call, want, outcome, good, first)
            pool.wake()
        return [one if isinstance(one, EndpointError) else (one, place) for one in answers]
