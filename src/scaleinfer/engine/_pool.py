"""A set of endpoints and the queue before them, shared by all engines that use the same set."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from scaleinfer.engine._adaptive import AdaptiveLimiter
from scaleinfer.engine._breaker import Breaker
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._gate import Gate
from scaleinfer.engine._limiter import (
    Concurrency,
    FixedLimiter,
    FollowingLimiter,
    Limiter,
    Outcome,
)
from scaleinfer.engine._members import Members
from scaleinfer.engine._rate_limit import RateLimiter
from scaleinfer.engine._router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._rate_limit import RateLimit
    from scaleinfer.engine._wants import Want
    from scaleinfer.policy import Audience

__all__ = ["Pool", "endpoint_of", "pool_of"]

_LOOK_AT_ALL = 32
_LIMIT_HOLDS_S = 0.05
_MEMBER_PAUSES_S = (30.0, 60.0)
"""Pauses of a member's breaker: checks tell before they are over when to try it again."""
_REMEMBERED = 64
"""Pools kept for a backend and a set of rules; a map with bounds of its own makes one."""


class Pool:
    """Endpoints, their router, and those who wait for a place.

    Belongs to one event loop.

    Endpoints may come and go while calls are made: an index is never given to another, and one
    that is removed stays in the list, marked `left`, with its calls in flight.

    Args:
        endpoints: The endpoints' state machines.
        loop: The event loop of those who wait.
        growing: True if endpoints may be added; there may then be none yet.

    Attributes:
        endpoints: The same, and those that were added.
        router: Chooses among them.
        rated: True if an endpoint has a rate limit that was given, not learned.
        growing: True if endpoints may be added.
        changes: How often the adapters of members have changed; see `adapters`.
        sets: Those who add and remove endpoints; held for them here.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        loop: asyncio.AbstractEventLoop,
        *,
        growing: bool = False,
    ) -> None:
        self.router = Router(endpoints, growing=growing)
        self.endpoints = self.router.endpoints
        self.rated = any(endpoint.rate.rated for endpoint in self.endpoints)
        self.growing = growing
        self.changes = 0
        self.sets: dict[int, Members] = {}
        self._members: dict[int, Backend] = {}
        self._first_member = len(endpoints)
        self._limit, self._limit_until = 0, -math.inf
        self._gate: Gate[Want, int] = Gate(
            self._take, has_room=self._has_room, group=lambda want: want.audience
        )
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop = weakref.ref(loop)

    def belongs_to(self, loop: asyncio.AbstractEventLoop) -> bool:
        """True if it is this loop's."""
        return self._loop() is loop

    def move_to(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Become this loop's, if its own does not run any more; return whether that was done.

        Not with calls in flight: a loop that ended under them will never give them back.
        """
        before = self._loop()
        if before is not None and not before.is_closed() and before.is_running():
            return False
        if self.in_flight or self.queued:
            return False
        self._loop, self._timer = weakref.ref(loop), None
        return True

    def add(self, endpoint: Endpoint, member: Backend) -> int:
        """Send calls to one endpoint more; return its index.

        Args:
            endpoint: Its state.
            member: Its adapter, open.
        """
        index = self.router.add(endpoint)
        self.rated = self.rated or endpoint.rate.rated
        self._changed(index, member)
        return index

    def remove(self, index: int) -> None:
        """Send no more calls to an endpoint; those in flight there end as they would have."""
        self.router.remove(index)
        self._limit_until = -math.inf

    def restore(self, index: int, member: Backend) -> None:
        """Send calls to an endpoint again that was removed, through this adapter."""
        self.router.restore(index)
        if self._members.get(index) is not member:
            self._changed(index, member)
        self._limit_until = -math.inf
        self.wake()

    def mended(self, index: int, now: float) -> None:
        """A check says that an endpoint may be back: the next call sees whether it is."""
        endpoint = self.endpoints[index]
        endpoint.breaker.mended(now)
        if endpoint.parked and endpoint.unpark is not None:
            endpoint.unpark(endpoint)
        self.wake()

    def member(self, index: int) -> Backend | None:
        """Return the adapter of an endpoint that was added."""
        return self._members.get(index)

    def adapters(self, backends: Sequence[Backend]) -> list[Backend]:
        """Return the adapter of each endpoint, in their order.

        Args:
            backends: What the pool was made of.
        """
        fixed = [backend for backend in backends if not backend.many]
        return [*fixed[: self._first_member], *self._members.values()]

    def _changed(self, index: int, member: Backend) -> None:
        self._members[index] = member
        self.changes += 1
        self._limit_until = -math.inf
        self.wake()

    @property
    def limit(self) -> int:
        """Calls that may be in flight at all endpoints together."""
        if len(self.endpoints) == 1:
            return max(1, self.endpoints[0].limiter.limit)
        if len(self.endpoints) <= _LOOK_AT_ALL:
            return self._places()
        # Limits move slowly, and this is asked for many times a second.
        now = time.monotonic()
        if now >= self._limit_until:
            self._limit, self._limit_until = self._places(), now + _LIMIT_HOLDS_S
        return self._limit

    def _places(self) -> int:
        return max(1, sum(one.limiter.limit for one in self.endpoints if not one.left))

    @property
    def in_flight(self) -> int:
        """Calls that are in flight at all endpoints together."""
        return sum(endpoint.limiter.in_flight for endpoint in self.endpoints)

    @property
    def queued(self) -> int:
        """Calls that wait for a place."""
        return self._gate.waiting

    def admits(self, audience: Audience) -> bool:
        """True if an endpoint may see what is for this audience only, or there is none yet."""
        there = [endpoint for endpoint in self.endpoints if not endpoint.left]
        return any(audience.admits(one.name) for one in there) or (self.growing and not there)

    def has_other(self, than: set[int], audience: Audience | None = None) -> bool:
        """True if there is an endpoint that is none of these and takes calls.

        Args:
            than: These.
            audience: Those who may see the request, if not everybody.
        """
        now = time.monotonic()
        return any(
            number not in than
            and not endpoint.left
            and endpoint.limiter.limit > 0
            and endpoint.breaker.allows(now)
            and (audience is None or audience.admits(endpoint.name))
            for number, endpoint in enumerate(self.endpoints)
        )

    def enter_nowait(self, want: Want) -> int | None:
        """Take a place if there is one and nobody waits for it; return the endpoint's number."""
        return self._gate.enter_nowait(want)

    async def enter(self, want: Want, priority: int) -> int:
        """Wait for a place and take it; return the endpoint's number."""
        return await self._gate.enter(want, leave=self.unused, priority=priority)

    def wake(self) -> None:
        """Give free places to those who wait; to be called when one may have become free."""
        if self._gate.waiting:
            self._gate.wake()

    def _has_room(self) -> bool:
        """Return False if nobody at all could be given a place; cheaper than to ask for each."""
        endpoints = self.endpoints
        if len(endpoints) == 1:
            return endpoints[0].limiter.has_room
        return len(endpoints) > _LOOK_AT_ALL or any(one.limiter.has_room for one in endpoints)

    def _take(self, want: Want) -> int | None:
        now = time.monotonic()
        chosen = self.router.choose(
            now,
            affinity=want.affinity,
            avoid=want.avoid,
            remaining=want.remaining,
            audience=want.audience,
        )
        if chosen is None:
            self._wake_later(now)
        else:
            self.endpoints[chosen].started(now, want.tokens)
        return chosen

    def unused(self, chosen: int) -> None:
        """Give back a place that was taken and not used."""
        now = time.monotonic()
        self.endpoints[chosen].ended(now, Outcome.CANCELLED, began=now)
        self.wake()

    def _wake_later(self, now: float) -> None:
        """Come back when time alone will have made room: a rate limit, an open breaker."""
        at = self.router.wake_at(now)
        if at is None:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._timer_rang)

    def _timer_rang(self) -> None:
        self._timer = None
        self.wake()


