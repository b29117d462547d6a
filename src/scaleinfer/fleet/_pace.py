"""How often workers send messages, and how much each holds. Pure functions and one small state."""

from __future__ import annotations

import math

__all__ = ["Pace", "Tempo", "interval_for", "silence_for"]

_SHORTEST = 0.1
_SHORTEST_IDLE = 0.25
_LONGEST = 60.0
_LONGEST_ALONE = 15.0
"""Between two tries of a worker that gets no replies."""
_MESSAGES_A_SECOND = 200.0
"""Of all workers together: a quarter of what one mailbox carries (ACADEMY: 760 a second over
Redis, 390 over HTTP, and each message brings a reply)."""
_SILENCE = 10.0
_SILENT_INTERVALS = 3
_AHEAD = 1.5
_MOST_AHEAD = 20_000
_EARLY = 0.4
_LATE_REPLY = 1.0
_STRETCH, _MOST_STRETCH = 1.5, 6.0
_RELAX = 0.95


def interval_for(workers: int, *, idle: bool = False) -> float:
    """Return the seconds between two messages of a worker in a fleet of so many.

    Args:
        workers: Workers in the fleet.
        idle: True if there is nothing to do for it.
    """
    shortest = _SHORTEST_IDLE if idle else _SHORTEST
    return min(_LONGEST, max(shortest, workers / _MESSAGES_A_SECOND))


def silence_for(interval: float) -> float:
    """Return the seconds of silence after which a worker is given up."""
    return max(_SILENCE, _SILENT_INTERVALS * interval)


class Tempo:
    """The interval that a coordinator names: longer while its replies come late.

    How many messages a second a coordinator can take depends on its exchange, its machine and
    what else that does. Beyond it, messages wait in its mailbox until their senders send them
    again, which makes everything worse.
    """

    __slots__ = ("_heard", "_late", "_patience", "_stretch")

    def __init__(self) -> None:
        self._heard = self._late = 0
        self._patience = 0.0
        self._stretch = 1.0

    def heard(self, took: float) -> None:
        """A worker says that the reply to its message before took so many seconds."""
        self._heard += 1
        self._late += took > _LATE_REPLY

    def tick(self, seconds: float, interval: float) -> None:
        """Adapt to what was heard within the last seconds; `interval` is what workers keep."""
        heard, late, self._heard, self._late = self._heard, self._late, 0, 0
        self._patience -= seconds
        if not heard:
            return
        if 2 * late <= heard:
            self._stretch = max(1.0, _RELAX**seconds * self._stretch)
        elif self._patience <= 0:
            self._stretch = min(_MOST_STRETCH, _STRETCH * self._stretch)
            # What is heard until then is of the time before.
            self._patience = _STRETCH * interval

    def interval(self, workers: int, *, idle: bool = False) -> float:
        """Return what `interval_for` does, stretched."""
        return min(_LONGEST, self._stretch * interval_for(workers, idle=idle))


class Pace:
    """When a worker sends its next message, and how many tasks it should hold.

    Args:
        interval: Seconds between two messages, until the coordinator names others.

    Attributes:
        interval: The same.
    """

    __slots__ = ("_rate", "_sent", "interval")

    def __init__(self, interval: float = _SHORTEST) -> None:
        self.interval = interval
        self._sent = -math.inf
        self._rate = 0.0

    def due(self, *, starving: bool) -> float:
        """Return when the next message goes.

        Args:
            starving: True if places are empty and nothing is left to begin.
        """
        return self._sent + self.interval * (_EARLY if starving else 1.0)

    def sent(self, now: float, answered: int) -> None:
        """A message goes out; so many tasks were answered since the one before."""
        took = now - self._sent
        if 0 < took < math.inf:
            rate = answered / took
            # Up at once, or a fast worker would starve; down slowly, as answers come in waves.
            self._rate = max(rate, 0.7 * self._rate + 0.3 * rate)
        self._sent = now

    def lost(self) -> None:
        """No reply came: the next message waits longer, lest all do what nobody has time for."""
        self.interval = max(self.interval, min(2 * self.interval, _LONGEST_ALONE))

    def room(self, places: int) -> int:
        """Return how many tasks the worker can make use of.

        As many as it has places, and what these get through until the reply after the next.
        """
        return places + math.ceil(min(_AHEAD * self._rate * self.interval, _MOST_AHEAD))
