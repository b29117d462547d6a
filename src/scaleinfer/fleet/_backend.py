"""A fleet as the engine sees it: one endpoint with as many places as its workers hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from scaleinfer.backends import Backend, EndpointStatus
from scaleinfer.errors import ConfigError, Permanent, Transient, WorkerLost

if TYPE_CHECKING:
    from scaleinfer.fleet._fleet import Fleet
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["FleetBackend"]


class FleetBackend(Backend):
    """Gives one map's requests to a fleet and waits for the answers.

    Args:
        fleet: The fleet.
        priority: Requests with a higher one go first.
        once: True if each request is paid for one call. What may have been generated before
            its worker was lost is then no longer asked by the fleet itself: it fails as
            `Transient`, and whoever holds the budget decides.
    """

    kind: ClassVar[str] = "fleet"

    def __init__(self, fleet: Fleet, *, priority: int = 0, once: bool = False) -> None:
        self.endpoint = f"fleet {fleet.name}"
        self.model = fleet.model
        self.places = self._places
        self._fleet = fleet
        self._priority = priority
        self._once = once
        self._job = 0

    async def open(self) -> None:
        """Make sure that the fleet is there.

        Raises:
            ConfigError: It is not open, or belongs to another event loop.
        """
        if self._fleet.loop is not asyncio.get_running_loop():
            raise ConfigError(
                f"the fleet {self._fleet.name} belongs to another event loop."
                if self._fleet.loop is not None
                else f"the fleet {self._fleet.name} is not open.",
                hint="Use `async with fleet:` and `await parallel_map(..., fleet=fleet)` within.",
            )
        self._job = self._fleet.broker.job()

    @property
    def starting(self) -> bool:
        """True while there is no worker yet."""
        return self._fleet.loop is not None and not self._fleet.broker.workers

    @property
    def waits_for(self) -> str:
        """What requests wait for; empty if there are workers."""
        return "starting the workers" if self.starting else ""

    @property
    def nodes(self) -> int:  # type: ignore[override] # it changes by itself
        """Nodes on which there is a worker."""
        return 0 if self._fleet.loop is None else self._fleet.broker.nodes

    def _places(self) -> int:
        return self._fleet.broker.places

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Have a worker ask; its own rules say how long a call may take.

        Raises:
            EndpointError: The worker gave it up.
            WorkerLost: Every worker that had it was lost.
        """
        del timeout
        if request.model is not None and request.model == self.model:
            # Each worker's endpoint may have a name of its own for it.
            request = replace(request, model=None)
        if self._once:
            request = replace(request, once=True)
        broker, number = self._fleet.broker, None
        try:
            number, answer = broker.ask(request, job=self._job, priority=self._priority)
            return await answer
        except asyncio.CancelledError:
            if number is not None:
                broker.withdraw(number)
            raise
        except WorkerLost as lost:
            if not self._once:
                raise
            # A request that was never handed over costs nothing.
            raise Transient(
                lost.message, endpoint=self.endpoint, hint=lost.hint, reached=number is not None
            ) from lost
        except ConfigError as error:
            # Of the fleet, not of this request: no other can do better.
            raise Permanent(
                error.message, endpoint=self.endpoint, fatal=True, hint=error.hint
            ) from error

    async def check(self) -> EndpointStatus:
        """Return whether there are workers."""
        workers = self._fleet.broker.workers
        return EndpointStatus(self.endpoint, bool(workers), f"{workers} workers")
