"""The asyncio shell around the engine's state machines: makes one call after the other happen."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scaleinfer.engine._adapters import Adapters
from scaleinfer.engine._bill import may_be_billed
from scaleinfer.engine._call import Call, as_endpoint_error, outcome_of, settle_place
from scaleinfer.engine._copies import Copies
from scaleinfer.engine._dispatch import Dispatch
from scaleinfer.engine._hedging import Hedger
from scaleinfer.engine._limiter import Outcome
from scaleinfer.engine._packs import Packs
from scaleinfer.engine._payment import Payment
from scaleinfer.engine._retry import COME_BACK_LATER, GiveUp, RetryAuthority, WaitFor
from scaleinfer.engine._sharing import Sharing
from scaleinfer.engine._statistics import CallCounts, EngineStatistics, Waits
from scaleinfer.engine._wants import Want, Wants
from scaleinfer.errors import EndpointError, SchemaError, WorkerLost
from scaleinfer.policy import withheld
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._bill import Bill
    from scaleinfer.engine._call import Settle
    from scaleinfer.engine._endpoint import EndpointStatistics
    from scaleinfer.engine._pool import Pool
    from scaleinfer.engine._purse import Purse
    from scaleinfer.engine._retry import Retry, Track
    from scaleinfer.engine._spender import Spender
    from scaleinfer.policy import Audience
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["Engine"]

_LINGER_S = 0.005
_SMALLER = 8
"""A pack that failed and may itself be why is tried again in packs so many times smaller."""


class Engine:
    """Makes one run's calls to a pool of endpoints, trying again what may pass.

    Args:
        backends: The endpoints' adapters, opened; in the pool's order.
        pool: The endpoints' state.
        retry: The rules for trying again.
        dispatch: The rules for what goes out.
        model: The model as the run names it; an endpoint with a name of its own for it is
            asked by that.
        priority: Calls with a higher one overtake others that wait for a place.
        packing: Requests that go into one call; default what the adapters say.
        bill: Adds up what calls use and cost.
        spender: Says whether a call may be paid for; needs a bill.

    Attributes:
        authority: Judges the run's failures.
        last_error: The latest error of any call, for progress displays.
        waits: Where the time went.
        remaining: Items without a result yet; `None` if that is not known.
        unasked: Items that nobody works on yet; `None` if that is not known.
        on_wait: Called when a request begins to wait for its next try.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        pool: Pool,
        retry: Retry,
        dispatch: Dispatch | None = None,
        model: str | None = None,
        priority: int = 0,
        packing: int | None = None,
        bill: Bill | None = None,
        spender: Spender | None = None,
    ) -> None:
        dispatch = dispatch or Dispatch()
        self.authority = RetryAuthority(retry, places=pool.limit * (packing or 1))
        self.last_error: EndpointError | None = None
        self.waits = Waits()
        self.remaining: int | None = None
        self.unasked: int | None = None
        self.on_wait: Callable[[], None] | None = None
        self._adapters = Adapters(tuple(backends), pool, model)
        self._wants = Wants(pool, several=pool.growing or len(self._adapters.known) > 1)
        self._counts = CallCounts()
        self._pool = pool
        self._retry = retry
        self._priority = priority
        self._spender = spender
        self._sharing: Sharing[Completion] | None = Sharing() if dispatch.deduplicate else None
        self._payment = self._packs = self._copies = None
        if bill is not None:
            self._payment = Payment(bill, spender, self._adapters.known, model)
        self._budgeted = None if spender is None else self._payment
        self._packing = packing
        most = packing or self._adapters.packing
        if most > 1:
            self._packs = Packs(
                pool,
                self._adapters,
                self._wants,
                self._counts,
                most=most,
                # Packs that come back at about the same time set out again together.
                linger=0.0 if packing is None else _LINGER_S,
                timeout=retry.timeout,
                priority=priority,
                payment=self._payment,
            )
        if dispatch.hedging:
            self._copies = Copies(
                Hedger(dispatch.hedging_share, places=pool.limit),
                pool,
                self._adapters,
                lambda: self.remaining,
                payment=self._payment,
            )
        self._waiting = self._shared = 0

    def adapters(self) -> list[Backend]:
        """Return the adapter of each endpoint, in the order of `endpoints`."""
        return self._adapters.all()

    @property
    def limit(self) -> int:
        """Calls that may be in flight at all endpoints together."""
        return self._pool.limit

    def endpoints(self) -> list[EndpointStatistics]:
        """Return where each endpoint stands."""
        return self._pool.router.statistics()

    @property
    def lanes(self) -> int:
        """Requests that may be asked at once: as many as there are places, times the packing."""
        if self._packs is None:
            return self._pool.limit
        return self._pool.limit * (self._packing or self._adapters.packing)

    @property
    def calls(self) -> int:
        """Calls made; second copies not among them."""
        return self._counts.calls

    @property
    def in_flight(self) -> int:
        """Calls of this engine that are in flight."""
        return self._counts.in_flight

    @property
    def queued(self) -> int:
        """Calls that wait for a place, those of other engines included."""
        return self._pool.queued

    @property
    def waiting(self) -> int:
        """Requests that wait for their next try."""
        return self._waiting

    def call(
        self,
        request: Request,
        *,
        attempted: Callable[[Attempt], None],
        number: int = 0,
        settle: Settle | None = None,
        affinity: int | None = None,
        account: Purse | None = None,
        audience: Audience | None = None,
    ) -> Coroutine[Any, Any, Completion]:
        """Make a request and return its answer, once awaited.

        Args:
            request: What to ask.
            attempted: Told of every call as it ends.
            number: Calls already made for the item.
            settle: Given the answer and awaited before the call's place is given back. What
                it raises goes to the caller.
            affinity: Group of requests that share a prompt prefix.
            account: What its item may use.
            audience: Who may see it: other endpoints do not exist for it, and it goes together
                with nothing that others may see. `None` for everybody.

        Raises:
            EndpointError: The request was given up.
            BudgetExceeded: It cannot be paid for.
            ConfigError: No endpoint may see it.
        """
        if audience is not None and not audience.restricted:
            audience = None
        if audience is not None and not self._pool.admits(audience):
            raise audience.refusal(one.name for one in self._pool.endpoints if not one.left)
        call = Call(request, number + 1, attempted, settle, affinity, account, audience)
        if self._packs is not None and request.messages is None:
            return self._pack(self._packs, call)
        if self._sharing is None or not _deterministic(request):
            return self._call(call)
        return self._share(self._sharing, call)

    async def _share(self, sharing: Sharing[Completion], call: Call) -> Completion:
        """Ask together with those who ask the same."""
        settle, audience = call.settle, call.audience
        unfit: list[SchemaError] = []

        async def settle_ours(completion: Completion) -> bool:
            if settle is None:
                return True
            try:
                await settle(completion)
            except SchemaError as error:
                # It is the same answer for everybody; each deals with it for itself.
                unfit.append(error)
            return not unfit

        call.settle = settle_ours
        completion, led = await sharing.call(
            # What others may see is another question, though it be the same in words.
            call.request.digest() + (b"" if audience is None else audience.label.encode()),
            lambda: self._call(call),
        )
        if unfit:
            raise unfit[0]
        if led:
            return completion
        self._shared += 1
        # It was paid for once.
        completion = replace(completion, usage=Usage())
        if settle is not None:
            await settle(completion)
        self.authority.accepted()
        return completion

    async def _pack(self, packs: Packs, call: Call) -> Completion:
        """Ask together with others.

        A completion that fails is asked again by itself; a text to be embedded with others,
        and with fewer of them once one of the pack may be to blame.
        """
        track, most = None, packs.most
        while True:
            try:
                completion = await packs.complete(call, most)
                break
            except EndpointError as error:
                call.failed(error.endpoint, error)
                want = Want(audience=call.audience)
                track = await self._failed(error, call, want, track)
                if error.reached and not isinstance(error, COME_BACK_LATER):
                    most = most // _SMALLER or 1
            call = call.again()
            if call.request.input is None:
                return await self._call(call)
        endpoint = self._adapters.at(call.endpoint).endpoint
        call.answered(endpoint, completion, time.monotonic() - call.began)
        self.authority.succeeded()
        if call.settle is not None:
            await call.settle(completion)
        self.authority.accepted()
        return completion

    async def _call(self, call: Call) -> Completion:
        """Ask until there is an answer, or no hope of one."""
        want = self._wants.of(call, self.unasked)
        call.request = self._adapters.named(call.request)
        deadline = self._retry.deadline
        track = None if deadline is None else self.authority.track(time.monotonic())
        while True:
            timeout = self._retry.timeout
            if track is not None:
                timeout = track.timeout(time.monotonic())
            try:
                if self._budgeted is None:
                    return await self._attempt(call, want, timeout)
                return await self._paid(self._budgeted, call, want, timeout)
            except EndpointError as error:
                track = await self._failed(error, call, want, track)
                want = self._wants.after(want, call.endpoint, self.unasked)
                call = call.again()

    async def _failed(
        self, error: EndpointError, call: Call, want: Want, track: Track | None
    ) -> Track:
        """Wait until the request may be tried again.

        Raises:
            EndpointError: It was given up.
        """
        self.last_error = error if want.audience is None else _withheld(error)
        if call.request.once and error.reached and may_be_billed(error):
            self.authority.rejected(error)
            raise error
        now = time.monotonic()
        track = track or self.authority.track(now)
        elsewhere = self._wants.has_elsewhere(want, call.endpoint)
        decision: GiveUp | WaitFor | None = track.failed(error, now, elsewhere=elsewhere)
        while decision is not None:
            if isinstance(decision, GiveUp):
                raise track.error or error
            if decision.seconds > 0:
                await self._wait(decision.seconds)
            decision = track.again(time.monotonic())
        return track

    async def _wait(self, seconds: float) -> None:
        self._waiting += 1
        if self.on_wait is not None:
            self.on_wait()
        try:
            if self._spender is None:
                await asyncio.sleep(seconds)
            else:
                await self._spender.sleep(seconds)
        finally:
            self._waiting -= 1
            self.waits.retry += seconds

    async def _paid(
        self,
        payment: Payment,
        call: Call,
        want: Want,
        timeout: float | None,  # noqa: ASYNC109 - the wire client keeps it
    ) -> Completion:
        """Make a call that a budget has room for."""
        if not payment.reserve_nowait(call):
            await payment.reserve(call)
        try:
            return await self._attempt(call, want, timeout)
        finally:
            payment.settle(call)

    async def _attempt(
        self,
        call: Call,
        want: Want,
        timeout: float | None,  # noqa: ASYNC109 - the wire client keeps it
    ) -> Completion:
        pool = self._pool
        place = pool.enter_nowait(want)
        if place is None:
            place = await self._waited_for(want)
        endpoint, backend = pool.endpoints[place], self._adapters.at(place)
        self._counts.began()
        began = time.monotonic()
        call.endpoint, call.began, call.started = place, began, time.time()
        number, outcome = call.number, Outcome.CANCELLED
        error, completion, ended = None, None, 0.0
        try:
            try:
                completion = await self._sent(call, backend, timeout)
                if self._payment is not None and not call.superseded:
                    self._payment.answered(call, backend, completion)
            except WorkerLost as lost:
                # Its fleet has tried all there is to try.
                call.error = lost
                self.authority.rejected(lost)
                raise
            except Exception as failure:
                call.error = error = as_endpoint_error(backend, failure)
                outcome = outcome_of(error)
                call.failed(backend.endpoint, error)
                raise error from error.__cause__
            finally:
                ended = time.monotonic()
                self.waits.endpoint += ended - began
            if not call.superseded:
                call.answered(backend.endpoint, completion, ended - began)
            self._wants.rated |= completion.rate is not None
            outcome = Outcome.OK
            self.authority.succeeded()
            fits = call.settle is None or await call.settle(completion) is not False
            self.waits.record += time.monotonic() - ended
            if fits:
                self.authority.accepted()
            return completion
        finally:
            self._counts.ended()
            if self._payment is not None and call.used is None:
                self._payment.ended(call, backend)
            if call.superseded:
                # The endpoint has nothing to show for it but the time it took.
                outcome, completion = Outcome.CANCELLED, None
            if completion is None and call.error is None:
                call.cut_off(backend.endpoint, number)
            settle_place(endpoint, call, want, ended, outcome, completion, error)
            pool.wake()

    def _sent(self, call: Call, backend: Backend, timeout: float | None) -> Awaitable[Completion]:
        request = call.request
        if self._copies is None or request.on_text is not None or request.once:
            return backend.complete(request, timeout=timeout)
        return self._copies.complete(call, timeout)

    async def _waited_for(self, want: Want) -> int:
        queued = time.monotonic()
        place = await self._pool.enter(want, self._priority)
        self.waits.place += time.monotonic() - queued
        if self._spender is not None and self._spender.closed is not None:
            self._pool.unused(place)
            self._spender.check()
        return place

    def tick(self) -> None:
        """Follow a limit that has moved by itself; to be called now and then."""
        limit = self._pool.limit
        self.authority.resize(limit * (self._packing or 1))
        if self._copies is not None:
            self._copies.resize(limit)
        self._pool.wake()

    async def aclose(self) -> None:
        """End second copies that are still in flight."""
        if self._copies is not None:
            await self._copies.aclose()

    def statistics(self) -> EngineStatistics:
        """Return where the engine stands."""
        return EngineStatistics(
            limit=self._pool.limit,
            in_flight=self._counts.in_flight,
            peak_in_flight=self._counts.peak,
            calls=self.calls + self.hedged,
            hedged=self.hedged,
            shared=self._shared,
            retry=self.authority.statistics(),
            waiting=self._waiting,
            queued=self._pool.queued,
        )

    @property
    def hedged(self) -> int:
        """Second copies that were sent."""
        return 0 if self._copies is None else self._copies.sent


def _withheld(error: EndpointError) -> EndpointError:
    """Return an error of a request that not everybody may see, for displays and logs."""
    told = withheld(error)
    assert isinstance(told, EndpointError)
    return told


def _deterministic(request: Request) -> bool:
    """True if two answers to the request should be the same."""
    sampling = request.sampling
    if request.on_text is not None:
        return False
    if sampling.temperature != 0 and sampling.seed is None:
        return False
    return sampling.n is None or sampling.n == 1
