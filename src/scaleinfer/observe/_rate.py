"""`Rate`: how fast a count grows lately, and how long the rest will take."""

from __future__ import annotations

from collections import deque

__all__ = ["Rate"]

_WINDOW_S = 30.0
_LEAST = 20
_RESOLUTION = 60
_SHORTEST_S = 0.5
_FEWEST = 3


class Rate:
    """Rate of a growing count over its recent past; a state machine, the clock is passed in.

    The recent past is the last 30 s or the last 20 counts, whichever reaches further back, so
    that a fast run shows what happens now and a slow one (an item a minute) shows a rate at
    all. Between counts the rate falls as time passes: a stalled run looks stalled. Memory is
    bounded: at most 60 samples of the window and 20 beyond it.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, count: int) -> None:
        """Take note that the count stands at `count`; the first call sets the start."""
        samples = self._samples
        if not samples:
            samples.append((now, count))
            return
        if count == samples[-1][1]:
            return
        # The last sample moves on until it has left the one before it far enough behind.
        if len(samples) > 1 and now - samples[-2][0] < _WINDOW_S / _RESOLUTION:
            samples[-1] = (now, count)
        else:
            samples.append((now, count))
        while (
            len(samples) > 2  # noqa: PLR2004  # a rate needs two
            and now - samples[1][0] >= _WINDOW_S
            and count - samples[1][1] >= _LEAST
        ):
            samples.popleft()

    def per_second(self, now: float) -> float | None:
        """Return counts a second; `None` while there is nothing to tell it from."""
        if not self._samples:
            return None
        start, first = self._samples[0]
        grown = self._samples[-1][1] - first
        if grown <= 0 or now - start < _SHORTEST_S:
            return None
        return grown / (now - start)

    def eta_s(self, now: float, remaining: int | None) -> float | None:
        """Return seconds until `remaining` more are counted at the present rate.

        `None` if it is not known how many remain, or too few were counted to say.
        """
        rate = self.per_second(now)
        if remaining is None or rate is None:
            return None
        if self._samples[-1][1] - self._samples[0][1] < min(_FEWEST, remaining):
            return None
        return max(remaining, 0) / rate
