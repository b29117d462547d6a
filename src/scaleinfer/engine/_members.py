"""The endpoints of a set in a pool: they come and go while runs go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.backends._base import Backend
    from scaleinfer.engine._endpoint import Endpoint
    from scaleinfer.engine._pool import Pool

__all__ = ["Members"]


class Members:
    """Follows a set for a pool (see `scaleinfer.backends.Follower`).

    One that comes back under its name takes its old place: what was learned of its speed, its
    limit and its breaker holds.

    Args:
        pool: Whose endpoints they are; it has to hold this object.
        make: Makes a member's state.
    """

    def __init__(self, pool: Pool, make: Callable[[Backend], Endpoint]) -> None:
        self._pool = pool
        self._make = make
        self._places: dict[str, int] = {}

    def meet(self, source: Backend) -> None:
        """Have the members that a set has now, and follow it."""
        there = source.follow(self)
        names = {member.endpoint for member in there}
        for name, place in self._places.items():
            if name not in names:
                self._pool.remove(place)
        for member in there:
            self.joined(member)

    def joined(self, member: Backend) -> None:
        """Send calls to this one from now on."""
        place = self._places.get(member.endpoint)
        if place is None:
            self._places[member.endpoint] = self._pool.add(self._make(member), member)
        else:
            self._pool.restore(place, member)

    def left(self, member: Backend) -> None:
        """Send no more calls there."""
        place = self._places.get(member.endpoint)
        if place is not None:
            self._pool.remove(place)

    def mended(self, member: Backend) -> None:
        """Let a call see whether it is back."""
        place = self._places.get(member.endpoint)
        if place is not None:
            self._pool.mended(place, time.monotonic())

    def troubled(self) -> list[Backend]:
        """Return those whose breaker is open."""
        found = []
        for place in self._places.values():
            endpoint = self._pool.endpoints[place]
            if not endpoint.left and endpoint.breaker.is_open:
                adapter = self._pool.member(place)
                if adapter is not None:
                    found.append(adapter)
        return found

    def busy(self, member: Backend) -> bool:
        """Return whether calls are in flight there."""
        place = self._places.get(member.endpoint)
        return place is not None and self._pool.endpoints[place].calls > 0

    def calls(self) -> int:
        """Return how many calls have been sent to them so far."""
        return sum(self._pool.endpoints[place].started_calls for place in self._places.values())