def pool_of(
    backends: Sequence[Backend],
    concurrency: int | Concurrency | None,
    rate_limit: RateLimit | None = None,
) -> Pool:
    """Return the pool of these backends on the running loop; the same call, the same pool.

    Maps that are given the same backend objects and the same concurrency share places, queue
    and what was learned about the endpoints, at the same time and one after the other. Loops
    that run at the same time, in threads, have a pool each.

    Args:
        backends: The adapters.
        concurrency: A fixed number for each endpoint, bounds, or `None` for the default.
        rate_limit: For endpoints whose backend names none.
    """
    first, *others = backends
    known = _POOLS.setdefault(first, {})
    own = id(concurrency) if isinstance(concurrency, Concurrency) else concurrency
    key = (tuple(map(weakref.ref, others)), own, rate_limit)
    loop = asyncio.get_running_loop()
    with _LOCK:
        pools = known.pop(key, [])
        pool = next((pool for pool in pools if pool.belongs_to(loop)), None)
        if pool is None:
            pool = next((pool for pool in pools if pool.move_to(loop)), None)
        if pool is None:
            pool = _made(backends, concurrency, rate_limit, loop)
        # The latest last, so that those not asked for in a long time can be forgotten.
        known[key] = [*(other for other in pools if other is not pool), pool][-_REMEMBERED:]
        while len(known) > _REMEMBERED:
            del known[next(iter(known))]
    for position, members in pool.sets.items():
        members.meet(backends[position])
    return pool


