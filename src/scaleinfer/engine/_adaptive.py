"""The limiter that finds an endpoint's best concurrency by itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scaleinfer.engine._ceiling import Ceiling
from scaleinfer.engine._knee import Knee
from scaleinfer.engine._limiter import Concurrency, Limiter, LimiterStatistics, Outcome
from scaleinfer.engine._rounds import Rounds

if TYPE_CHECKING:
    from scaleinfer.results import Load

__all__ = ["AdaptiveLimiter"]

_OK, _REJECTED, _TIMEOUT = Outcome.OK, Outcome.REJECTED, Outcome.TIMEOUT


class AdaptiveLimiter(Limiter):
    """Finds the concurrency at which an endpoint's goodput stops rising, and holds it there.

    Works on endpoints that queue without bound and never say so, on those that refuse (429, 503),
    and on those that report their load. The limit changes in `ended` only.

    Args:
        concurrency: The bounds; read at every call, so they may be changed during a run.
        start: The first limit.
        most: What the process can hold, whatever the bounds say.

    Attributes:
        concurrency: The bounds.
        paused_until: The endpoint asked to be left alone until this time.
    """

    def __init__(self, concurrency: Concurrency, *, start: int, most: int | None = None) -> None:
        self.concurrency = concurrency
        self.paused_until = 0.0
        self._most = sys.maxsize if most is None else max(1, most)
        self._limit = min(max(start, concurrency.min), concurrency.max, self._most)
        self._knee = Knee(self._limit)
        self._rounds = Rounds()
        self._ceiling = Ceiling()
        self._refusal = ""
        self._cuts = 0
        self._shrinking = False

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._limit

    @property
    def has_room(self) -> bool:
        """True if a call may start."""
        return self.in_flight < self._limit

    @property
    def shrinking(self) -> bool:
        """True from a cut until the next look at the endpoint finds no reason for another."""
        return self._shrinking

    def started(self, now: float) -> None:
        """A call starts."""
        self.in_flight = in_flight = self.in_flight + 1
        if in_flight > self.peak_in_flight:  # noqa: PLR1730 - max() costs a call on the hot path
            self.peak_in_flight = in_flight
        self._rounds.started(now, in_flight)

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
        """A call has ended; see `Limiter.ended`."""
        self.in_flight = in_flight = self.in_flight - 1
        knee, ceiling = self._knee, self._ceiling
        if outcome is _OK:
            if load is not None:
                self._rounds.reported(began, load)
            if ceiling.answered(now, began):
                knee.limit = min(knee.limit, in_flight + 1.0)
            seen = self._rounds.ended(now, began, tokens or 1)
            if seen is not None:
                cuts, held = knee.cuts, knee.holding
                knee.observe(now, seen)
                if knee.holding and not held:
                    # The last leaps mixed calls that waited with calls that did not.
                    self._rounds.forget()
                self._shrinking = knee.cuts > cuts
                self._rounds.reset(now, in_flight, knee.alarm, knee.share)
        elif outcome is _REJECTED or outcome is _TIMEOUT:
            if retry_after is not None:
                self.paused_until = max(self.paused_until, now + retry_after)
            if ceiling.refused(now, began, min(in_flight + 1, self._limit)):
                self._cuts += 1
                self._shrinking = True
                knee.refused(now)
                self._refusal = "cut: refused" if outcome is _REJECTED else "cut: timeouts"
                self._rounds.reset(now, in_flight, knee.alarm, knee.share)
        bounds = self.concurrency
        # Of bounds that were changed to contradict each other, the upper one holds.
        most = bounds.max if bounds.max < self._most else self._most
        least = bounds.min if bounds.min < most else most
        if knee.limit > most:
            knee.limit = float(most)
        elif knee.limit < least:
            knee.limit = float(least)
        self._limit = max(least, int(min(knee.limit, ceiling.limit)))

    def statistics(self) -> LimiterStatistics:
        """Return where the limiter stands."""
        bounds = self.concurrency
        if self._knee.limit >= self._ceiling.limit:
            reason = self._refusal
        elif self._limit >= self._most:
            reason = "bounded by open files"
        elif self._limit >= bounds.max:
            reason = "bounded by max"
        elif self._limit <= bounds.min and self._knee.holding:
            reason = "bounded by min"
        else:
            reason = self._knee.reason
        return LimiterStatistics(
            self._limit,
            self.in_flight,
            self.peak_in_flight,
            reason,
            self._cuts + self._knee.cuts,
        )
