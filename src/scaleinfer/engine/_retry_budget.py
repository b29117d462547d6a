"""How many retries a run may make. A plain state machine: the clock is passed in."""

from __future__ import annotations

__all__ = ["RetryBudget"]

_ALLOWANCE = 10
_PERMITS_PER_ANSWER = 16.0
_PERMITS_PER_FAILURE = 7.0
_OUTAGE_AFTER = 5
_LONGEST_PROBE_INTERVAL = 2.0


class RetryBudget:
    """Holds a run's retries back while retrying makes things worse.

    A token bucket: an answered call brings `share` tokens, a failed one takes one. While there
    are tokens every retry may go. When they are used up, three rules remain:

    * An answer brings 16 permits, a failure takes 7, a retry takes 1. So up to two thirds of
      the calls may fail for ever without a retry being held back, and after an outage the
      number of calls in flight grows sixteenfold with every round of answers.
    * Without an answer nothing but a probe goes: one retry every `probe_interval` seconds.
    * Nothing is given up here.

    An outage therefore costs the calls that were in flight, one first call of whatever else
    starts, and the probes.

    Args:
        share: Retries allowed for each answered call.
        places: Calls that may be in flight; the bucket holds as many tokens, and 10 at least.
        probe_interval: Seconds between probes; 2 at most.
    """

    __slots__ = ("_level", "_most", "_next_probe", "_permits", "_probe_interval", "_row", "_share")

    def __init__(self, share: float, *, places: int, probe_interval: float) -> None:
        self._share = share
        self._probe_interval = min(probe_interval, _LONGEST_PROBE_INTERVAL)
        self._most = float(max(_ALLOWANCE, places))
        self._level = self._most
        self._permits = 0.0
        self._row = 0
        self._next_probe = float("-inf")

    @property
    def outage(self) -> bool:
        """True while call after call fails and none is answered."""
        return self._row >= _OUTAGE_AFTER

    def resize(self, places: int) -> None:
        """Another number of calls may be in flight now."""
        most = float(max(_ALLOWANCE, places))
        # What was not used of the first allowance grows and shrinks with it.
        self._level = max(-most, min(most, self._level + most - self._most))
        self._most = most

    def answered(self) -> None:
        """A call was answered."""
        self._row = 0
        # Run for every answer, so without calls of min().
        most = self._most
        level, permits = self._level + self._share, self._permits + _PERMITS_PER_ANSWER
        self._level = level if level < most else most
        self._permits = permits if permits < most else most

    def failed(self) -> None:
        """A call was not answered."""
        self._row += 1
        # Debt is bounded, or a long outage would be paid for ever.
        self._level = max(-self._most, self._level - 1.0)
        self._permits = max(0.0, self._permits - _PERMITS_PER_FAILURE)

    def take(self, now: float) -> bool:
        """Return True if a retry may go now; to be asked right before it goes."""
        if self._level > 0.0:
            return True
        if self._permits >= 1.0:
            self._permits -= 1.0
            return True
        if now < self._next_probe:
            return False
        self._next_probe = now + self._probe_interval
        return True
