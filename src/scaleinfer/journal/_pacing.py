"""When to commit: soon enough for those who wait, late enough to take many along."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Pacing"]

_SHORTEST_S = 0.001


@dataclass(slots=True)
class Pacing:
    """Decides when the rows at hand are worth a commit. Times are seconds of one clock.

    A commit costs one wait for the disk however many rows it carries, and most of its CPU time
    too. While others are still out, it is worth waiting about half as long as the disk takes, or a
    small share of the time an item takes from claim to disk: that is, by Little's law, the claims
    that are out times the time between two rows. When everyone who could add a row waits already,
    waiting is in vain.

    Attributes:
        gather_s: Longest wait of a row that somebody waits for.
        linger_s: Longest wait of rows nobody waits for (attempts, answers taken up).
        share: Of an item's time, what its row may wait for others.
        most: Rows that are committed without waiting for more.
        typical_s: Running mean of what a commit takes.
        between_s: Running mean of the time between two rows that are waited for.
    """

    gather_s: float = 0.01
    linger_s: float = 0.25
    share: float = 0.04
    most: int = 2000
    typical_s: float = 0.002
    between_s: float = 0.0
    _awaited_since: float = math.inf
    _pending_since: float = math.inf
    _committed_at: float = math.inf

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
        worthwhile = max(self.typical_s / 2, self.share * self.between_s * outstanding)
        gather = min(self.gather_s, max(worthwhile, _SHORTEST_S))
        return min(self._awaited_since + gather, self._pending_since + self.linger_s)

    def committed(self, now: float, took: float, *, awaited: int) -> None:
        """Note that everything at hand was committed.

        Args:
            now: The clock, after it.
            took: Seconds it took.
            awaited: Rows among them that somebody waited for.
        """
        self.typical_s += 0.1 * (took - self.typical_s)
        if awaited:
            passed = max(now - self._committed_at, 0.0)
            # A pause is no pace: one row after a minute must not count as a minute a row.
            passed = min(passed, awaited * self.linger_s)
            self.between_s += 0.1 * (passed / awaited - self.between_s)
            self._committed_at = now
        self._awaited_since = self._pending_since = math.inf
