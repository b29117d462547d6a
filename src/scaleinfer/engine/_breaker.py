"""Keeps calls away from an endpoint that is broken. A plain state machine: the clock is passed in.

The circuit breaker of M. Nygard, Release It! (2007): closed lets everything through, open
nothing, half-open one probe. A probe that succeeds is followed by a trial of a few calls, so
that an endpoint that answers one call and breaks under many costs few.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

__all__ = ["Breaker", "BreakerState", "BreakerStatistics"]

BreakerState = Literal["closed", "open", "half-open", "trial"]

_MEMORY = 0.97
_BROKEN_SHARE = 0.5
_TRIAL_PLACES = 16
_TRIAL_SUCCESSES = 8
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class BreakerStatistics:
    """A breaker at one moment.

    Attributes:
        state: `closed`, `open`, `half-open` (one probe may go) or `trial` (a few calls may).
        openings: How often it went from closed to open.
        probes: Calls that were started to see whether the endpoint is back.
    """

    state: BreakerState
    openings: int
    probes: int


class Breaker:
    """Opens when an endpoint breaks call after call, and finds out when it is back.

    It opens after `failures` calls in a row that say the endpoint itself is broken, if
    they also make up half of its recent calls: five in a row are chance at an endpoint that
    fails one call in five and makes thousands a second.

    Pauses double from `first_pause` to `longest_pause`. The longest is short, because an
    endpoint should carry its full share again within 10 s of coming back.

    Args:
        failures: Failures in a row that open it.
        first_pause: Seconds until the first probe.
        longest_pause: Seconds between probes at most, jitter of a tenth aside.
        seed: Spreads the probes of several endpoints, the same way in every run.

    Attributes:
        closed: True while every call may go; says so without a call.
    """

    __slots__ = (
        "_failures",
        "_first",
        "_in_a_row",
        "_longest",
        "_opened_at",
        "_openings",
        "_pause",
        "_probes",
        "_random",
        "_recent",
        "_recent_failed",
        "_running",
        "_state",
        "_successes",
        "_until",
        "closed",
    )

    def __init__(
        self,
        failures: int = 5,
        *,
        first_pause: float = 1.0,
        longest_pause: float = 4.0,
        seed: int = 0,
    ) -> None:
        self._failures = failures
        self._first = self._pause = first_pause
        self._longest = longest_pause
        self._random = random.Random(seed)
        self._state: BreakerState = "closed"
        self.closed = True
        self._opened_at = -math.inf
        self._until = -math.inf
        self._openings = self._probes = 0
        self._running = self._successes = 0
        self._in_a_row = 0
        self._recent = self._recent_failed = 0.0

    def allows(self, now: float) -> bool:
        """Return whether a call may start."""
        if self.closed:
            return True
        if self._state == "open":
            return now >= self._until
        return self._running < (1 if self._state == "half-open" else _TRIAL_PLACES)

    def wake_at(self, now: float) -> float | None:
        """Return when time alone will allow a call; `None` if it does not depend on time."""
        return self._until if self._state == "open" and now < self._until else None

    def started(self, now: float) -> None:
        """A call starts; unless the breaker is closed it takes a probe's place."""
        if self.closed:
            return
        if self._state == "open":
            self._state = "half-open"
        self._running += 1
        self._probes += 1

    def succeeded(self, now: float, *, began: float | None = None) -> None:
        """The endpoint answered, well or not: it is not broken.

        Args:
            now: The clock.
            began: The clock when the call started. A call from before the breaker last
                opened says nothing about the endpoint since.
        """
        if self._stale(began):
            return
        self._in_a_row = 0
        self._recent = self._recent * _MEMORY + 1
        self._recent_failed *= _MEMORY
        if self.closed or self._state == "open":
            return
        self._running = max(0, self._running - 1)
        self._successes += 1
        if self._state == "half-open":
            self._state = "trial"
        elif self._successes > _TRIAL_SUCCESSES:
            self._close()

    def failed(self, now: float, *, began: float | None = None) -> None:
        """The endpoint is broken: connection refused or reset, timeout, 5xx but 503.

        Args:
            now: The clock.
            began: The clock when the call started, as in `succeeded`.
        """
        if self._state == "open" or self._stale(began):
            return
        self._in_a_row += 1
        self._recent = self._recent * _MEMORY + 1
        self._recent_failed = self._recent_failed * _MEMORY + 1
        if self._state == "half-open":
            self._open(now)
            return
        if not self.closed:
            self._running = max(0, self._running - 1)
        broken = self._recent_failed >= _BROKEN_SHARE * self._recent
        if self._in_a_row >= self._failures and broken:
            self._open(now)

    def released(self, now: float, *, began: float | None = None) -> None:
        """A call ended that says nothing about the endpoint: its place is given back."""
        if not self.closed and self._state != "open" and not self._stale(began):
            self._running = max(0, self._running - 1)

    @property
    def is_open(self) -> bool:
        """True while it lets nothing through, unless its time has come."""
        return self._state == "open"

    def mended(self, now: float) -> None:
        """A check says that the endpoint may be back: the next call is its probe, at once."""
        if self._state == "open":
            self._until = min(self._until, now)

    def statistics(self) -> BreakerStatistics:
        """Return where the breaker stands."""
        return BreakerStatistics(self._state, self._openings, self._probes)

    def _stale(self, began: float | None) -> bool:
        return began is not None and began <= self._opened_at

    def _open(self, now: float) -> None:
        if self.closed:
            self._openings += 1
        self._state = "open"
        self.closed = False
        self._opened_at = now
        self._until = now + self._pause * self._random.uniform(1 - _JITTER, 1 + _JITTER)
        self._pause = min(2 * self._pause, self._longest)
        self._running = self._successes = 0
        self._in_a_row = 0
        self._recent = self._recent_failed = 0.0

    def _close(self) -> None:
        self._state = "closed"
        self.closed = True
        self._pause = self._first
