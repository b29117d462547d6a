"""How far raters agree beyond chance: Cohen's and Fleiss's kappa, Krippendorff's alpha.

The formulas are short, and the packages that have them bring scipy along; each is checked in the
tests against the example of the paper it comes from. A coefficient is 1 for perfect agreement and
0 for what chance alone would give; it is `None` where it is not defined, for want of ratings or
because nobody ever used a second category.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

__all__ = [
    "Agreement", "Level", "agreement_of", "cohen_kappa", "fleiss_kappa", "krippendorff_alpha",
]  # fmt: skip

Level = Literal["nominal", "ordinal", "interval", "ratio"]
"""What the values of a rating mean: names, ranks, differences or proportions."""

_PAIR = 2


def cohen_kappa(
    first: Sequence[Hashable | None], second: Sequence[Hashable | None]
) -> float | None:
    """Return Cohen's kappa of two raters.

    `(p_o - p_e) / (1 - p_e)`, with `p_o` the share of items both put into the same category and
    `p_e` the share expected if each rated at random with his own frequencies (J. Cohen, A
    coefficient of agreement for nominal scales, Educational and Psychological Measurement 20,
    37-46, 1960).

    Args:
        first: The first rater's categories; `None` where there is none.
        second: The second rater's, of the same items. Items that one has not rated do not count.

    Raises:
        ConfigError: The two differ in length.
    """
    pairs = _pairs(first, second)
    if not pairs:
        return None
    n = len(pairs)
    of_first = Counter(a for a, _ in pairs)
    of_second = Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / n
    # As whole numbers, so that a constant category gives exactly 1.
    expected = sum(count * of_second[name] for name, count in of_first.items()) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts: Iterable[Sequence[int]]) -> float | None:
    """Return Fleiss's kappa of any number of raters.

    The raters need not be the same for each item, but as many (J. L. Fleiss, Measuring nominal
    scale agreement among many raters, Psychological Bulletin 76, 378-382, 1971).

    Args:
        counts: For each item, how many raters chose each category: items x categories.

    Raises:
        ConfigError: Items differ in their number of ratings, or have fewer than two.
    """
    rows = [list(row) for row in counts]
    if not rows:
        return None
    raters = sum(rows[0])
    if raters < _PAIR or any(sum(row) != raters for row in rows):
        raise ConfigError(
            "Fleiss's kappa needs the same number of ratings for each item, two or more.",
            hint="krippendorff_alpha takes items with ratings missing.",
        )
    pairs = raters * (raters - 1)
    observed = sum(sum(k * (k - 1) for k in row) / pairs for row in rows) / len(rows)
    totals = [sum(column) for column in zip(*rows, strict=True)]
    expected = sum(total**2 for total in totals) / (len(rows) * raters) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(
    ratings: Iterable[Sequence[Any]], *, level: Level = "nominal"
) -> float | None:
    """Return Krippendorff's alpha of any number of raters, ratings missing or not.

    `1 - D_o / D_e`: observed over expected disagreement, from the table of coincidences
    (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, University of Pennsylvania,
    2011). Items with fewer than two ratings do not count.

    Args:
        ratings: For each item, each rater's value; `None` where there is none.
        level: How far two values are apart: `nominal` (same or not), `ordinal` (ranks between
            them), `interval` (squared difference) or `ratio` (relative difference; values must
            not be negative).

    Raises:
        ConfigError: Unknown `level`, or values that it cannot take.
    """
    if level not in get_args(Level):
        raise ConfigError(
            f"level={level!r} is unknown.", hint=f"Known: {', '.join(get_args(Level))}."
        )
    units = [given for unit in ratings if len(given := _given(unit)) >= _PAIR]
    totals = Counter(value for unit in units for value in unit)
    if len(totals) < _PAIR:
        return None
    distance = _distance(level, totals)
    # Sums of products of many terms: fsum keeps a perfect agreement at exactly 1.
    observed = math.fsum(
        2 * distance(a, b) * unit_counts[a] * unit_counts[b] / (len(unit) - 1)
        for unit in units
        for unit_counts in (Counter(unit),)
        for a, b in combinations(unit_counts, 2)
    )
    expected = math.fsum(
        2 * distance(a, b) * totals[a] * totals[b] for a, b in combinations(totals, 2)
    )
    n = totals.total()
    return 1 - (n - 1) * observed / expected if expected else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far several raters agree on the same items.

    Attributes:
        raters: Their names.
        items: Items that at least two of them rated.
        alpha: Krippendorff's alpha over all of them.
        fleiss: Fleiss's kappa over the items that all of them rated.
        pairs: For each pair of raters: share of items they agree on, Cohen's kappa, and the
            number of items both rated.
    """

    raters: tuple[str, ...]
    items: int
    alpha: float | None
    fleiss: float | None
    pairs: Mapping[tuple[str, str], tuple[float | None, float | None, int]]

    def rows(self) -> list[tuple[str, float | None, float | None, int]]:
        """Return a row per pair: names, share that agrees, kappa, items."""
        return [(f"{a} / {b}", *values) for (a, b), values in self.pairs.items()]

    def __str__(self) -> str:
        from scaleinfer.patterns._tables import Table

        def shown(value: float | None) -> str:
            return "-" if value is None else f"{value:.2f}"

        title = (
            f"{len(self.raters)} raters, {self.items} items: Krippendorff's alpha "
            f"{shown(self.alpha)}, Fleiss's kappa {shown(self.fleiss)}"
        )
        return Table(title, ("pair", "agree", "kappa", "items"), self.rows()).text()


