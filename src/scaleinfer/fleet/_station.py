"""A worker without its agent: takes leases, has an engine ask them, reports what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from scaleinfer import __version__
from scaleinfer.engine import Engine, pool_of
from scaleinfer.errors import EndpointError
from scaleinfer.fleet._messages import PROTOCOL, FormReader, answer_of
from scaleinfer.fleet._pace import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends import Backend
    from scaleinfer.engine import Concurrency, Dispatch, RateLimit, Retry
    from scaleinfer.fleet._status import WorkerFacts
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["Station"]

_MOST_DONE = 2_000
"""Answers in one message; the others ride in the next, which then follows at once."""


class Station:
    """One worker's backlog, its engine, and the answers that wait to be reported.

    Args:
        name: The worker's name.
        facts: What the coordinator is told about it.
        retry: How failed calls are tried again.
        concurrency: Calls in flight at each endpoint.
        rate_limit: For endpoints that have no limit of their own.
        dispatch: In which order calls go out.
        secret: What the coordinator wants to be shown.

    Attributes:
        facts: The same; sent again when changed.
        leaving: True once no more leases are wanted.
        served: True once there were endpoints to ask.
        ended: The coordinator said that it is over.
        refused: Why the coordinator does not want this worker; else empty.
        wake: Set when a message may be due earlier than thought.
        stopped: Set while the endpoints are broken.
    """

    def __init__(
        self,
        name: str,
        facts: WorkerFacts,
        *,
        retry: Retry,
        concurrency: int | Concurrency | None = None,
        rate_limit: RateLimit | None = None,
        dispatch: Dispatch | None = None,
        secret: str | None = None,
    ) -> None:
        self.name = name
        self.facts = facts
        self.leaving = False
        self.served = False
        self.ended = False
        self.refused = ""
        self.wake = asyncio.Event()
        self.stopped = asyncio.Event()
        self._retry = retry
        self._concurrency = concurrency
        self._rate_limit = rate_limit
        self._dispatch = dispatch
        self._secret = secret
        self._told: WorkerFacts | None = None
        self._telling: WorkerFacts | None = None
        self._pace = Pace()
        self._forms = FormReader()
        self._engine: Engine | None = None
        self._broken: EndpointError | None = None
        self._backlog: deque[tuple[int, int, Request]] = deque()
        self._working: dict[int, asyncio.Task[None]] = {}
        self._fences: dict[int, int] = {}
        self._dropped: set[int] = set()
        self._done: list[tuple[int, list[Any]]] = []
        self._reported = self._reported_back = 0
        self._back: list[tuple[int, int]] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._number = -1
        self._ack = -1
        self._sent = self._took = 0.0
        self._epoch = ""
        self._limited: list[Backend] = []

    # -- the endpoints ---------------------------------------------------------------------

    def limit(self, backends: Sequence[Backend]) -> None:
        """Have those that share a limit with other machines wait for what the coordinator allows.

        To be called before they are opened: opening them may need calls too.
        """
        self._limited = [backend for backend in backends if backend.user_rate is not None]
        for backend in self._limited:
            backend.use_share(self, 0)

    def serve(self, backends: Sequence[Backend]) -> None:
        """Ask these endpoints from now on; they are open. None of them: hold no work."""
        self._broken = None
        self.stopped.clear()
        if not backends:
            self._engine = None
            self._give_back(len(self._backlog))
            return
        self.served = True
        pool = pool_of(backends, self._concurrency, self._rate_limit)
        self._engine = Engine(backends, pool=pool, retry=self._retry, dispatch=self._dispatch)
        self._engine.on_wait = self._grow
        self._begin()
        self.wake.set()

    def broke(self, error: EndpointError) -> None:
        """The endpoint cannot be used: what was not answered goes back to the coordinator."""
        if self._broken is None:
            self._broken = error
            self.stopped.set()
            self._give_back(len(self._backlog))
            self.wake.set()

    @property
    def interval(self) -> float:
        """Seconds between messages, as the coordinator wants them."""
        return self._pace.interval

    @property
    def broken(self) -> EndpointError | None:
        """Why the endpoint cannot be used; `None` while it can."""
        return self._broken

    @property
    def pending(self) -> int:
        """Requests that are in flight or wait to be."""
        return len(self._working) + len(self._backlog)

    # -- messages --------------------------------------------------------------------------

    def due(self) -> float:
        """Return when the next message goes, by the monotonic clock."""
        if len(self._done) > _MOST_DONE:
            return 0.0
        engine = self._engine
        starving = engine is not None and not self._backlog and len(self._working) < engine.lanes
        return self._pace.due(starving=starving and bool(self._done))

    def message(self) -> dict[str, Any]:
        """Return what to tell the coordinator now; `taken` or `lost` must follow."""
        now, engine = time.monotonic(), self._engine
        self._number += 1
        self._sent = now
        self._pace.sent(now, min(len(self._done), _MOST_DONE))
        self._reported, self._reported_back = min(len(self._done), _MOST_DONE), len(self._back)
        wants = engine is not None and self._broken is None and not self.leaving
        rates = self._rates()
        if rates and not any(held for _, held in rates.values()):
            wants = False  # what it would ask has to wait, and others need not
        said = {
            "v": PROTOCOL,
            "version": __version__,
            "secret": self._secret,
            "worker": self.name,
            "epoch": self._epoch,
            "n": self._number,
            "ack": self._ack,
            "took": round(self._took, 3),
            "room": self._pace.room(engine.lanes) if wants and engine is not None else 0,
            "unbegun": len(self._backlog),
            "in_flight": len(self._working),
            "limit": 0 if engine is None else engine.limit,
            "done": self._done[: self._reported],
            "back": list(self._back),
            "leave": self.leaving and not self.pending and len(self._done) <= self._reported,
            "leaving": self.leaving,
            "broken": None if self._broken is None else self._broken.to_dict(),
        }
        if rates:
            said["rates"] = rates
        self._telling = self.facts
        if self._told != self.facts:
            said["facts"] = self.facts.to_dict()
        return said

    def lost(self) -> None:
        """No reply came: what was told is told again."""
        self._took = time.monotonic() - self._sent
        self._pace.lost()
        self._reported = self._reported_back = 0
        self._told = None

    def taken(self, reply: dict[str, Any]) -> None:
        """Take the coordinator's reply.

        Raises:
            LookupError: The reply is not what a coordinator of our version says.
        """
        if "refuse" in reply:
            self.refused = str(reply["refuse"])
            return
        self._told = self._telling
        self._took = time.monotonic() - self._sent
        del self._done[: self._reported]
        del self._back[: self._reported_back]
        self._reported = self._reported_back = 0
        self._ack = reply["n"]
        self._pace.interval = reply["interval"]
        if reply["reset"]:
            self._reset(everything=reply["reset"] == "all")
        self._epoch = reply["epoch"]
        self._share(reply.get("shares", {}), reply.get("shares_s", 0.0))
        if reply["end"]:
            self.ended = True
        if reply["leave"] and not self.leaving:
            self.leave()
        if "give" not in reply:
            return
        self._drop(reply["drop"])
        self._give_back(reply["back"])
        self._forms.learn(reply["forms"])
        for number, fence, data in reply["give"]:
            self._backlog.append((number, fence, self._forms.request(data)))
        if self._engine is None or self._broken is not None or self.leaving:
            # Asked for before the endpoint went; others need not wait until it is back.
            self._give_back(len(self._backlog))
        elif reply["give"]:
            self._begin()

    # -- ending ----------------------------------------------------------------------------

    def leave(self) -> None:
        """Take no more work, and hand back what was not begun."""
        self.leaving = True
        self._give_back(len(self._backlog))
        self.wake.set()

    def abandon(self) -> None:
        """End the calls in flight; what they were for goes back to the coordinator."""
        for number in list(self._working):
            self._back.append((number, self._fences[number]))
            self._dropped.add(number)
            self._working[number].cancel()

    async def aclose(self) -> None:
        """End everything."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        if self._engine is not None:
            await self._engine.aclose()

    # -- the inside ------------------------------------------------------------------------

    def _rates(self) -> dict[str, tuple[float, int]]:
        """Return the limits that are shared, by name: requests a second, and our share now."""
        rates: dict[str, tuple[float, int]] = {}
        for backend in self._limited:
            if backend.user_rate is not None:
                name, per_second = backend.user_rate
                rates[name] = per_second, backend.share_of(self)
        return rates

    def _share(self, shares: dict[str, int], seconds: float) -> None:
        """Take what the coordinator allows; it holds for so long, counted from our question."""
        for backend in self._limited:
            if backend.user_rate is not None and backend.user_rate.name in shares:
                share = shares[backend.user_rate.name]
                backend.use_share(self, share, until=self._sent + seconds)

    def _reset(self, *, everything: bool) -> None:
        """The coordinator does not know what we hold: others do it by now."""
        self._backlog.clear()
        if everything:
            self._done.clear()
            self._forms = FormReader()
            self._drop(list(self._working))

    def _give_back(self, count: int) -> None:
        for _ in range(min(count, len(self._backlog))):
            number, fence, _request = self._backlog.pop()
            self._back.append((number, fence))

    def _drop(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        gone = set(numbers)
        for number in gone:
            task = self._working.get(number)
            if task is not None:
                self._dropped.add(number)
                task.cancel()
        if any(entry[0] in gone for entry in self._backlog):
            self._backlog = deque(entry for entry in self._backlog if entry[0] not in gone)

    def _grow(self) -> None:
        """Have as many lanes as calls may be in flight, and more for those that wait."""
        engine = self._engine
        if engine is None:
            return
        wanted = min(engine.lanes + engine.waiting, len(self._working) + len(self._backlog))
        for _ in range(wanted - len(self._lanes)):
            lane = asyncio.create_task(self._lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    def _begin(self) -> None:
        self._grow()
        while self._idle and self._backlog:
            self._wake_lane()

    def _wake_lane(self) -> None:
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def _lane(self) -> None:
        lane = asyncio.current_task()
        assert lane is not None
        while True:
            engine = self._engine
            if engine is not None and len(self._lanes) > engine.lanes + engine.waiting:
                # At once, or of those that wake together each would find one too many.
                self._lanes.discard(lane)
                return
            if engine is None or self._broken is not None or not self._backlog:
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiting)
                await waiting
                continue
            number, fence, request = self._backlog.popleft()
            await self._ask(engine, number, fence, request)

    async def _ask(self, engine: Engine, number: int, fence: int, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._working[number], self._fences[number] = task, fence
        calls: list[Attempt] = []
        try:
            completion = await engine.call(request, attempted=calls.append)
        except EndpointError as error:
            self._failed(number, fence, error, calls)
        except asyncio.CancelledError:
            if number not in self._dropped:
                raise
            task.uncancel()
        else:
            self._done.append((number, answer_of(completion, calls)))
        finally:
            del self._working[number], self._fences[number]
            self._dropped.discard(number)
        if not self._backlog:
            # Perhaps a message is due now.
            self.wake.set()

    def _failed(
        self, number: int, fence: int, error: EndpointError, calls: Sequence[Attempt]
    ) -> None:
        engine = self._engine
        cause = None if engine is None else engine.authority.cause
        if error.fatal or not error.reached or cause is not None:
            # The node's fault, not the request's: another worker may well have the answer.
            self._back.append((number, fence))
            self.broke(cause if isinstance(cause, EndpointError) else error)
            return
        self._done.append((number, answer_of(error, calls)))