_POOLS: WeakKeyDictionary[Backend, dict[Hashable, list[Pool]]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _made(
    backends: Sequence[Backend],
    concurrency: int | Concurrency | None,
    rate_limit: RateLimit | None,
    loop: asyncio.AbstractEventLoop,
) -> Pool:
    heaviest = max(backend.weight for backend in backends)
    fixed = [one for one in backends if not one.many]
    growing = len(fixed) < len(backends)
    endpoints = [_endpoint(one, concurrency, rate_limit, heaviest) for one in fixed]

    def member(backend: Backend) -> Endpoint:
        endpoint = _endpoint(backend, concurrency, rate_limit, max(heaviest, backend.weight))
        first, longest = _MEMBER_PAUSES_S
        endpoint.breaker = Breaker(first_pause=first, longest_pause=longest)
        return endpoint

    pool = Pool(endpoints, loop, growing=growing)
    pool.sets = {
        position: Members(pool, member) for position, one in enumerate(backends) if one.many
    }
    if len(endpoints) == 1 and not growing:
        # There is nowhere else to go, and the run's retry budget keeps calls from a broken one;
        # a breaker too would have every first try of an item fail in a probe of its own.
        endpoints[0].breaker = Breaker(failures=sys.maxsize)
    return pool


def endpoint_of(
    name: str,
    concurrency: int | Concurrency | None,
    *,
    start: int,
    adaptive: bool = True,
    most: int | None = None,
    rate_limit: RateLimit | None = None,
    weight: float = 1.0,
    heaviest: float | None = None,
    places: Callable[[], int] | None = None,
    least_places: int = 1,
) -> Endpoint:
    """Return an endpoint's state as a map begins with it.

    Args:
        name: Its name.
        concurrency: A fixed number, bounds, or `None` for the default.
        start: Calls in flight to begin with.
        adaptive: False if `start` is known to be best, and `concurrency` does not say otherwise.
        most: Calls that the process can hold; `None` for any number.
        rate_limit: What it allows, if that is known.
        weight: Its share, relative to others of the same speed.
        heaviest: The greatest weight among the endpoints; a fixed number of calls is for that
            one, and others have fewer in proportion.
        places: Says at each moment how many calls are useful; nothing is searched for then.
        least_places: Calls that may be in flight whatever `places` says.
    """
    limiter: Limiter
    if places is not None:
        bound = concurrency.max if isinstance(concurrency, Concurrency) else concurrency
        limiter = FollowingLimiter(places, most=bound, least=least_places)
    elif isinstance(concurrency, int) or (concurrency is None and not adaptive):
        wanted = max(1, round((concurrency or start) * weight / (heaviest or weight)))
        limiter = FixedLimiter(wanted if most is None else min(wanted, most))
    else:
        bounds = concurrency or Concurrency()
        limiter = AdaptiveLimiter(bounds, start=bounds.start or start, most=most)
    return Endpoint(name, limiter, rate=RateLimiter(rate_limit), weight=weight)


def _endpoint(
    backend: Backend,
    concurrency: int | Concurrency | None,
    rate_limit: RateLimit | None,
    heaviest: float,
) -> Endpoint:
    return endpoint_of(
        backend.endpoint,
        concurrency,
        start=backend.concurrency,
        adaptive=backend.adaptive,
        most=backend.most_in_flight,
        rate_limit=backend.rate_limit or rate_limit,
        weight=backend.weight,
        heaviest=heaviest,
        places=backend.places,
        least_places=backend.least_places,
    )
