"""What a node says while it maps, through LangGraph's stream mode `custom`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from scaleinfer.results import Result

__all__ = ["ProgressEvent", "ResultEvent", "Tally", "result_event"]

_EVERY_S = 0.5


class ProgressEvent(TypedDict):
    """Where a node's map stands; sent at most twice a second, and at the end."""

    type: Literal["progress"]
    node: str
    """Name of the node."""
    done: int
    """Items that have a result."""
    total: int | None
    """Items there are; `None` if that is not known."""
    ok: int
    """Items with a usable answer."""
    failed: int
    """Items without."""
    resumed: int
    """Items that the journal answered."""
    prompt_tokens: int
    """Tokens of the prompts asked by this run of the node."""
    completion_tokens: int
    """Tokens of the answers to them."""
    elapsed_s: float
    """Seconds since the map began."""


class ResultEvent(TypedDict):
    """One item's result, sent when it is there; results come in order of completion."""

    type: Literal["result"]
    node: str
    """Name of the node."""
    index: int
    """Position of the item in the node's list, from 0."""
    key: str
    """The item's key."""
    ok: bool
    """True if there is a usable answer."""
    value: Any
    """The answer: with a schema the validated object, else the text."""
    error: str | None
    """Why there is no answer."""
    resumed: bool
    """True if the journal had the answer."""


def result_event(node: str, result: Result) -> ResultEvent:
    """Return the event that tells of one result."""
    return {
        "type": "result",
        "node": node,
        "index": result.index,
        "key": result.key,
        "ok": result.ok,
        "value": result.value,
        "error": None if result.error is None else str(result.error),
        "resumed": result.resumed,
    }


class Tally:
    """Counts a map's results and says when it is time to tell.

    Args:
        node: Name of the node.
        total: Items there are, if that is known.
        now: Seconds, of a monotonic clock.
    """

    def __init__(self, node: str, total: int | None, now: float) -> None:
        self._began = self._told = now
        self._event: ProgressEvent = {
            "type": "progress", "node": node, "done": 0, "total": total, "ok": 0, "failed": 0,
            "resumed": 0, "prompt_tokens": 0, "completion_tokens": 0, "elapsed_s": 0.0,
        }  # fmt: skip

    def count(self, result: Result) -> None:
        """Count a result in."""
        event = self._event
        event["done"] += 1
        event["ok" if result.ok else "failed"] += 1
        if result.resumed:
            event["resumed"] += 1
        else:
            event["prompt_tokens"] += result.usage.prompt_tokens
            event["completion_tokens"] += result.usage.completion_tokens

    def due(self, now: float) -> bool:
        """Return whether the last word on where the map stands is too old."""
        return now - self._told >= _EVERY_S

    def event(self, now: float) -> ProgressEvent:
        """Return where the map stands."""
        self._told = now
        standing = self._event.copy()
        standing["elapsed_s"] = round(now - self._began, 3)
        return standing
