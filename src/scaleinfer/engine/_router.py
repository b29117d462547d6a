"""Which of several endpoints gets the next call. A plain state machine: the clock is passed in.

Endpoints found without room are parked until a call ends there or their time comes, so that
a choice looks only at those that may have room, and at a few of these when they are many
(the power of two choices, M. Mitzenmacher, IEEE TPDS 12(10), 2001).
"""

from __future__ import annotations

import heapq
import math
import random
from itertools import islice
from typing import TYPE_CHECKING

from scaleinfer.engine._endpoint import Traffic
from scaleinfer.engine._ring import Ring
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from scaleinfer.engine._endpoint import Endpoint, EndpointStatistics
    from scaleinfer.policy import Audience

__all__ = ["Router"]

_LOOK_AT_ALL = 8
_LOOK_AT = 2
_ROUNDS = 4
# Scores within a quarter are equal: the endpoint with fewer turns goes first.
_CLEARLY = 1.25
_SLOW = 2.0
_HOME_FACTOR = 2.0
_HOME_CALLS = 4
_HOMES = 3
_SOON_S = 5.0
_LOOK_AGAIN = 0.1
_LOOK_AGAIN_S = 0.05


class Router:
    """Chooses an endpoint for each call: the one where it should be done first.

    That is the least outstanding work at the observed speed, `(calls + 1) * seconds / weight`.
    The seconds of a call stand for the endpoint's goodput: what it has in flight is work of
    the size it was given, so longer answers there count as more work and not as a slower
    endpoint.

    Args:
        endpoints: Where calls may go; they belong to this router from now on.
        seed: Makes the choices among many endpoints repeatable.
        growing: True if others may come; there may then be none yet.

    Raises:
        ConfigError: There is no endpoint.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], *, seed: int = 0, growing: bool = False
    ) -> None:
        if not endpoints and not growing:
            raise ConfigError("there is no endpoint to send requests to; name at least one.")
        self.endpoints: list[Endpoint] = []
        self._only = endpoints[0] if len(endpoints) == 1 and not growing else None
        self._random = random.Random(seed)
        self._traffic = Traffic()
        self._free: list[Endpoint] = []
        self._place: list[int] = []
        self._parked_until: list[float | None] = []
        self._due: list[tuple[float, int]] = []
        self._late: list[Endpoint] = []
        self._look_again = -math.inf
        self._ring: Ring | None = None
        for endpoint in endpoints:
            self._take_on(endpoint)
        self._traffic.several = growing or len(endpoints) > 1

    def add(self, endpoint: Endpoint) -> int:
        """Send calls to one endpoint more; return its index, which no other will ever have."""
        self._only = None
        self._even_out(endpoint)
        self._take_on(endpoint)
        self._traffic.several = True
        return endpoint.index

    def remove(self, index: int) -> None:
        """Send no more calls to an endpoint; those in flight there end as they would have."""
        endpoint = self.endpoints[index]
        if endpoint.left:
            return
        self._only = None
        self._traffic.several = True
        endpoint.left = True
        endpoint.unpark = None
        self._park(endpoint, None)
        self._parked_until[index] = None
        self._ring = None

    def restore(self, index: int) -> None:
        """Send calls again to an endpoint that was removed; what was learned of it holds."""
        endpoint = self.endpoints[index]
        if not endpoint.left:
            return
        self._even_out(endpoint)
        endpoint.left = False
        endpoint.unpark = self._unpark
        self._unpark(endpoint)
        self._ring = None

    def _even_out(self, endpoint: Endpoint) -> None:
        """Have a newcomer begin with the turns of the others: it has nothing to catch up."""
        if not self._traffic.calls and not self._traffic.answered:
            return  # nobody has any
        fewest = min((one.turns for one in self.endpoints if not one.left), default=0.0)
        endpoint.turns = max(endpoint.turns, fewest)

    def _take_on(self, endpoint: Endpoint) -> None:
        endpoint.index = len(self.endpoints)
        endpoint.traffic = self._traffic
        endpoint.unpark = self._unpark
        self.endpoints.append(endpoint)
        self._place.append(0)
        self._parked_until.append(None)
        self._unpark(endpoint)
        self._ring = None

    def choose(
        self,
        now: float,
        *,
        affinity: int | None = None,
        avoid: Container[int] = (),
        remaining: int | None = None,
        audience: Audience | None = None,
    ) -> int | None:
        """Return the index of the endpoint that should get a call, `None` if it must wait.

        The caller tells that endpoint that the call `started`.

        Args:
            now: The clock, in seconds.
            affinity: Stands for the prompt's prefix. Calls with the same number go to the
                same endpoint while it has room and is not clearly busier than another.
            avoid: Endpoints that just failed this request. They are used only if no other
                can be expected to take it within seconds.
            remaining: Calls that are still to be started, this one included, if known. Near
                the end a slow endpoint gets no call that the others would finish before it.
            audience: Those who may see the call, if not everybody; the others do not exist for it.
        """
        only = self._only
        if only is not None:
            return 0 if _admitted(only, audience) and only.has_room(now) else None
        while self._due and self._due[0][0] <= now:
            self._wake(*heapq.heappop(self._due))
        self._look_again = -math.inf
        end = math.inf if remaining is None else self._end(remaining)
        chosen = self._least_loaded(now, avoid, end, audience)
        if chosen is None:
            if not avoid or any(
                endpoint.index not in avoid
                and _usable(endpoint, now)
                and _admitted(endpoint, audience)
                for endpoint in self.endpoints
            ):
                return None
            chosen = self._least_loaded(now, (), math.inf, audience)
        elif affinity is not None:
            chosen = self._home(affinity, chosen, now, avoid, audience)
        return None if chosen is None else chosen.index

    def wake_at(self, now: float) -> float | None:
        """Return when a choice that was `None` may come out otherwise by time alone.

        `None` if only the end of a call can change it.
        """
        if self._only is not None:
            return self._only.wake_at(now)
        while self._due and self._parked_until[self._due[0][1]] != self._due[0][0]:
            heapq.heappop(self._due)
        times = [self._due[0][0]] if self._due else []
        if self._look_again > now:
            times.append(self._look_again)
        return min(times, default=None)

    def home(self, affinity: int) -> int:
        """Return the endpoint that calls with this affinity go to when nothing is amiss."""
        return 0 if self._only is not None else self._circle().home(affinity)

    def statistics(self) -> list[EndpointStatistics]:
        """Return where each endpoint stands."""
        return [endpoint.statistics() for endpoint in self.endpoints]

    def _least_loaded(
        self, now: float, avoid: Container[int], end: float, audience: Audience | None
    ) -> Endpoint | None:
        free = self._free
        for _ in range(_ROUNDS):
            many = len(free)
            if many <= _LOOK_AT_ALL:
                break
            draw = self._random.random
            sample = [free[int(draw() * many)] for _ in range(_LOOK_AT)]
            chosen = self._least_of(sample, now, avoid, end, audience)
            if chosen is not None:
                return chosen
        chosen = self._least_of(free, now, avoid, end, audience)
        if chosen is None and self._late:
            return self._instead_of_waiting(self._late, now, end, audience)
        return chosen

    def _least_of(
        self,
        endpoints: Iterable[Endpoint],
        now: float,
        avoid: Container[int],
        end: float,
        audience: Audience | None,
    ) -> Endpoint | None:
        chosen: Endpoint | None = None
        turns = clearly = near = least = math.inf
        full: list[Endpoint] = []
        self._late = []
        for endpoint in endpoints:
            if audience is not None and not audience.admits(endpoint.name):
                continue
            score = endpoint.score(now)
            if score >= clearly and (score >= near or endpoint.turns >= turns):
                continue
            if avoid and endpoint.index in avoid:
                continue
            if not endpoint.has_room(now):
                full.append(endpoint)
            elif end < math.inf and self._too_late(endpoint, now, end):
                self._late.append(endpoint)
            else:
                chosen, turns, least = endpoint, endpoint.turns, min(score, least)
                clearly, near = score / _CLEARLY, least * _CLEARLY
        for endpoint in full:
            self._park(endpoint, endpoint.wake_at(now))
        return chosen

    def _home(
        self,
        affinity: int,
        least: Endpoint,
        now: float,
        avoid: Container[int],
        audience: Audience | None,
    ) -> Endpoint:
        own = self.endpoints[self.home(affinity)]
        if own is least:
            return own
        bound = _HOME_FACTOR * least.score(now) + _HOME_CALLS * least.seconds(now) / least.weight
        if _admitted(own, audience) and _takes_in(own, bound, now, avoid):
            return own
        # The next on the ring, so that a prefix whose home is busy or gone stays together.
        for index in islice(self._circle().walk(affinity), 1, _HOMES):
            other = self.endpoints[index]
            if not _admitted(other, audience):
                continue
            if other is least or _takes_in(other, bound, now, avoid):
                return other
        return least

    def _circle(self) -> Ring:
        if self._ring is None:
            there = [endpoint for endpoint in self.endpoints if not endpoint.left]
            self._ring = Ring(
                [endpoint.name for endpoint in there],
                [endpoint.weight for endpoint in there],
                [endpoint.index for endpoint in there],
            )
        return self._ring

    def _end(self, remaining: int | None) -> float:
        """Return in how many seconds the last call should be done."""
        traffic = self._traffic
        if remaining is None or not traffic.answered or traffic.flow <= 0:
            return math.inf
        return (remaining + traffic.calls) / traffic.flow

    def _too_late(self, endpoint: Endpoint, now: float, end: float) -> bool:
        slow = endpoint.seconds(now) > _SLOW * self._traffic.seconds
        return slow and endpoint.latest(now) > end

    def _instead_of_waiting(
        self, late: list[Endpoint], now: float, end: float, audience: Audience | None
    ) -> Endpoint | None:
        soonest = min(late, key=lambda endpoint: endpoint.latest(now))
        if any(
            each.calls
            and not each.left
            and _admitted(each, audience)
            and not self._too_late(each, now, end)
            for each in self.endpoints
        ):
            # The others may stall, and then no call's end would bring the caller back here.
            again = now + max(_LOOK_AGAIN_S, _LOOK_AGAIN * soonest.seconds(now))
            if len(late) > _LOOK_AT_ALL:
                for endpoint in late:
                    self._park(endpoint, again)
            self._look_again = again
            return None
        return soonest

    def _park(self, endpoint: Endpoint, until: float | None) -> None:
        if endpoint.parked:
            return
        endpoint.parked = True
        last = self._free.pop()
        if last is not endpoint:
            place = self._place[endpoint.index]
            self._free[place] = last
            self._place[last.index] = place
        if until is not None and until != self._parked_until[endpoint.index]:
            heapq.heappush(self._due, (until, endpoint.index))
        self._parked_until[endpoint.index] = until

    def _unpark(self, endpoint: Endpoint) -> None:
        endpoint.parked = False
        self._place[endpoint.index] = len(self._free)
        self._free.append(endpoint)

    def _wake(self, due: float, index: int) -> None:
        if self._parked_until[index] == due:
            self._parked_until[index] = None
            endpoint = self.endpoints[index]
            if endpoint.parked and not endpoint.left:
                self._unpark(endpoint)


def _usable(endpoint: Endpoint, now: float) -> bool:
    if endpoint.left or not endpoint.limiter.limit:
        return False
    return endpoint.breaker.allows(now) and endpoint.rate.ready_at <= now + _SOON_S


def _admitted(endpoint: Endpoint, audience: Audience | None) -> bool:
    return audience is None or audience.admits(endpoint.name)


def _takes_in(home: Endpoint, bound: float, now: float, avoid: Container[int]) -> bool:
    return home.score(now) <= bound and home.index not in avoid and home.has_room(now)
