"""Remembers at which concurrency an endpoint refuses calls, and stays just below it."""

from __future__ import annotations

import math

__all__ = ["Ceiling"]

_BACK = 0.93
_BACK_FAST = 0.75
_CLIMB_CALLS = 400
_CLIMB_S = 10.0
_FORGET = 1.15
_OUTAGE = 3


class Ceiling:
    """The limit that refusals (429, 503, timeouts) set; infinite while there are none.

    One cut per burst: a refusal of a call that began before the last cut belongs to that burst.
    Afterwards the limit nears 93 % of the level that was refused within a few latencies and
    climbs the rest within 400 answered calls (10 seconds at least), so that a server that refuses
    above a rate refuses well below 1 %. 15 % above the level it is forgotten.

    Attributes:
        limit: Calls that may be in flight.
    """

    __slots__ = ("_at", "_before", "_burst", "_cut", "_good", "limit")

    def __init__(self) -> None:
        self.limit = self._at = self._before = math.inf
        self._cut = self._burst = -math.inf
        self._good = 0

    def refused(self, now: float, began: float, level: int) -> bool:
        """A call was refused while `level` were in flight; return whether the limit fell."""
        if began <= self._cut:
            return False
        back = _BACK_FAST
        if self._good or self._at == math.inf:
            self._before, self._burst, back = level, now, _BACK
        # Refused right after a cut, with nothing answered since: still far above.
        self._at = level
        self._cut, self._good = now, 0
        before, self.limit = self.limit, max(1.0, level * back)
        return self.limit < before

    def answered(self, now: float, began: float) -> bool:
        """A call was answered; return whether that made it forget the ceiling."""
        if began <= self._cut or self._at == math.inf:
            return False
        took = now - began
        self._good += 1
        if self._good == 1 and self._cut - self._burst > _OUTAGE * took:
            # Nothing was answered for long: it was down, not crowded.
            self._at = self._before
        gap = _BACK * self._at - self.limit
        if gap > 0:
            self.limit += min(2.0, max(gap / self.limit, 0.01), gap)
            return False
        calls = max(_CLIMB_CALLS, _CLIMB_S * self.limit / max(took, 1e-3))
        self.limit += self._at * (1 - _BACK) / calls
        if self.limit > _FORGET * self._at + 1:
            self.limit = self._at = math.inf
            return True
        return False
