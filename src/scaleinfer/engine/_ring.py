"""Where calls with the same prompt prefix belong: consistent hashing (Karger et al., STOC 1997).

When an endpoint comes or goes, only the prefixes that were or will be its own move, so the
prefix caches of the others keep their worth.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Ring"]

_POINTS = 64
_BITS = 64


class Ring:
    """Points on a circle, those of an endpoint drawn from its name.

    Args:
        names: One for each endpoint. The second of a name has points of its own.
        weights: Shares of the circle.
        indices: What `home` and `walk` call them; default their positions.
    """

    __slots__ = ("_owners", "_points")

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        indices: Sequence[int] | None = None,
    ) -> None:
        mean = sum(weights) / len(weights)
        seen: Counter[str] = Counter()
        drawn: list[tuple[int, int]] = []
        indices = range(len(names)) if indices is None else indices
        for index, name, weight in zip(indices, names, weights, strict=True):
            draw = random.Random(f"{name}#{seen[name]}").getrandbits
            seen[name] += 1
            drawn += [(draw(_BITS), index) for _ in range(max(1, round(_POINTS * weight / mean)))]
        drawn.sort()
        self._points = [point for point, _ in drawn]
        self._owners = [owner for _, owner in drawn]

    def home(self, key: int) -> int:
        """Return the index of the key's own endpoint."""
        place = bisect_left(self._points, _mixed(key))
        return self._owners[place if place < len(self._owners) else 0]

    def walk(self, key: int) -> Iterator[int]:
        """Yield each endpoint's index once, the key's own first."""
        first = bisect_left(self._points, _mixed(key))
        owners, seen = self._owners, set()
        for step in range(len(owners)):
            owner = owners[(first + step) % len(owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner


def _mixed(key: int) -> int:
    """Spread small and neighbouring keys over the circle (the finalizer of SplitMix64)."""
    mask = (1 << _BITS) - 1
    key = (key + 0x9E3779B97F4A7C15) & mask
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & mask
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB & mask
    return key ^ (key >> 31)
