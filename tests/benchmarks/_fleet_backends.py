"""Adapters that the workers of a benchmark import by name."""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

from scaleinfer import Backend
from scaleinfer.backends import EndpointStatus
from scaleinfer.results import Completion, Usage

ANSWER = "x" * 200
_SECONDS = "SCALEINFER_BENCH_SECONDS"
_SLOW = "SCALEINFER_BENCH_SLOW"
_SLOWER = 20


class Noop(Backend):
    """Answers at once with 200 characters."""

    kind: ClassVar[str] = "noop"
    endpoint = "noop"
    model = "noop"
    adaptive = False
    usage = Usage(30, 50, 0, 1)

    async def complete(self, request: object, *, timeout: float | None = None) -> Completion:
        return Completion(ANSWER, "stop", self.usage, "noop")

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


class Paced(Noop):
    """Answers after a time; 20 times as long in the one process that gets to be the slow one.

    That is the first of those that share the file named in `SCALEINFER_BENCH_SLOW`.
    """

    kind: ClassVar[str] = "paced"

    def __init__(self) -> None:
        self.seconds = float(os.environ[_SECONDS])
        marker = os.environ.get(_SLOW)
        if marker:
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            self.seconds *= _SLOWER
            self.model = "slow"

    async def complete(self, request: object, *, timeout: float | None = None) -> Completion:
        await asyncio.sleep(self.seconds)
        return Completion(ANSWER, "stop", self.usage, self.model)


def noop() -> Noop:
    """Return an adapter that answers at once."""
    return Noop()


def paced() -> Paced:
    """Return an adapter that takes as long as the environment says."""
    return Paced()
