"""`ResultSummary`: what a map came to, as plain data for the HTML and the text that show it."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaleinfer.observe._format import amount, duration, money, one_line, rate
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from scaleinfer.errors import ScaleInferError
    from scaleinfer.results import Result

__all__ = [
    "FailureGroup",
    "ResultSummary",
    "count_failure",
    "failure_groups",
    "head",
    "headline",
    "shorten",
]

_FIELDS = 6
_AGAIN = "Call again with the same journal: only these items are asked."
_AGAIN_ALL = "Call again with these items; with a journal, a second call asks them alone."
_ADVICE = {
    "Permanent": "Look at the message: the endpoint refuses these requests as they are.",
    "AuthError": "Check the API key and what it may use.",
    "PromptError": "Look at what prompt_fn does with these items.",
    "SchemaError": "Try a simpler schema, a higher max_tokens or a stronger model.",
    "BudgetExceeded": "Raise the budget and call again.",
}


@dataclass(frozen=True, slots=True)
class ResultSummary:
    """What a map came to.

    Attributes:
        total: Results there are.
        ok: Those with a usable answer, resumed ones included.
        failed: Those without one.
        resumed: Those whose answer came from the journal.
        elapsed_s: Seconds the map took.
        usage: Tokens of all results.
        cost_usd: Their price; `None` if it is not known.
        stopped: Why the map ended early; `None` if it did not.
        name: The map's name; empty if it has none.
        journal: The journal's path; `None` if the map had none.
        held_back_by: What on our own side kept the map from being faster; empty if nothing did.
    """

    total: int
    ok: int
    failed: int
    resumed: int = 0
    elapsed_s: float = 0.0
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    stopped: str | None = None
    name: str = ""
    journal: str | None = None
    held_back_by: str = ""


@dataclass(slots=True)
class FailureGroup:
    """Failures of one kind.

    Attributes:
        kind: The error's class, with the HTTP status if there was one.
        count: How many there are.
        index: Item of the first.
        message: What happened to it.
        advice: What to do.
    """

    kind: str
    count: int
    index: int
    message: str
    advice: str


def headline(summary: ResultSummary) -> list[str]:
    """Return the parts of a summary's first line."""
    s = summary
    parts = [f"{s.ok:,} ok"]
    if s.failed:
        parts.append(f"{s.failed:,} failed")
    if s.resumed:
        parts.append(f"{s.resumed:,} resumed")
    parts.append(duration(s.elapsed_s))
    fresh = s.total - s.resumed
    if fresh > 0 and s.elapsed_s > 0:
        parts.append(rate(fresh / s.elapsed_s))
    if s.usage.total_tokens:
        tokens = f"{amount(s.usage.prompt_tokens)} + {amount(s.usage.completion_tokens)} tokens"
        parts.append(tokens)
    if s.cost_usd is not None:
        parts.append(money(s.cost_usd))
    if s.held_back_by:
        parts.append(f"held back by {s.held_back_by}")
    return parts


def failure_groups(summary: ResultSummary, results: Iterable[Result]) -> list[FailureGroup]:
    """Return the failures among `results` by kind, the most frequent first."""
    groups: dict[str, FailureGroup] = {}
    for result in results:
        count_failure(groups, result, journaled=summary.journal is not None)
    return sorted(groups.values(), key=lambda group: -group.count)


def count_failure(groups: dict[str, FailureGroup], result: Result, *, journaled: bool) -> None:
    """Add a result to the group of its kind, if it failed."""
    if result.ok or result.error is None:
        return
    kind = _kind(result.error)
    if kind in groups:
        groups[kind].count += 1
        return
    again = _AGAIN if journaled else _AGAIN_ALL
    advice = result.error.hint or _ADVICE.get(type(result.error).__name__, again)
    # What it says may quote an item that only some may see.
    message = "restricted by the policy" if result.restricted else result.error.message
    groups[kind] = FailureGroup(kind, 1, result.index, message, advice)


def head(results: Iterable[Result], rows: int) -> list[Result]:
    """Return the first `rows` results."""
    return list(itertools.islice(results, rows))


def shorten(value: Any, width: int) -> str:
    """Return an item or a value on one line of at most `width` characters.

    A dict or a pydantic object is shown as `name=value, ...`. The work does not grow with the
    value: an item may hold an image.
    """
    fields = _fields(value)
    if fields is not None:
        shown = [f"{name}={_shown(inner, width)}" for name, inner in fields[:_FIELDS]]
        more = ", …" if len(fields) > _FIELDS else ""
        return one_line(", ".join(shown) + more, width)
    return one_line(_shown(value, width), width)


def _fields(value: Any) -> list[tuple[Any, Any]] | None:
    if hasattr(type(value), "model_fields"):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        # At most one more than is shown is needed, to know that there is more.
        return list(itertools.islice(value.items(), _FIELDS + 1))
    return None


def _shown(value: Any, width: int) -> str:
    if isinstance(value, str):
        return one_line(value, width)
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = width
    return cut.repr(value)


def _kind(error: ScaleInferError) -> str:
    status = getattr(error, "status", None)
    return type(error).__name__ + (f" {status}" if status else "")
