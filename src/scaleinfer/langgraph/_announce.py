"""Says what a node's map does to those who listen: the graph's stream, its callbacks, its clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from langchain_core.runnables import RunnableConfig
    from langgraph.runtime import Runtime

    from scaleinfer.langgraph._events import ProgressEvent, ResultEvent

__all__ = ["PROGRESS", "Announcer"]

PROGRESS = "scaleinfer_progress"
"""Name of the custom event that callbacks get with a `ProgressEvent`."""


class Announcer:
    """Where a node's events go.

    Args:
        config: The node's.
        kinds: Types of the events that go to the stream.
    """

    def __init__(self, config: RunnableConfig, kinds: Iterable[str]) -> None:
        runtime = _runtime()
        self.results = "result" in kinds
        self._progress = "progress" in kinds
        self._write: Callable[[Any], None] | None = None
        self._alive: Callable[[], None] | None = None
        if runtime is not None:
            self._write = runtime.stream_writer
            # The first versions of LangGraph 1 have no idle timeouts.
            self._alive = getattr(runtime, "heartbeat", None)
        self._listened = config if _has_listeners(config) else None
        self._config = config

    def result(self, event: ResultEvent) -> None:
        """Tell of a result."""
        if self._write is not None:
            self._write(event)

    def alive(self) -> None:
        """Keep the node's idle timeout from striking."""
        if self._alive is not None:
            self._alive()

    async def progress(self, event: ProgressEvent) -> None:
        """Tell where the map stands."""
        if self._write is not None and self._progress:
            self._write(event)
        if self._listened is not None:
            from langchain_core.callbacks import adispatch_custom_event

            await adispatch_custom_event(PROGRESS, event, config=self._config)


def _runtime() -> Runtime[Any] | None:
    from langgraph.runtime import get_runtime

    try:
        return get_runtime()
    except (RuntimeError, KeyError):
        return None  # called outside a graph


def _has_listeners(config: RunnableConfig) -> bool:
    from langchain_core.callbacks import BaseCallbackManager

    callbacks = config.get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return False
    return any(not handler.ignore_custom_event for handler in callbacks.handlers)
