"""`Digest`: all results of a run in one pass, and the few that are shown one by one."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.observe._escape import cut
from scaleinfer.observe._summary import count_failure, shorten
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaleinfer.observe._summary import FailureGroup
    from scaleinfer.results import Result

__all__ = ["Digest", "full_text"]

_SLOWEST = 50
_FAILED = 500
_FIRST = 200
_PARTS = 100
_DEPTH = 8
_READABLE = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS


class Digest:
    """What is shown of a run's results; they may be far more than fit into memory.

    Args:
        results: All of them; gone through once.
        journaled: True if the run has a journal.

    Attributes:
        total: Results there are.
        ok: Those with a usable answer.
        resumed: Those whose answer came from the journal.
        usage: Tokens of all.
        cost_usd: Their price; `None` if it is not known.
        first: The first 200.
        bad: The first 500 that failed.
        slowest: The 50 that took longest, the slowest first.
        failures: The failures by kind, the most frequent first.
    """

    def __init__(self, results: Iterable[Result], *, journaled: bool = False) -> None:
        self.total = self.ok = self.resumed = 0
        self.usage, self.cost_usd = Usage(), None
        self.first: list[Result] = []
        self.bad: list[Result] = []
        groups: dict[str, FailureGroup] = {}
        slowest: list[tuple[float, int, Result]] = []
        cost: float | None = None
        for number, result in enumerate(results):
            self.total += 1
            self.usage = self.usage.plus(result.usage)
            if result.cost_usd is not None:
                cost = (cost or 0.0) + result.cost_usd
            if number < _FIRST:
                self.first.append(result)
            if result.ok:
                self.ok += 1
                self.resumed += result.resumed
            else:
                if len(self.bad) < _FAILED:
                    self.bad.append(result)
                count_failure(groups, result, journaled=journaled)
            if result.resumed or not result.latency_s:
                continue
            entry = (result.latency_s, -number, result)
            if len(slowest) < _SLOWEST:
                heapq.heappush(slowest, entry)
            elif entry > slowest[0]:
                heapq.heapreplace(slowest, entry)
        self.cost_usd = cost
        self.slowest = [result for _, _, result in sorted(slowest, reverse=True)]
        self.failures = sorted(groups.values(), key=lambda group: -group.count)

    @property
    def failed(self) -> int:
        """Results without a usable answer."""
        return self.total - self.ok


def full_text(value: Any, most: int) -> str:
    """Return an item or a value as text of at most `most` characters, or little more.

    The work does not grow with the value: an item may hold an image.
    """
    if isinstance(value, str):
        return cut(value, most)
    try:
        data = orjson.dumps(_small(value, most, 0), option=_READABLE, default=repr)
    except (TypeError, ValueError):  # a lone surrogate, a number of 100 digits
        return cut(repr(_small(value, most, 0)), most)
    return cut(data.decode(), most)


def _small(value: Any, most: int, depth: int) -> Any:
    """Return a value as JSON data without what nobody would read."""
    if isinstance(value, str):
        return cut(value, most)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= _DEPTH:
        return "…"
    if hasattr(type(value), "model_fields"):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        some = itertools.islice(value.items(), _PARTS)
        return {str(name): _small(part, most, depth + 1) for name, part in some}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        few = [_small(part, most, depth + 1) for part in itertools.islice(value, _PARTS)]
        return few if len(value) <= _PARTS else [*few, f"… {len(value):,} in all"]
    return shorten(value, most)
