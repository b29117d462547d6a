"""Where an engine's calls stand, and where their time goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaleinfer.engine._retry import RetryStatistics

__all__ = ["CallCounts", "EngineStatistics", "Waits"]


@dataclass(slots=True)
class Waits:
    """Where a run's calls spent their time, in seconds summed over calls.

    Attributes:
        place: Waiting for a free place at an endpoint.
        endpoint: From sending to the answer.
        record: From the answer until it was recorded.
        retry: Waiting to be tried again.
    """

    place: float = 0.0
    endpoint: float = 0.0
    record: float = 0.0
    retry: float = 0.0


@dataclass(slots=True)
class CallCounts:
    """Counts an engine's calls.

    Attributes:
        calls: Calls made; second copies not among them.
        in_flight: Those that are in flight.
        peak: The most that ever were.
    """

    calls: int = 0
    in_flight: int = 0
    peak: int = 0

    def began(self) -> None:
        """A call was sent."""
        self.calls += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def ended(self) -> None:
        """A call has ended."""
        self.in_flight -= 1


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """An engine at one moment.

    Attributes:
        limit: Calls that may be in flight at all endpoints together.
        in_flight: Calls of this engine that are.
        peak_in_flight: The most that ever were.
        calls: Calls made.
        hedged: Second copies among them.
        shared: Requests that another's identical call answered.
        retry: What the calls came to.
        waiting: Requests that wait for their next try; they hold no place.
        queued: Requests that wait for a place, those of other engines included.
    """

    limit: int
    in_flight: int
    peak_in_flight: int
    calls: int
    hedged: int
    shared: int
    retry: RetryStatistics
    waiting: int
    queued: int
