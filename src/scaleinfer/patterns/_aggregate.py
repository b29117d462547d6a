"""What to make of results: votes, the best, one value of many, numbers, failures, groups.

All of these take a `MapResult`, a pattern's result, or any iterable of results or of plain
values; results without an answer are left out, except by `failure_report` and `group_by`.
"""

from __future__ import annotations

import math
import statistics as numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.patterns._merge import Conflict, Merged, merge_values
from scaleinfer.patterns._result import Outcome
from scaleinfer.patterns._tables import Table, frame
from scaleinfer.patterns._voting import Tally, count_votes
from scaleinfer.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    import pandas as pd

__all__ = [
    "Conflict", "FailureKind", "FailureReport", "Merged", "Statistics", "failure_report",
    "group_by", "majority_vote", "merge", "statistics", "top_k",
]  # fmt: skip

_PAIR = 2
_EXAMPLES = 300


def majority_vote(
    results: Iterable[Any],
    *,
    answer: Callable[[Any], Any] | None = None,
    weight: Callable[[Any], float] | None = None,
) -> Tally:
    """Return the most frequent answer, with its share of the votes.

    Answers that are equal but for capitals at the beginning of words, white space and
    punctuation at the end count as one. Of answers with as many votes the first wins.

    Args:
        results: Results or plain values.
        answer: What a result votes for; `None` abstains. Default its value.
        weight: What its vote weighs; default 1.
    """
    return count_votes(
        (
            value if answer is None else answer(one),
            1.0 if weight is None else float(weight(one)),
        )
        for one, value in _answered(results)
    )


def top_k(
    results: Iterable[Any],
    k: int,
    *,
    key: str | Callable[[Any], float] | None = None,
    largest: bool = True,
) -> list[Any]:
    """Return the `k` best results, the best first, equal ones in their order.

    Args:
        results: Results or plain values.
        k: How many; fewer if there are not so many.
        key: What to rank by: a function of the result, or the name of a field of its value;
            default the value itself. Results whose key is `None` or no number are left out.
        largest: False to take the smallest.

    Raises:
        ConfigError: `k` is less than 1.
    """
    if not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is a number of results, at least 1, not {k!r}.")
    ranked = [
        (float(rank), one)
        for one, value in _answered(results)
        if (rank := _read(one, value, key)) is not None and not math.isnan(rank)
    ]
    sign = -1 if largest else 1
    ranked.sort(key=lambda pair: sign * pair[0])
    return [one for _, one in ranked[:k]]


