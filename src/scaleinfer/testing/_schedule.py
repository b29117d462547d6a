"""When a request gets its turn: slots that are full, and times that have come."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Slots", "Timers"]

T = TypeVar("T")


class Slots(Generic[T]):
    """At most `capacity` at once; the rest wait in order of arrival, without a bound.

    Args:
        capacity: How many may hold a slot; `None` for any number.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.taken = 0
        self._waiting: OrderedDict[T, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @property
    def has_free(self) -> bool:
        """True if a slot is free."""
        return self.capacity is None or self.taken < self.capacity

    def enter(self, who: T) -> bool:
        """Return True if `who` has a slot now, False if it waits."""
        if self.capacity is not None and self.taken >= self.capacity:
            self._waiting[who] = None
            return False
        self.taken += 1
        return True

    def leave(self) -> T | None:
        """Give a slot back; return who gets it, if anybody waits."""
        if self._waiting and (self.capacity is None or self.taken <= self.capacity):
            return self._waiting.popitem(last=False)[0]
        self.taken -= 1
        return None

    def resize(self, capacity: int | None) -> list[T]:
        """Change the capacity; return who gets a slot by that. Nobody loses one."""
        self.capacity = capacity
        got: list[T] = []
        while self._waiting and (capacity is None or self.taken < capacity):
            got.append(self._waiting.popitem(last=False)[0])
            self.taken += 1
        return got

    def withdraw(self, who: T) -> bool:
        """Stop waiting; return False if `who` did not wait (any more)."""
        return self._waiting.pop(who, self) is None


class Timers(Generic[T]):
    """Things that are due at some time, in one heap of ticks.

    All that fall into one tick share one timer of the event loop, which costs half of what a
    timer each does. Nothing comes early; it may come one tick late.

    Args:
        tick: Seconds.

    Attributes:
        next_due: When `pop` will have something; `None` if nothing is due ever.
    """

    def __init__(self, tick: float = 0.001) -> None:
        self.tick = tick
        self.next_due: float | None = None
        self._ticks: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, due: float, what: T) -> None:
        """Let `what` be due at `due`."""
        tick = math.ceil(due / self.tick)
        found = self._ticks.get(tick)
        if found is None:
            self._ticks[tick] = [what]
            heapq.heappush(self._order, tick)
            self.next_due = self._order[0] * self.tick
        else:
            found.append(what)

    def pop(self, now: float) -> list[T]:
        """Return what is due at `now`, earliest first."""
        due: list[T] = []
        while self._order and self._order[0] * self.tick <= now:
            due += self._ticks.pop(heapq.heappop(self._order))
        self.next_due = self._order[0] * self.tick if self._order else None
        return due
