"""Tasks that wait, by priority and then first come first served, for a place to be granted."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Gate"]

W = TypeVar("W")
T = TypeVar("T")

_DEPTH = 8
"""Waiters that are asked for when a place is free; the first may want none of those there are."""
_LOOK_PAST = 512
"""Waiters of a group that has just been refused, past which others are looked for."""


class Gate(Generic[W, T]):
    """The asyncio side of a state machine that has room for a caller or not.

    Belongs to one event loop. A caller that gets no place although there is one (it avoids
    that endpoint, say) does not stand in the way of the next ones; it keeps its turn.

    Args:
        take: Takes a place for a caller and returns it; `None` if there is none for it now.
        has_room: False if there is no place for anybody; saves asking `take` in vain.
        group: What callers that want the same few places have in common; `None` of one that may
            have any. Where one of a group is refused, the others are not asked for.
    """

    def __init__(
        self,
        take: Callable[[W], T | None],
        *,
        has_room: Callable[[], bool] | None = None,
        group: Callable[[W], object | None] | None = None,
    ) -> None:
        self._take = take
        self._has_room = has_room
        self._group = group
        self._lines: dict[int, OrderedDict[asyncio.Future[T], W]] = {}
        self._ranks: list[int] = []
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Tasks that wait for a place."""
        return self._waiting

    def enter_nowait(self, info: W) -> T | None:
        """Take a place if there is one and nobody waits; otherwise return `None`."""
        return None if self._waiting else self._take(info)

    async def enter(self, info: W, *, leave: Callable[[T], None], priority: int = 0) -> T:
        """Wait for a place, take it and return it.

        Args:
            info: What the caller wants; given to `take`.
            leave: Gives the place back, should the task be cancelled just as it got it.
            priority: A higher one goes before a lower one, however long that has waited.
        """
        if not self._waiting:
            taken = self._take(info)
            if taken is not None:
                return taken
        place: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._join(place, info, priority)
        # Behind many others nothing has changed by this one's coming.
        if self._waiting > 1 and self._is_near_the_head(priority):
            self.wake()
        try:
            return await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._remove(place, priority)
            else:
                leave(place.result())
            raise

    def wake(self) -> None:
        """Give free places to those who wait; to be called when one may have become free."""
        has_room = self._has_room
        while self._waiting and (has_room is None or has_room()) and self._advance():
            pass

    def _advance(self) -> bool:
        """Serve one of the first waiters; return False if there is no place for any of them."""
        asked = passed = 0
        refused: W | None = None
        groups: list[object] = []
        for rank in self._ranks:
            for place, info in self._lines[-rank].items():
                if place.cancelled():
                    self._remove(place, -rank)
                    return True
                group = None if self._group is None else self._group(info)
                if group is not None and group in groups:
                    passed += 1
                    if passed == _LOOK_PAST:
                        return False
                    continue
                # Those that want the very same get the very same answer.
                if asked == 0 or info is not refused:
                    taken = self._take(info)
                    if taken is not None:
                        self._remove(place, -rank)
                        place.set_result(taken)
                        return True
                    refused = info
                    if group is not None:
                        groups.append(group)
                asked += 1
                if asked == _DEPTH:
                    return False
        return False

    def _is_near_the_head(self, priority: int) -> bool:
        before = 0
        for rank in self._ranks:
            before += len(self._lines[-rank])
            if before > _DEPTH:
                return False
            if rank == -priority:
                return True
        return False

    def _join(self, place: asyncio.Future[T], info: W, priority: int) -> None:
        line = self._lines.get(priority)
        if line is None:
            line = self._lines[priority] = OrderedDict()
            # Negated, so that the highest priority comes first.
            insort(self._ranks, -priority)
        line[place] = info
        self._waiting += 1

    def _remove(self, place: asyncio.Future[T], priority: int) -> None:
        line = self._lines.get(priority)
        if line is None or place not in line:
            # It was cancelled, and `wake` came across it before its task ran.
            return
        del line[place]
        self._waiting -= 1
        if not line:
            del self._lines[priority]
            self._ranks.remove(-priority)
