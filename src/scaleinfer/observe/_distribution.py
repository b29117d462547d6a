"""`Distribution`: how a quantity is spread, in bins of equal ratio."""

from __future__ import annotations

from math import frexp, log2
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Distribution"]

_PER_OCTAVE = 8
# A logarithm for each call would cost more than to look it up; mantissas are from 1/2 to 1.
_PART = [0] * 128 + [int(_PER_OCTAVE * (log2(n / 256) + 1) + 1e-9) for n in range(128, 256)]


class Distribution:
    """Counts of a positive quantity in bins that are each 9 % wider than the one before.

    Memory does not grow with what is counted. Quantiles are off by at most a bin.
    """

    __slots__ = ("_bins", "number", "total")

    def __init__(self) -> None:
        self.number = 0
        self.total = 0.0
        self._bins: dict[int, int] = {}

    def add(self, value: float, number: int = 1) -> None:
        """Count a value that came so many times; one that is not positive is in no bin."""
        self.number += number
        if value > 0:
            self.total += value * number
            mantissa, exponent = frexp(value)
            place = exponent * _PER_OCTAVE + _PART[int(mantissa * 256)]
            bins = self._bins
            bins[place] = bins.get(place, 0) + number

    @classmethod
    def sum(cls, parts: Iterable[Distribution]) -> Self:
        """Return all of them together."""
        whole = cls()
        for part in parts:
            whole.number += part.number
            whole.total += part.total
            for place, number in part._bins.items():
                whole._bins[place] = whole._bins.get(place, 0) + number
        return whole

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / self.number if self.number else 0.0

    def quantile(self, share: float) -> float | None:
        """Return the value below which this share of the positive ones is; `None` of nothing."""
        whole = sum(self._bins.values())
        left = share * whole
        for place in sorted(self._bins):
            number = self._bins[place]
            if left <= number:
                low = _bound(place)
                return low + (_bound(place + 1) - low) * left / number
            left -= number
        return None

    def bars(self, *, most: int = 48) -> list[tuple[float, float, int]]:
        """Return bins without a gap, as lower bound, upper bound and number; at most so many."""
        if not self._bins:
            return []
        joined = 1
        first, last = min(self._bins), max(self._bins)
        while last // joined - first // joined + 1 > most:
            joined *= 2
        numbers: dict[int, int] = {}
        for place, number in self._bins.items():
            numbers[place // joined] = numbers.get(place // joined, 0) + number
        return [
            (_bound(place * joined), _bound((place + 1) * joined), numbers.get(place, 0))
            for place in range(first // joined, last // joined + 1)
        ]


def _bound(place: int) -> float:
    """Return the lower bound of a bin."""
    return float(2.0 ** (place / _PER_OCTAVE - 1))
