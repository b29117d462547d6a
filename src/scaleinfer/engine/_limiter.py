"""How many calls may be in flight at one endpoint. A plain state machine: no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from scaleinfer.errors import ConfigError

__all__ = ["Limiter", "LimiterStatistics"]


@dataclass(frozen=True, slots=True)
class LimiterStatistics:
    """A limiter at one moment.

    Attributes:
        limit: Calls that may be in flight.
        in_flight: Calls that are.
        peak_in_flight: The most that ever were.
    """

    limit: int
    in_flight: int
    peak_in_flight: int


class Limiter:
    """A fixed number of places.

    Args:
        limit: Calls that may be in flight at once.

    Raises:
        ConfigError: `limit` is below 1.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"concurrency must be at least 1, not {limit}.")
        self._limit = limit
        self._in_flight = 0
        self._peak = 0

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._limit

    @property
    def has_room(self) -> bool:
        """True if a call may start."""
        return self._in_flight < self._limit

    def started(self) -> None:
        """A call starts."""
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)

    def ended(self) -> None:
        """A call has ended, whatever came of it."""
        self._in_flight -= 1

    def statistics(self) -> LimiterStatistics:
        """Return where the limiter stands."""
        return LimiterStatistics(self._limit, self._in_flight, self._peak)
