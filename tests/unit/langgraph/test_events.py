"""What a node says of a map: counts, and how often."""

from __future__ import annotations

from scaleinfer import PromptError, Result
from scaleinfer.langgraph._events import Tally, result_event
from scaleinfer.results import Usage


def test_progress_is_told_now_and_then() -> None:
    tally = Tally("ask", 4, now=100.0)
    tally.count(Result("a", 0, ok=True, usage=Usage(3, 2, 0, 1)))
    assert not tally.due(100.4)
    assert tally.due(100.5)
    first = tally.event(100.5)
    assert not tally.due(100.9)
    tally.count(Result("b", 1, ok=True, usage=Usage(3, 2, 0, 1), resumed=True))
    tally.count(Result("c", 2, error=PromptError("no")))
    assert tally.event(103.0) == {
        "type": "progress", "node": "ask", "done": 3, "total": 4, "ok": 2, "failed": 1,
        "resumed": 1, "prompt_tokens": 3, "completion_tokens": 2, "elapsed_s": 3.0,
    }  # fmt: skip
    assert first["done"] == 1, "an event that was sent does not change"


def test_a_results_event_is_plain() -> None:
    event = result_event("ask", Result("k", 5, item="x", error=PromptError("no field", index=5)))
    assert event == {
        "type": "result", "node": "ask", "index": 5, "key": "k", "ok": False, "value": None,
        "error": "item 5: no field", "resumed": False,
    }  # fmt: skip
