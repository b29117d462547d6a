"""How many workers a fleet should have. A plain state machine: the clock is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Scaling", "Wanted"]

_ROOM = 64
_FIRST_HOLD, _LONGEST_HOLD = 0.5, 60.0
_FAILURES = 5
_CALM = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to do now.

    Attributes:
        start: Workers to start.
        end: Workers to end once they have finished what they are at.
        give_up: True if no worker can be started at all.
    """

    start: int = 0
    end: int = 0
    give_up: bool = False


class Scaling:
    """Grows a fleet by its backlog, shrinks it when idle, and replaces workers that were lost.

    Args:
        least: Workers that are kept without work.
        most: Most workers.
        first: Workers to begin with.
        idle_s: Seconds that there must have been too many workers before one is ended.
    """

    def __init__(self, *, least: int, most: int, first: int, idle_s: float) -> None:
        self._least, self._most, self._first = least, most, first
        self._idle_s = idle_s
        self._worked = False
        self._surplus_since: float | None = None
        self._hold_until = -math.inf
        self._failed_at = -math.inf
        self._row = self._never_came = 0

    def look(self, now: float, *, started: int, joined: int, tasks: int, room: int) -> Wanted:
        """Return what to do.

        Args:
            now: The clock, in seconds.
            started: Workers that were started and have not ended.
            joined: Workers that the coordinator knows.
            tasks: Requests that wait or are being asked.
            room: Requests that all workers together can make use of at once.
        """
        target = self._target(joined, tasks, room)
        if started > target:
            return self._shrunk(now, started - target)
        self._surplus_since = None
        if self._never_came >= _FAILURES and not joined and not started:
            return Wanted(give_up=True)
        if now < self._hold_until:
            return Wanted()
        return Wanted(start=target - started)

    def ended(self, now: float, *, failed: bool, came: bool = True, hopeless: bool = False) -> None:
        """A worker has ended without having been told to.

        Args:
            now: The clock, in seconds.
            failed: True if something went wrong.
            came: True if the coordinator had heard of it.
            hopeless: True if another one would end the same way: a setting is wrong.
        """
        if not failed or (now < self._hold_until and not hopeless):
            return
        # Of those that fail together, the first counts.
        self._row = 1 if now - self._failed_at > _CALM else self._row + 1
        self._never_came = 0 if came else self._never_came + 1
        if hopeless:
            self._never_came = _FAILURES
        self._failed_at = now
        self._hold_until = now + min(_LONGEST_HOLD, _FIRST_HOLD * 2.0 ** (self._row - 1))

    def _target(self, joined: int, tasks: int, room: int) -> int:
        if tasks:
            self._worked = True
        elif not self._worked:
            return self._first
        each = max(1.0, room / joined) if joined and room else _ROOM
        return max(self._least, min(self._most, math.ceil(tasks / each)))

    def _shrunk(self, now: float, surplus: int) -> Wanted:
        if self._surplus_since is None:
            self._surplus_since = now
        if now - self._surplus_since < self._idle_s:
            return Wanted()
        self._surplus_since = now
        return Wanted(end=surplus)
