"""What happened in each second: enough for goodput and shares over a window, in little room."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["PerSecond"]

_COLUMNS = ("arrived", "finished", "answered", "rejected", "tokens", "peak")


class PerSecond:
    """Counts by second after the first request.

    Attributes:
        arrived: Requests that arrived, by second.
        finished: Requests that ended.
        answered: Those of them with a usable answer.
        rejected: Those of them with 429 or 503.
        tokens: Completion tokens of the usable answers.
        peak: The most requests that were in flight.
        clients: Completion tokens by client, then by second.
    """

    __slots__ = (*_COLUMNS, "clients")

    def __init__(self) -> None:
        self.arrived: list[int] = []
        self.finished: list[int] = []
        self.answered: list[int] = []
        self.rejected: list[int] = []
        self.tokens: list[int] = []
        self.peak: list[int] = []
        self.clients: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.arrived)

    def arrive(self, at: float, in_flight: int) -> None:
        """A request arrived `at` seconds after the first, as one of `in_flight`."""
        second = int(at)
        if second >= len(self.arrived):
            self._grow(second)
        self.arrived[second] += 1
        if in_flight > self.peak[second]:  # noqa: PLR1730 - twice as fast as max()
            self.peak[second] = in_flight

    def reject(self, at: float) -> None:
        """A request ended with 429 or 503; to be called besides `finish`."""
        self.rejected[int(at)] += 1

    def finish(self, at: float) -> None:
        """A request ended."""
        second = int(at)
        if second >= len(self.arrived):
            self._grow(second)
        self.finished[second] += 1

    def answer(self, at: float, tokens: int, client: str) -> None:
        """A request ended with a usable answer; to be called besides `finish`."""
        second = int(at)
        self.answered[second] += 1
        self.tokens[second] += tokens
        if client:
            mine = self.clients.setdefault(client, [])
            if second >= len(mine):
                mine.extend([0] * (second + 1 - len(mine)))
            mine[second] += tokens

    def _grow(self, second: int) -> None:
        more = [0] * (second + 1 - len(self.arrived))
        # The column that `len` looks at comes last: who reads meanwhile finds all others long.
        for name in reversed(_COLUMNS):
            getattr(self, name).extend(more)

    def total(self, column: list[int], start: float, end: float) -> float:
        """Return the sum of a column between two times; of a second cut in two, its share."""
        first, last = math.floor(start), math.ceil(end)
        found = 0.0
        for second, value in enumerate(column[first:last], first):
            found += value * (min(second + 1, end) - max(second, start))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**{name: getattr(self, name) for name in _COLUMNS}, "clients": self.clients}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PerSecond:
        """Rebuild from `to_dict`."""
        made = cls()
        for name, column in data.items():
            setattr(made, name, column)
        return made
