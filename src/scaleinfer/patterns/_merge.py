"""`merge`: one structured value of several, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.patterns._voting import Tally, count_votes, normalised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Conflict", "Merged", "merge_values"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field of which the values contradict each other.

    Attributes:
        path: Where it is: names joined with dots.
        votes: Each value's votes, most first.
        chosen: The value that was taken.
        tied: True if another value had as many votes.
    """

    path: str
    votes: Mapping[str, float]
    chosen: Any
    tied: bool


@dataclass(frozen=True, slots=True)
class Merged:
    """Several structured values in one.

    Attributes:
        value: The merged value: an instance of the values' pydantic model if they have one, else
            a dict.
        conflicts: Fields on which they were not of one mind.
        sources: How many values were merged.
    """

    value: Any
    conflicts: tuple[Conflict, ...]
    sources: int


def merge_values(
    values: Iterable[Any], how: Mapping[str, Callable[[list[Any]], Any]] | None = None
) -> Merged:
    """Merge values field by field.

    Dicts are merged key by key, lists become all their different elements in the order in which
    they came up, and of anything else the most frequent value is taken, of several the first.
    `None` gives way to any value.

    Args:
        values: Dicts or pydantic objects.
        how: Path of a field -> a function that makes one value of all that are not `None`,
            instead; such a field has no conflicts.

    Raises:
        ConfigError: There is no value, one that has no fields, an unknown path, or the fields
            do not make a valid object.
    """
    given = list(values)
    if not given:
        raise ConfigError("there is nothing to merge: no value at all.")
    plain = [_fields(value) for value in given]
    merging = _Merging(dict(how or {}))
    merged = merging.dicts(plain, "")
    unknown = sorted(set(merging.how) - merging.used)
    if unknown:
        raise ConfigError(f"how names fields that no value has: {', '.join(unknown)}.")
    kinds = {type(value) for value in given}
    kind = kinds.pop()
    if not kinds and hasattr(kind, "model_validate"):
        return Merged(_validated(kind, merged), tuple(merging.conflicts), len(given))
    return Merged(merged, tuple(merging.conflicts), len(given))


def _validated(model: Any, merged: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            f"the merged value is no valid {model.__name__}: {error}",
            hint="Merge model_dump()s instead, or say with how= what its fields are to be.",
        ) from error


def _fields(value: Any) -> Mapping[str, Any]:
    if hasattr(value, "model_dump"):
        dumped: Mapping[str, Any] = value.model_dump(by_alias=True)
        return dumped
    if isinstance(value, Mapping):
        return value
    raise ConfigError(
        f"merge takes dicts and pydantic objects, not {type(value).__name__}.",
        hint="majority_vote is for plain values.",
    )


class _Merging:
    def __init__(self, how: dict[str, Callable[[list[Any]], Any]]) -> None:
        self.how = how
        self.used: set[str] = set()
        self.conflicts: list[Conflict] = []

    def dicts(self, values: Sequence[Mapping[str, Any]], path: str) -> dict[str, Any]:
        names = dict.fromkeys(name for value in values for name in value)
        return {
            name: self._field(
                [value[name] for value in values if value.get(name) is not None],
                f"{path}.{name}" if path else str(name),
            )
            for name in names
        }

    def _field(self, values: list[Any], path: str) -> Any:
        if path in self.how:
            self.used.add(path)
            return self.how[path](values) if values else None
        if not values:
            return None
        if all(isinstance(value, Mapping) for value in values):
            return self.dicts(values, path)
        if all(isinstance(value, list | tuple | set | frozenset) for value in values):
            different = {normalised(one): one for value in reversed(values) for one in value}
            order = dict.fromkeys(normalised(one) for value in values for one in value)
            return [different[name] for name in order]
        tally: Tally = count_votes((value, 1.0) for value in values)
        if len(tally.votes) > 1:
            self.conflicts.append(Conflict(path, tally.votes, tally.value, bool(tally.tied)))
        return tally.value
