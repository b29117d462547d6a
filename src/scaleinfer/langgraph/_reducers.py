"""Reducers for the `Annotated` keys of a graph's state.

Each is made by a call and given to LangGraph: `best: Annotated[list, top_k(5, score)]`. A state
that is shared by several schemas needs the same object in all of them. Reducers are pure: they
return a new value, and never change what they are given. They are associative, and so are
their results under LangGraph's order of parallel branches; those that say so do not depend on
the order either.

What a node writes may be a single update or a list of them, and where an update is a result of
a map (`Result`), its value is what counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import orjson

from scaleinfer.errors import ConfigError
from scaleinfer.results import Result

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Reducer",
    "append_in_order",
    "best_of",
    "keep_failures",
    "keep_ok",
    "merge_by_key",
    "statistics",
    "tally",
    "top_k",
]

Reducer = Callable[[Any, Any], Any]
Key = str | Callable[[Any], Any]
Conflict = Literal["last", "first", "raise"]


def append_in_order(by: Key | None = None) -> Reducer:
    """Return a reducer for a list that grows by what each node writes.

    Without `by`, parts follow one another in LangGraph's order of the branches, which for
    `Send` is that of the sends, whoever ends first. With `by` the list is sorted, and does not
    depend on the order of the branches as long as no two elements are equal under `by`.

    Args:
        by: What to sort by: a field's name or a function of the element.
    """

    def append(left: Any, right: Any) -> list[Any]:
        both = [*_listed(left, "append_in_order"), *_listed(right, "append_in_order")]
        if by is None:
            return both
        return sorted(both, key=lambda element: _field(element, by, "append_in_order"))

    return append


def merge_by_key(
    key: Key = "key",
    *,
    conflict: Conflict | Callable[[Any, Any], Any] = "last",
) -> Reducer:
    """Return a reducer for a dict of key to element.

    A node writes such a dict, an element, or a list of elements. Between two that have the same
    key and are not equal, a `Result` with an answer wins over one without; else `conflict`
    decides. With `"raise"`, or a function that is associative and commutative, the dict does
    not depend on the order of the branches.

    Args:
        key: An element's field or a function of it, for lists.
        conflict: `"last"`, `"first"`, `"raise"`, or a function of both that returns one.

    Raises:
        ConfigError: When merging: two elements conflict, or an update has no key.
    """
    if not callable(conflict) and conflict not in {"last", "first", "raise"}:
        raise ConfigError(
            f"conflict must be 'last', 'first', 'raise' or a function, not {conflict!r}."
        )

    def keyed(update: Any) -> Mapping[Any, Any]:
        if isinstance(update, Mapping):
            return update
        merged: dict[Any, Any] = {}
        for element in _listed(update, "merge_by_key"):
            put(merged, _field(element, key, "merge_by_key"), element)
        return merged

    def put(merged: dict[Any, Any], name: Any, element: Any) -> None:
        if name not in merged or merged[name] == element:
            merged.setdefault(name, element)
            return
        merged[name] = _chosen(name, merged[name], element, conflict)

    def merge(left: Any, right: Any) -> dict[Any, Any]:
        merged = dict(keyed({} if left is None else left))
        for name, element in keyed({} if right is None else right).items():
            put(merged, name, element)
        return merged

    return merge


def _chosen(
    name: Any, before: Any, now: Any, conflict: Conflict | Callable[[Any, Any], Any]
) -> Any:
    if isinstance(before, Result) and isinstance(now, Result) and before.ok != now.ok:
        return before if before.ok else now
    if callable(conflict):
        return conflict(before, now)
    if conflict == "raise":
        raise ConfigError(
            f"merge_by_key: two branches wrote different values for {name!r}: "
            f"{_short(before)} and {_short(now)}.",
            hint="Give each branch other keys, or say which one counts: conflict=.",
        )
    return now if conflict == "last" else before


def tally(of: Key | None = None) -> Reducer:
    """Return a reducer for a dict that counts: value -> how often it was written.

    A node writes a value, a list of values or results (those without an answer do not count),
    or a dict of counts. Does not depend on the order of the branches.

    Args:
        of: Field or function of a value that is counted in its place.
    """

    def count(left: Any, right: Any) -> dict[Any, int]:
        counts: dict[Any, int] = {}
        for side in (left, right):
            if isinstance(side, Mapping) and of is None:
                pairs: Iterable[tuple[Any, int]] = side.items()
            elif side is left and isinstance(side, Mapping):
                pairs = side.items()
            else:
                pairs = ((value, 1) for value in _values(side, of, "tally"))
            for value, number in pairs:
                counts[value] = counts.get(value, 0) + number
        return counts

    return count


def top_k(k: int, *, score: Key = "value", largest: bool = True) -> Reducer:
    """Return a reducer for a list of the `k` best elements, the best one first.

    A node writes an element or a list of them. Elements without a score (`None`, not a number,
    a result without an answer) are left out. Equal scores are ordered by content, so that the
    list does not depend on the order of the branches.

    Args:
        k: How many to keep, at least one.
        score: An element's field or a function of it; of a `Result` by default its value.
        largest: False if low scores are the good ones.

    Raises:
        ConfigError: `k` is no positive number.
    """
    if not isinstance(k, int) or k < 1:
        raise ConfigError(f"k must be a positive number, not {k!r}.")

    def rank(element: Any) -> tuple[float, bytes] | None:
        if isinstance(element, Result) and not element.ok:
            return None
        number = _number(_field(element, score, "top_k"))
        return None if number is None else (-number if largest else number, _content(element))

    def best(left: Any, right: Any) -> list[Any]:
        both = [*_listed(left, "top_k"), *_listed(right, "top_k")]
        ranked = [(place, element) for element in both if (place := rank(element)) is not None]
        return [element for _, element in heapq.nsmallest(k, ranked, key=lambda pair: pair[0])]

    return best


def best_of(score: Key = "value", *, largest: bool = True) -> Reducer:
    """Return a reducer for a list that holds the best element, or nothing yet.

    Otherwise like `top_k`.
    """
    return top_k(1, score=score, largest=largest)


def statistics(of: Key | None = None) -> Reducer:
    """Return a reducer for a dict of `count`, `mean`, `stdev`, `min`, `max` of numbers.

    A node writes a number, a list of numbers or results, or such a dict; what is no number does
    not count. `stdev` is that of a sample, `None` for fewer than two numbers; `m2` is the sum of
    squared deviations, from which groups are joined (T. F. Chan, G. H. Golub and R. J. LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979). Does not
    depend on the order of the branches, rounding of the last digits excepted.

    Args:
        of: Field or function of a value whose number counts.
    """

    def join(left: Any, right: Any) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for side in (left, right):
            if isinstance(side, Mapping) and ("m2" in side or not side):
                groups: Iterable[Mapping[str, Any]] = (side,)
            else:
                numbers = map(_number, _values(side, of, "statistics"))
                groups = (_one(number) for number in numbers if number is not None)
            for group in groups:
                joined = _joined(joined, group)
        return joined

    return join


def _one(number: float) -> dict[str, Any]:
    return {"count": 1, "mean": number, "stdev": None, "min": number, "max": number, "m2": 0.0}


def _joined(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    if not a or not b:
        return dict(a or b)
    count = a["count"] + b["count"]
    apart = b["mean"] - a["mean"]
    m2 = a["m2"] + b["m2"] + apart * apart * a["count"] * b["count"] / count
    return {
        "count": count,
        "mean": (a["mean"] * a["count"] + b["mean"] * b["count"]) / count,
        "stdev": math.sqrt(m2 / (count - 1)),
        "min": min(a["min"], b["min"]),
        "max": max(a["max"], b["max"]),
        "m2": m2,
    }


def keep_failures() -> Reducer:
    """Return a reducer for a list that keeps the results without an answer, and drops the rest.

    A result that was written twice (the same key and error) is kept once.
    """

    def keep(left: Any, right: Any) -> list[Result]:
        found: dict[Any, Result] = {}
        for result in _results(left, right, "keep_failures"):
            if not result.ok:
                found.setdefault((result.key, str(result.error)), result)
        return list(found.values())

    return keep


def keep_ok() -> Reducer:
    """Return a reducer for a list that keeps the results with an answer, and drops the rest."""

    def keep(left: Any, right: Any) -> list[Result]:
        return [result for result in _results(left, right, "keep_ok") if result.ok]

    return keep


def _results(left: Any, right: Any, reducer: str) -> list[Result]:
    both = [*_listed(left, reducer), *_listed(right, reducer)]
    for result in both:
        if not isinstance(result, Result):
            raise ConfigError(
                f"{reducer}: {_short(result)} is no result of a map.",
                hint="It is for keys that map_node writes to without values=True.",
            )
    return both


def _listed(update: Any, reducer: str) -> list[Any]:
    """Return an update as a list of elements."""
    if update is None:
        return []
    if isinstance(update, list | tuple) and not hasattr(update, "_fields"):
        return list(update)
    if isinstance(update, set | frozenset):
        raise ConfigError(f"{reducer}: a set has no order.", hint="Write a list.")
    return [update]


def _values(update: Any, of: Key | None, reducer: str) -> Iterable[Any]:
    """Yield the values of an update, those of results that have one."""
    for element in _listed(update, reducer):
        if isinstance(element, Result) and not element.ok:
            continue
        value = element.value if isinstance(element, Result) and not callable(of) else element
        yield value if of is None else _field(value, of, reducer)


def _field(element: Any, field: Key, reducer: str) -> Any:
    """Return what an element is sorted, keyed or scored by.

    Raises:
        ConfigError: It does not have it.
    """
    if callable(field):
        return field(element)
    if isinstance(element, Mapping) and field in element:
        return element[field]
    if not isinstance(element, Mapping) and hasattr(element, field):
        return getattr(element, field)
    raise ConfigError(
        f"{reducer}: {_short(element)} has no {field!r}.",
        hint="Name another field, or give a function of the element.",
    )


def _number(value: Any) -> float | None:
    """Return a value as a number; `None` for what is none, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else value


def _content(element: Any) -> bytes:
    """Return bytes that order elements of equal score by what they hold."""
    if isinstance(element, Result):
        return element.key.encode()
    return orjson.dumps(
        element, default=repr, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line's worth
