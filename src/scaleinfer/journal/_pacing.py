"""When to commit: soon enough for those who wait, late enough to take many along."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pacing"]


@dataclass(slots=True)
class Pacing:
    """Decides when the rows at hand are worth a commit. Times are seconds of one clock.

    A commit costs one wait for the disk however many rows it carries. While others are still
    out, it is worth waiting about half as long as the disk takes; when everyone who could add a row
    waits already, it is not.

    Attributes:
        gather_s: Longest wait of a row that somebody waits for.
        linger_s: Longest wait of rows nobody waits for (attempts, answers taken up).
        most: Rows that are committed without waiting for more.
        typical_s: Running mean of what a commit takes.
    """

    gather_s: float = 0.005
    linger_s: float = 0.25
    most: int = 2000
    typical_s: float = 0.002
    _awaited_since: float = math.inf
    _pending_since: float = math.inf

    def added(self, now: float, *, awaited: bool) -> None:
        """Note that a row came in."""
        self._pending_since = min(self._pending_since, now)
        if awaited:
            self._awaited_since = min(self._awaited_since, now)

    def due(self, now: float, *, rows: int, awaited: int, outstanding: int) -> float:
        """Return when to commit; `now` or earlier means at once, infinity never.

        Args:
            now: The clock.
            rows: Rows at hand.
            awaited: Those of them that somebody waits for.
            outstanding: Claims that have no row on disk yet, the awaited ones included.
        """
        if rows == 0:
            return math.inf
        if rows >= self.most or (awaited and awaited >= outstanding):
            return now
        gather = min(self.gather_s, max(self.typical_s / 2, 0.001))
        return min(self._awaited_since + gather, self._pending_since + self.linger_s)

    def committed(self, took: float) -> None:
        """Note that everything at hand was committed, which took `took` seconds."""
        self.typical_s += 0.1 * (took - self.typical_s)
        self._awaited_since = self._pending_since = math.inf
