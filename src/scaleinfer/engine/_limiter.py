"""How many calls may be in flight at one endpoint. Plain state machines: the clock is passed in."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.results import Load

__all__ = [
    "Concurrency",
    "FixedLimiter",
    "FollowingLimiter",
    "Limiter",
    "LimiterStatistics",
    "Outcome",
]

_LOOK_AGAIN_S = 0.1


class Outcome(Enum):
    """What became of a call, as far as a limiter cares."""

    OK = "ok"
    """It was answered."""
    REJECTED = "rejected"
    """The endpoint said that it is too much (429, 503)."""
    TIMEOUT = "timeout"
    """No answer came in time."""
    FAILED = "failed"
    """Anything else went wrong; says nothing about load."""
    CANCELLED = "cancelled"
    """The caller went away."""


@dataclass(slots=True)
class Concurrency:
    """Bounds within which the number of calls in flight is found. May be changed during a run.

    Attributes:
        min: Never fewer.
        start: The first figure; `None` for the backend's own.
        max: Never more.

    Raises:
        ConfigError: The three do not fit together.
    """

    min: int = 1
    start: int | None = None
    max: int = 10_000

    def __setattr__(self, name: str, value: int | None) -> None:
        if not (isinstance(value, int) and value >= 1) and not (name == "start" and value is None):
            raise ConfigError(f"Concurrency.{name} is a number of calls, not {value!r}.")
        object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        start = self.min if self.start is None else self.start
        if not 1 <= self.min <= start <= self.max:
            raise ConfigError(
                f"Concurrency needs 1 <= min <= start <= max, not min={self.min}, "
                f"start={self.start}, max={self.max}."
            )


@dataclass(frozen=True, slots=True)
class LimiterStatistics:
    """A limiter at one moment.

    Attributes:
        limit: Calls that may be in flight.
        in_flight: Calls that are.
        peak_in_flight: The most that ever were.
        reason: Why the limit is what it is, in a word or two.
        cuts: How often load made it smaller.
    """

    limit: int
    in_flight: int
    peak_in_flight: int
    reason: str = "fixed"
    cuts: int = 0


class Limiter(ABC):
    """Counts the calls in flight at one endpoint; subclasses decide how many may be.

    Attributes:
        in_flight: Calls in flight.
        peak_in_flight: The most that ever were.
    """

    in_flight = 0
    peak_in_flight = 0

    @property
    @abstractmethod
    def limit(self) -> int:
        """Calls that may be in flight."""

    @property
    def has_room(self) -> bool:
        """True if a call may start."""
        return self.in_flight < self.limit

    @property
    def look_again_s(self) -> float | None:
        """Seconds after which room may have come though no call has ended; `None` for never."""
        return None

    @property
    def shrinking(self) -> bool:
        """True while load has just made the limit smaller."""
        return False

    def started(self, now: float) -> None:
        """A call starts."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def ended(
        self,
        now: float,
        outcome: Outcome,
        *,
        began: float = 0.0,
        tokens: int = 0,
        load: Load | None = None,
        retry_after: float | None = None,
    ) -> None:
        """A call has ended.

        Args:
            now: The clock, in seconds.
            outcome: What became of it.
            began: The clock when it started.
            tokens: Completion tokens it brought.
            load: The endpoint's load report that came with the answer.
            retry_after: Seconds the endpoint asked us to stay away.
        """
        del now, outcome, began, tokens, load, retry_after
        self.in_flight -= 1

    @abstractmethod
    def statistics(self) -> LimiterStatistics:
        """Return where the limiter stands."""


class FollowingLimiter(Limiter):
    """As many places as somebody else says at each moment.

    Args:
        places: Says it.
        most: Never more.
        least: Never fewer; 0 for an endpoint that is to get no call at all at times.
    """

    def __init__(
        self, places: Callable[[], int], *, most: int | None = None, least: int = 1
    ) -> None:
        self._places = places
        self._most = sys.maxsize if most is None else most
        self._least = least

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return max(self._least, min(self._places(), self._most))

    @property
    def look_again_s(self) -> float | None:
        """Seconds after which room may have come though no call has ended; `None` for never."""
        return None if self._least else _LOOK_AGAIN_S

    def statistics(self) -> LimiterStatistics:
        """Return where the limiter stands."""
        reason = "bounded by concurrency" if self.limit == self._most else "what the workers hold"
        return LimiterStatistics(self.limit, self.in_flight, self.peak_in_flight, reason)


class FixedLimiter(Limiter):
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

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._limit

    def statistics(self) -> LimiterStatistics:
        """Return where the limiter stands."""
        return LimiterStatistics(self._limit, self.in_flight, self.peak_in_flight)
