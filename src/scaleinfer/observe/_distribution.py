"""`Distribution`: how a quantity is spread, in bins of equal ratio."""

from __future__ import annotations

from math import frexp, log2
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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

    def add(self, value: float) -> None:
        """Count a value; one that is not positive is in no bin."""
        self.add_counted({value: 1})

    def add_all(self, values: Sequence[float]) -> None:
        """Count values; many at once cost less than each by itself."""
        bins, part, total = self._bins, _PART, 0.0
        for value in values:
            if value > 0:
                total += value
                mantissa, exponent = frexp(value)
                # As `_place` does, which would cost as much again to call.
                place = exponent * _PER_OCTAVE + part[int(mantissa * 256)]
                bins[place] = bins.get(place, 0) + 1
        self.number += len(values)
        self.total += total

    def add_counted(self, values: Mapping[float, int]) -> None:
        """Count values that came so many times each."""
        for value, number in values.items():
            self.number += number
            if value > 0:
                self.total += value * number
                place = _place(value)
                self._bins[place] = self._bins.get(place, 0) + number

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


def _place(value: float) -> int:
    """Return the bin of a positive value."""
    mantissa, exponent = frexp(value)
    return exponent * _PER_OCTAVE + _PART[int(mantissa * 256)]


def _bound(place: int) -> float:
    """Return the lower bound of a bin."""
    return float(2.0 ** (place / _PER_OCTAVE - 1))
