"""Tasks that wait, first come first served, for a place that a state machine grants."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate"]


class Gate:
    """The asyncio side of a state machine that has room or not.

    Args:
        has_room: True if a place is free.
        take: Takes the place.
    """

    def __init__(self, has_room: Callable[[], bool], take: Callable[[], None]) -> None:
        self._has_room = has_room
        self._take = take
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Tasks that wait for a place."""
        return sum(not place.done() for place in self._queue)

    async def enter(self, *, leave: Callable[[], None]) -> None:
        """Wait for a place and take it.

        Args:
            leave: Gives the place back, should the task be cancelled just as it got it.
        """
        if not self._queue and self._has_room():
            self._take()
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                leave()
            raise

    def wake(self) -> None:
        """Give free places to those who wait; to be called when one may have become free."""
        while self._queue and self._has_room():
            place = self._queue.popleft()
            if not place.done():
                self._take()
                place.set_result(None)
