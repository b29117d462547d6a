"""A broker, and stations that talk to it over a line that loses what it is told to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from scaleinfer import Backend, Retry
from scaleinfer.backends import EndpointStatus
from scaleinfer.fleet._messages import pack, unpack
from scaleinfer.fleet._station import Station
from scaleinfer.fleet._status import WorkerFacts
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.fleet._broker import Broker

__all__ = ["Echo", "asked", "exchange", "settled", "station"]

SAMPLING = Sampling(temperature=0.5)


class Echo(Backend):
    """Answers what it is asked; says first what `before` raises."""

    kind: ClassVar[str] = "echo"
    endpoint = "echo"
    model = "echo"
    adaptive = False

    def __init__(self, *, places: int = 4, before: Callable[[str], None] | None = None) -> None:
        self.concurrency = places
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self._before = before

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        assert request.messages is not None
        word = str(request.messages[0]["content"])
        if self._before is not None:
            self._before(word)
        return Completion(word, "stop", Usage(1, 1, 0, 1), "echo")

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


def asked(word: str) -> Request:
    return Request([{"role": "user", "content": word}], sampling=SAMPLING)


def station(name: str, backend: Backend | None = None, *, secret: str | None = None) -> Station:
    facts = WorkerFacts(node="n1", pid=1, version="test")
    made = Station(name, facts, retry=Retry(initial=0.0, attempts=1), secret=secret)
    if backend is not None:
        made.serve([backend])
    return made


async def settled(turns: int = 12) -> None:
    """Let everything run that does not wait for something else."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def exchange(
    broker: Broker, worker: Station, *, arrives: bool = True, replied: bool = True
) -> dict[str, Any]:
    """Send a worker's message and its reply, as far as the line holds; return the reply."""
    text = pack(worker.message())
    reply: dict[str, Any] = unpack(broker.message(text)) if arrives else {}
    if arrives and replied:
        worker.taken(reply)
    else:
        worker.lost()
    await settled()
    return reply
