"""From a sample to the whole: the regression estimator and its interval. No I/O.

What an item costs is regressed on the length of its prompt, which is known for every item, and
the line is summed over those that were not asked (W. G. Cochran, Sampling Techniques, 3rd ed.,
1977, chapter 7). The interval is the usual one for the sum of new values of a linear model, with
Student's t. Samples are drawn systematically from the items in order of length (chapter 8), so
that short and long ones are in it as they are in the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Range", "spread", "total_of"]

_FEWEST = 5
"""Values from which on a slope is worth fitting."""


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with an interval.

    Attributes:
        value: The estimate.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def plus(self, other: Range) -> Range:
        """Return the sum; the intervals add up, as if both erred the same way."""
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Return a multiple."""
        return Range(self.value * factor, self.low * factor, self.high * factor)


def spread(lengths: Sequence[int], count: int) -> list[int]:
    """Return the positions of `count` items spread evenly over all, by length.

    The middle one of each of `count` groups of equal size; the same items, the same sample.
    """
    if count >= len(lengths):
        return list(range(len(lengths)))
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    step = len(lengths) / count
    return sorted(by_length[int((k + 0.5) * step)] for k in range(count))


def total_of(
    values: Sequence[float],
    lengths: Sequence[float],
    rest: Sequence[float],
    *,
    confidence: float,
) -> Range:
    """Return the sum over all items of what was measured for some.

    Args:
        values: What each item of the sample used.
        lengths: The lengths of their prompts.
        rest: Those of all other items.
        confidence: Share of such intervals that hold the truth.
    """
    n, known, missing = len(values), math.fsum(values), len(rest)
    if not missing:
        return Range(known, known, known)
    mean, center, target = fmean(values), fmean(lengths), fmean(rest)
    spread_x = math.fsum((x - center) ** 2 for x in lengths)
    slope, parameters = 0.0, 1
    if n >= _FEWEST and spread_x > 0:
        products = ((x - center) * (y - mean) for x, y in zip(lengths, values, strict=True))
        slope, parameters = math.fsum(products) / spread_x, 2
    each = mean + slope * (target - center)
    if n <= parameters:
        # One value says nothing of how others differ.
        return Range(known + missing * each, known, math.inf)
    freedom = n - parameters
    errors = ((y - mean - slope * (x - center)) ** 2 for x, y in zip(lengths, values, strict=True))
    variance = math.fsum(errors) / freedom
    lever = 1 / n + ((target - center) ** 2 / spread_x if parameters > 1 else 0.0)
    width = quantile_t(confidence, freedom) * math.sqrt(variance * (missing**2 * lever + missing))
    total = known + missing * max(0.0, each)
    return Range(total, max(known, total - width), total + width)


def quantile_t(confidence: float, freedom: int) -> float:
    """Return Student's t for a two-sided interval.

    The expansion in the normal quantile (Abramowitz and Stegun, 26.7.5); exact for one and two
    degrees of freedom, where it does not serve.
    """
    p = (1 + confidence) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:  # noqa: PLR2004 - two degrees of freedom
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z, v = NormalDist().inv_cdf(p), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
