"""One timer for all the calls of a wire."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Expiring(Protocol):
        """What has a deadline."""

        deadline: float

        def expire(self) -> None:
            """The deadline has passed."""


__all__ = ["Deadlines"]

_APART = 0.02
"""Least seconds between two looks at all connections (0.4 ms for 10,000 of them)."""


class Deadlines:
    """Ends what has passed its deadline: never early, late by 20 ms and the loop's own lag.

    A timer for each call would cost more than the rest of sending it. Deadlines of calls mostly
    have one length, so one timer for the earliest, after which all are looked at, goes off
    about once in that length.

    Args:
        loop: Whose timer to use.
        current: Returns all that may have a deadline; infinite ones are passed over.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, current: Callable[[], Iterable[Expiring]]
    ) -> None:
        self._loop = loop
        self._current = current
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def note(self, deadline: float) -> None:
        """Take account of a new deadline (monotonic time)."""
        if deadline < self._armed_for:
            self._arm(deadline)

    def stop(self) -> None:
        """Forget all deadlines."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._armed_for = math.inf

    def _arm(self, deadline: float) -> None:
        self.stop()
        delay = max(deadline - time.monotonic(), _APART)
        self._armed_for = deadline
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self.stop()
        earliest = math.inf
        for call in self._current():
            if call.deadline <= now:
                call.expire()
            elif call.deadline < earliest:
                earliest = call.deadline
        if earliest < math.inf:
            self._arm(earliest)
