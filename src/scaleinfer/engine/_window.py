"""How far a map may run ahead of its consumer. A plain state machine: no I/O, no clock."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["Window"]

T = TypeVar("T")


class Window(Generic[T]):
    """Bounds what is pulled but not delivered, and puts results in order if asked to.

    A place is reserved before an item is taken from the input. `finish` takes each index once,
    in any order; `take` hands results to the consumer, which frees the place.

    Args:
        size: Most items that may be reserved and not yet taken.
        ordered: True to deliver in input order, False as finished.

    Attributes:
        size: The same; may be changed.
    """

    def __init__(self, size: int, *, ordered: bool) -> None:
        self.size = size
        self._ordered = ordered
        self._reserved = 0
        self._taken = 0
        self._ready: deque[T] = deque()
        self._early: dict[int, T] = {}
        self._next = 0

    @property
    def has_room(self) -> bool:
        """True if the input may be asked for one more item."""
        return self._reserved - self._taken < self.size

    @property
    def ready(self) -> bool:
        """True if `take` has something."""
        return bool(self._ready)

    def reserve(self) -> None:
        """The input is about to be asked for an item."""
        self._reserved += 1

    def unreserve(self) -> None:
        """The input had no item."""
        self._reserved -= 1

    def finish(self, index: int, result: T) -> None:
        """An item has its result."""
        if not self._ordered:
            self._ready.append(result)
            return
        self._early[index] = result
        while self._next in self._early:
            self._ready.append(self._early.pop(self._next))
            self._next += 1

    def take(self) -> T:
        """Return the next result for the consumer.

        Raises:
            IndexError: Nothing is ready.
        """
        result = self._ready.popleft()
        self._taken += 1
        return result

    def drain(self) -> list[T]:
        """Return everything finished, gaps or not, in the window's order; for a stopped run."""
        rest = [*self._ready, *(self._early[index] for index in sorted(self._early))]
        self._ready.clear()
        self._early.clear()
        self._taken += len(rest)
        return rest