def merge(
    results: Iterable[Any], *, how: Mapping[str, Callable[[list[Any]], Any]] | None = None
) -> Merged:
    """Return one structured value of several, and where they contradict each other.

    Dicts are merged key by key, lists become all their different elements in the order in which
    they came up, and of anything else the most frequent value is taken, of several the first.
    `None` gives way to any value.

    Args:
        results: Results whose values are dicts or pydantic objects, or such values.
        how: Path of a field (`"sample.mass"`) -> a function that makes one value of all that
            are not `None`, instead; such a field has no conflicts.

    Raises:
        ConfigError: There is no value, one has no fields, `how` names an unknown field, or the
            merged fields do not make a valid object.
    """
    return merge_values((value for _, value in _answered(results)), how)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers in short.

    Attributes:
        count: How many there are.
        missing: Results without one.
        mean: Their mean; `None` if there are none, as for all that follow.
        sd: Standard deviation of the sample; `None` for fewer than two.
        minimum: The smallest.
        q1: The first quartile.
        median: The middle.
        q3: The third quartile.
        maximum: The largest.
    """

    count: int
    missing: int
    mean: float | None = None
    sd: float | None = None
    minimum: float | None = None
    q1: float | None = None
    median: float | None = None
    q3: float | None = None
    maximum: float | None = None


def statistics(
    results: Iterable[Any], *, of: str | Callable[[Any], float | None] | None = None
) -> Statistics:
    """Return what numbers among results come to.

    Args:
        results: Results or plain values.
        of: The number: a function of the result, or the name of a field of its value; default
            the value itself. What is `None` or NaN counts as missing, and so do results without
            an answer.

    Raises:
        ConfigError: A value is no number.
    """
    found: list[float] = []
    total = 0
    for one, ok, value in _all(results):
        total += 1
        number = _read(one, value, of) if ok else None
        if number is not None and not math.isnan(number):
            found.append(float(number))
    missing = total - len(found)
    if not found:
        return Statistics(0, missing)
    # Inclusive: the sample's own ends are its 0 % and 100 %, as numpy and pandas have it.
    several = len(found) >= _PAIR
    quartiles = numbers.quantiles(found, n=4, method="inclusive") if several else found * 3
    return Statistics(
        count=len(found),
        missing=missing,
        mean=numbers.fmean(found),
        sd=numbers.stdev(found) if several else None,
        minimum=min(found),
        q1=quartiles[0],
        median=quartiles[1],
        q3=quartiles[2],
        maximum=max(found),
    )


@dataclass(frozen=True, slots=True)
class FailureKind:
    """Failures of one kind.

    Attributes:
        kind: The error's class, with the HTTP status if there was one.
        indices: The items, as places in the input.
        message: What happened to the first.
        hint: What to do; empty if the error has no advice.
    """

    kind: str
    indices: tuple[int, ...]
    message: str
    hint: str

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.indices)


class FailureReport(tuple[FailureKind, ...]):
    """Failures by kind, the most frequent first; true if there are any."""

    __slots__ = ()

    @property
    def indices(self) -> list[int]:
        """All items that failed, as places in the input, in order."""
        return sorted(index for kind in self for index in kind.indices)

    def table(self) -> Table:
        """Return the failures as a table."""
        rows = [
            (kind.count, kind.kind, f"item {kind.indices[0]}: {kind.message}", kind.hint)
            for kind in self
        ]
        return Table("Failures", ("items", "kind", "for example", "what to do"), rows)

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame with a row per kind.

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame(
            {
                "kind": kind.kind,
                "count": kind.count,
                "indices": list(kind.indices),
                "message": kind.message,
                "hint": kind.hint,
            }
            for kind in self
        )

    def __repr__(self) -> str:
        return self.table().text() if self else "No failures."

    def _repr_html_(self) -> str:
        return self.table().html() if self else "<div>No failures.</div>"


def failure_report(results: Iterable[Any]) -> FailureReport:
    """Return what failed and why, by kind, the most frequent first.

    Args:
        results: Results of a map or of a pattern.
    """
    kinds: dict[str, list[Any]] = {}
    for one in results:
        error = getattr(one, "error", None)
        if getattr(one, "ok", True) or error is None:
            continue
        status = getattr(error, "status", None)
        kind = type(error).__name__ + (f" {status}" if status else "")
        kinds.setdefault(kind, []).append(one)
    found = [
        FailureKind(
            kind,
            tuple(one.index for one in failed),
            failed[0].error.message[:_EXAMPLES],
            failed[0].error.hint,
        )
        for kind, failed in kinds.items()
    ]
    return FailureReport(sorted(found, key=lambda kind: -kind.count))


def group_by(results: Iterable[Any], key: str | Callable[[Any], Hashable]) -> dict[Any, list[Any]]:
    """Return results in groups, in the order in which the groups came up.

    Args:
        results: Results or plain values; failed results too.
        key: A function of the result; or the name of a field of its item or, if the item has no
            such field, of its value. Results without the field are in the group `None`.
    """
    groups: dict[Any, list[Any]] = {}
    for one, _, value in _all(results):
        if callable(key):
            name = key(one)
        else:
            item = getattr(one, "item", None) if isinstance(one, Result | Outcome) else None
            name = _field(item, key)
            name = _field(value, key) if name is None else name
        groups.setdefault(name, []).append(one)
    return groups


def _all(results: Iterable[Any]) -> Iterator[tuple[Any, bool, Any]]:
    """Yield each result or value, whether there is an answer, and the answer."""
    for one in results:
        if isinstance(one, Result | Outcome):
            yield one, one.ok, one.value
        else:
            yield one, one is not None, one


def _answered(results: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    return ((one, value) for one, ok, value in _all(results) if ok)


def _read(one: Any, value: Any, key: str | Callable[[Any], Any] | None) -> Any:
    """Return the number that `key` names."""
    number = value if key is None else key(one) if callable(key) else _field(value, key)
    if number is None or isinstance(number, int | float):
        return number
    try:
        return float(number)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{number!r} is no number.", hint="Name a numeric field, or pass a function."
        ) from None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
