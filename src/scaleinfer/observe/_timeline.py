"""`Timeline`: counts over time in a bounded number of bins."""

from __future__ import annotations

__all__ = ["Timeline"]

_WIDTH_S = 0.05
_MOST = 600


class Timeline:
    """Rows of counts over time; a state machine, the clock is passed in.

    There are at most 600 bins of equal width. When time runs past them, each two become one, so
    that a run of seconds and one of days take the same memory.

    Args:
        width: Seconds of a bin at first.
        most: Bins there are at most; an even number.
    """

    def __init__(self, width: float = _WIDTH_S, most: int = _MOST) -> None:
        self.width = width
        self.most = most
        self.bins = 0
        self._rows: list[list[float]] = []
        self._steps: list[list[float]] = []

    def row(self) -> list[float]:
        """Return a new row of counts, to be added to at `place`."""
        row = [0.0] * (self.most + 2)
        self._rows.append(row)
        return row

    def steps(self) -> list[float]:
        """Return a new row of what went on at once, to be given to `went_on`."""
        steps = [0.0] * (self.most + 2)
        self._steps.append(steps)
        return steps

    def place(self, time: float) -> int:
        """Return the bin of a time, in seconds from the start; valid until the next call."""
        place = int(time / self.width)
        if place >= self.bins:
            while place >= self.most:
                self._fold()
                place = int(time / self.width)
            self.bins = max(self.bins, place + 1)
        return place

    def went_on(self, steps: list[float], start: float, end: float) -> int:
        """Count something that went on from `start` to `end`; return the bin of its end."""
        last = self.place(end)
        width = self.width
        first = int(start / width)
        # Of the bin in which it starts a part, of all that follow the whole, and back again.
        part = start / width - first
        steps[first] += 1.0 - part
        steps[first + 1] += part
        part = end / width - last
        steps[last] -= 1.0 - part
        steps[last + 1] -= part
        return last

    def counts(self, row: list[float]) -> list[float]:
        """Return what was counted, by bin."""
        return row[: self.bins]

    def levels(self, steps: list[float]) -> list[float]:
        """Return how many went on at once, on average over each bin."""
        return _levels(steps)[: self.bins]

    def _fold(self) -> None:
        self.width *= 2
        self.bins = (self.bins + 1) // 2
        for row in self._rows:
            half = [a + b for a, b in zip(row[::2], row[1::2], strict=True)]
            row[:] = half + [0.0] * (len(row) - len(half))
        for steps in self._steps:
            levels = _levels(steps)
            means = [(a + b) / 2 for a, b in zip(levels[::2], levels[1::2], strict=True)]
            differences = [b - a for a, b in zip([0.0, *means], means, strict=False)]
            steps[:] = differences + [0.0] * (len(steps) - len(differences))


def _levels(steps: list[float]) -> list[float]:
    levels, level = [], 0.0
    for step in steps:
        level += step
        levels.append(level if level > 1e-9 else 0.0)  # noqa: PLR2004 - what rounding leaves
    return levels
