"""`RunObserver`: everything that watches one run."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from scaleinfer.observe._record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer.observe._record import Place
    from scaleinfer.observe._sinks import Sink
    from scaleinfer.observe._snapshot import Snapshot
    from scaleinfer.requests import Request
    from scaleinfer.results import Attempt

__all__ = ["RunObserver"]

_COST_OF_LOOKING = 100.0


class RunObserver:
    """Told of a run as it goes on; keeps its record and tells the sinks.

    A sink that fails is left out from then on and said so in the log: what watches a run must
    not end it.

    Args:
        sinks: What else is told.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._record = RunRecord(time.time())
        self._ended: list[Attempt] = []
        self._began = time.monotonic()
        self._sinks = list(sinks)
        self._due = 0.0

    @property
    def record(self) -> RunRecord:
        """What happened when."""
        if self._ended:
            self._record.attempted(*self._ended)
            self._ended.clear()
        return self._record

    def watch(self, index: int, key: str, request: Request) -> Callable[[Attempt], None]:
        """Return what is to be told of every call that is made for a request."""
        if not self._sinks:
            return self._ended.append  # on the path of every call, so it does no more
        return partial(self._attempted, index, key, request)

    def tick(self, snapshot: Snapshot, look: Callable[[], Sequence[Place]]) -> None:
        """Take note of where the run stands.

        Args:
            snapshot: The run.
            look: Returns where limiters stand. With thousands of endpoints that takes time, so
                it is called less often.
        """
        began = time.monotonic()
        places: Sequence[Place] = ()
        record = self.record
        if began >= self._due:
            places = look()
            record.limits(began - self._began, places)
            took = time.monotonic() - began
            self._due = began + _COST_OF_LOOKING * took
        for sink in self._sinks:
            self._tell(sink, partial(sink.tick, snapshot, places))

    def close(self, snapshot: Snapshot, stopped: str = "") -> None:
        """The run has ended."""
        for sink in self._sinks:
            self._tell(sink, partial(sink.close, snapshot, stopped))
        self._sinks = []

    def _attempted(self, index: int, key: str, request: Request, attempt: Attempt) -> None:
        self._ended.append(attempt)
        for sink in self._sinks:
            try:
                sink.attempted(index, key, request, attempt)
            except Exception:
                self._drop(sink)

    def _tell(self, sink: Sink, word: Callable[[], None]) -> None:
        try:
            word()
        except Exception:
            self._drop(sink)

    def _drop(self, sink: Sink) -> None:
        self._sinks = [one for one in self._sinks if one is not sink]
        logging.getLogger("scaleinfer").exception(
            "telemetry (%s) failed and is off for the rest of the run", type(sink).__name__
        )