def agreement_of(ratings: Mapping[str, Sequence[Any]], *, level: Level = "nominal") -> Agreement:
    """Return how far raters agree.

    Args:
        ratings: For each rater by name, a value per item; `None` where there is none.
        level: What the values mean, for Krippendorff's alpha.

    Raises:
        ConfigError: Raters have ratings of different length, or an unknown `level`.
    """
    columns = {name: list(values) for name, values in ratings.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise ConfigError("the raters have ratings of different numbers of items.")
    items = list(zip(*columns.values(), strict=True))
    complete = [item for item in items if len(_given(item)) == len(columns)]
    names = sorted({value for item in complete for value in item}, key=repr)
    counts = [[item.count(name) for name in names] for item in complete]
    return Agreement(
        raters=tuple(columns),
        items=sum(len(_given(item)) >= _PAIR for item in items),
        alpha=krippendorff_alpha(items, level=level),
        fleiss=fleiss_kappa(counts) if len(columns) >= _PAIR else None,
        pairs={(a, b): _compared(columns[a], columns[b]) for a, b in combinations(columns, 2)},
    )


def _compared(
    first: Sequence[Any], second: Sequence[Any]
) -> tuple[float | None, float | None, int]:
    pairs = _pairs(first, second)
    share = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    return share, cohen_kappa(first, second), len(pairs)


def _pairs(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(first) != len(second):
        raise ConfigError(f"the raters rated {len(first)} and {len(second)} items.")
    pairs = zip(first, second, strict=True)
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _given(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _distance(level: Level, totals: Counter[Any]) -> Callable[[Any, Any], float]:
    """Return Krippendorff's squared difference of two values."""
    if level == "nominal":
        return lambda a, b: float(a != b)
    if not all(isinstance(value, int | float) for value in totals):
        raise ConfigError(f"level={level!r} needs numbers.")
    if level == "interval":
        return lambda a, b: float((a - b) ** 2)
    if level == "ratio":
        if min(totals) < 0:
            raise ConfigError("level='ratio' needs values that are not negative.")
        return lambda a, b: ((a - b) / (a + b)) ** 2 if a != b else 0.0
    # The number of ratings up to the middle of each rank; their difference is what lies between.
    middle, below = {}, 0
    for value in sorted(totals):
        middle[value] = below + totals[value] / 2
        below += totals[value]
    return lambda a, b: (middle[a] - middle[b]) ** 2
