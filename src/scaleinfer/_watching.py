"""What watches a run from outside of it: its record, telemetry, the status file of its journal."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scaleinfer.observe import (
    Place,
    RunFacts,
    RunObserver,
    open_sinks,
    remove_status,
    write_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scaleinfer.engine import Engine
    from scaleinfer.journal import Journal
    from scaleinfer.observe import RunRecord, Snapshot

__all__ = ["ReportFacts", "Watching", "phase_of", "wait_in_words"]

_STATUS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report says beyond results and statistics.

    Attributes:
        record: What happened when.
        manifest: Returns what is known of the program.
    """

    record: RunRecord
    manifest: Callable[[], Mapping[str, Any]]


def phase_of(engine: Engine) -> str:
    """Return what a run is doing, in plain words."""
    if engine.in_flight or not (engine.queued or engine.waiting):
        return "running"
    if not engine.queued:
        return "waiting to try again"
    endpoints = [one for one in engine.endpoints() if not one.left]
    if not endpoints:
        return "waiting for an endpoint"
    if all(one.breaker.state == "open" for one in endpoints):
        more = f" and {len(endpoints) - 1:,} more" if len(endpoints) > 1 else ""
        return f"waiting for {endpoints[0].name}{more} to answer again"
    if any(one.rate.requests_per_minute or one.rate.tokens_per_minute for one in endpoints):
        return "waiting for the rate limit"
    return "waiting for a place at an endpoint"


def wait_in_words(waits: Sequence[str]) -> str:
    """Return what adapters wait for, as in `waiting for sophia: queued`."""
    words = dict.fromkeys(f"waiting for {one}" if ": " in one else one for one in waits)
    return "; ".join(words)


class Watching:
    """Tells observers where a run stands, as it goes on.

    Args:
        engine: Makes the run's calls.
        journal: Its journal, if it has one.
        name: The run's name.
        provider: Kind of its first backend.
        model: Model it asks.
        items: Items there are, if that is known.
        quotes: False if nothing may be told that quotes a prompt.

    Attributes:
        observer: Is told of every call.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal | None,
        *,
        name: str,
        provider: str,
        model: str | None,
        items: int | None,
        quotes: bool = True,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._due = 0.0
        self._writing: asyncio.Future[None] | None = None
        facts = RunFacts(
            secrets.token_hex(8),
            name,
            provider,
            model,
            None if journal is None else journal.run,
            items,
        )
        self._quotes = quotes
        self.observer = RunObserver(open_sinks(facts, quotes=quotes))

    def tick(self, snapshot: Snapshot) -> None:
        """Take note of where the run stands, and write it down once a second."""
        self.observer.tick(snapshot, self._places)
        journal, now = self._journal, time.monotonic()
        if journal is None or now < self._due:
            return
        if self._writing is not None and not self._writing.done():
            return  # a slow file system must not hold anything up
        self._due = now + _STATUS_EVERY_S
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(
            None, write_status, journal.path, self._publishable(snapshot), journal.run
        )

    async def close(self, snapshot: Snapshot, stopped: str) -> None:
        """The run has ended."""
        self.observer.close(snapshot, stopped)
        if self._journal is None or self._writing is None:
            return
        await asyncio.wait([self._writing])
        remove_status(self._journal.path)
        self._writing = None

    def _places(self) -> list[Place]:
        return [
            Place(one.name, one.limiter.limit, one.limiter.reason)
            for one in self._engine.endpoints()
            if not one.left
        ]

    def _publishable(self, snapshot: Snapshot) -> Snapshot:
        if snapshot.last_error is None:
            return snapshot
        if not self._quotes:
            return replace(snapshot, last_error=None)
        from scaleinfer.journal import redact

        return replace(snapshot, last_error=redact(snapshot.last_error))
