"""The asyncio shell around limiter and retry authority: makes one call after the other happen."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._gate import Gate
from scaleinfer.engine._retry import COME_BACK_LATER, GiveUp, RetryAuthority, RetryStatistics
from scaleinfer.errors import EndpointError, Permanent
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._limiter import Limiter, LimiterStatistics
    from scaleinfer.engine._retry import Retry
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["Engine", "EngineStatistics"]


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """An engine at one moment.

    Attributes:
        limiter: Places at the endpoint.
        retry: What the calls came to.
        waiting: Requests that wait for their next try; they hold no place.
        queued: Requests that wait for a place.
    """

    limiter: LimiterStatistics
    retry: RetryStatistics
    waiting: int
    queued: int


class Engine:
    """Makes calls to one endpoint within its limit, trying again what may pass.

    Args:
        backend: The endpoint's adapter, opened.
        limiter: How many calls may be in flight.
        retry: The rules for trying again.

    Attributes:
        last_error: The latest error of any call, for progress displays.
    """

    def __init__(self, backend: Backend, *, limiter: Limiter, retry: Retry) -> None:
        self.backend = backend
        self.authority = RetryAuthority(retry)
        self.last_error: EndpointError | None = None
        self._limiter = limiter
        self._timeout = retry.timeout
        self._gate = Gate(lambda: limiter.has_room, limiter.started)
        self._waiting = 0

    async def call(
        self,
        request: Request,
        *,
        attempted: Callable[[Attempt], None],
        number: int = 0,
        settle: Callable[[Completion], Awaitable[None]] | None = None,
    ) -> Completion:
        """Make a request and return its answer.

        Args:
            request: What to ask.
            attempted: Told of every call as it ends.
            number: Calls already made for the item.
            settle: Given the answer and awaited before the call's place is given back. What
                it raises goes to the caller.

        Raises:
            EndpointError: The request was given up.
        """
        failures = later = 0
        first_failure: float | None = None
        while True:
            number += 1
            try:
                return await self._attempt(request, attempted, number, settle)
            except EndpointError as error:
                self.last_error = error
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                if isinstance(error, COME_BACK_LATER):
                    later += 1
                else:
                    failures += 1
                decision = self.authority.failed(
                    error, attempt=failures, later=later, first_failure=first_failure, now=now
                )
                if isinstance(decision, GiveUp):
                    raise
            self._waiting += 1
            try:
                await asyncio.sleep(decision.seconds)
            finally:
                self._waiting -= 1

    async def _attempt(
        self,
        request: Request,
        attempted: Callable[[Attempt], None],
        number: int,
        settle: Callable[[Completion], Awaitable[None]] | None,
    ) -> Completion:
        await self._gate.enter(leave=self._release)
        try:
            completion = await self._timed(request, attempted, number)
            self.authority.succeeded()
            if settle is not None:
                await settle(completion)
            self.authority.accepted()
            return completion
        finally:
            self._release()

    async def _timed(
        self, request: Request, attempted: Callable[[Attempt], None], number: int
    ) -> Completion:
        endpoint, started, began = self.backend.endpoint, time.time(), time.monotonic()
        try:
            completion = await self._complete(request)
        except EndpointError as error:
            took, status = time.monotonic() - began, type(error).__name__
            attempted(
                Attempt(number, endpoint, started, took, status, error.status, error=error.message)
            )
            raise
        usage, took = completion.usage, time.monotonic() - began
        attempted(
            Attempt(
                number,
                endpoint,
                started,
                took,
                "ok",
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
            )
        )
        return completion

    async def _complete(self, request: Request) -> Completion:
        try:
            return await self.backend.complete(request, timeout=self._timeout)
        except EndpointError:
            raise
        except Exception as error:
            # A defect in an adapter costs the item, never a run of millions.
            raise Permanent(
                f"the {self.backend.kind} backend raised {type(error).__name__}: {error}",
                endpoint=self.backend.endpoint,
            ) from error

    def _release(self) -> None:
        self._limiter.ended()
        self._gate.wake()

    def statistics(self) -> EngineStatistics:
        """Return where the engine stands."""
        return EngineStatistics(
            self._limiter.statistics(),
            self.authority.statistics(),
            self._waiting,
            self._gate.waiting,
        )
