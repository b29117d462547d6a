"""What adapters to endpoints that come and go have in common: a roster on each event loop."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from itertools import count
from typing import TYPE_CHECKING, ClassVar

from scaleinfer.backends._base import Backend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer.backends._base import Follower
    from scaleinfer.backends._roster import Roster

__all__ = ["RosteredBackend"]


class RosteredBackend(Backend):
    """A backend whose members a roster follows, open on several loops by several users."""

    many: ClassVar[bool] = True

    def __init__(self) -> None:
        self._open: dict[asyncio.AbstractEventLoop, Roster] = {}
        self._turn = count()

    @abstractmethod
    def _roster(self) -> Roster:
        """Return a new roster."""

    async def _first_opens(self) -> None:
        """Open what the roster needs, for the first user on a loop."""

    async def _last_leaves(self) -> None:
        """Close it again."""

    @property
    def connection_wait_s(self) -> float:
        """Seconds that calls have waited for a connection so far, summed."""
        return sum(roster.connection_wait_s() for roster in self._open.values())

    @property
    def members(self) -> list[Backend]:
        """The adapters of the endpoints that get calls on the running loop, in listed order."""
        roster = self._open.get(asyncio.get_running_loop())
        return [] if roster is None else roster.members()

    def follow(self, follower: Follower) -> Sequence[Backend]:
        """Return the members, and tell the follower who comes and goes; see `Backend.follow`."""
        roster = self._open.get(asyncio.get_running_loop())
        # A run whose endpoints could not be opened is made all the same, to say why.
        return [] if roster is None else roster.follow(follower)

    async def open(self) -> None:
        """Read the list of endpoints and begin to follow it, on the running loop.

        Raises:
            ConfigError: The list is not there, or cannot be understood.
            EndpointError: It names no endpoint yet, or none that can be used.
        """
        loop = asyncio.get_running_loop()
        for other in [other for other in self._open if other.is_closed()]:
            del self._open[other]  # it ended without closing us
        roster = self._open.get(loop)
        if roster is None:
            roster = self._open[loop] = self._roster()
            await self._first_opens()
        roster.users += 1
        try:
            await roster.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close every member when the last user leaves."""
        loop = asyncio.get_running_loop()
        roster = self._open.get(loop)
        if roster is None:
            return
        roster.users -= 1
        if roster.users == 0:
            del self._open[loop]
            await roster.aclose()
            await self._last_leaves()
