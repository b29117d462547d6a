"""Streams items in this process and prints how its memory grew.

`python -m tests.benchmarks._memory --items N [--url URL] [--ordered=1] [--journal=1]`. Run by
bench_stream_memory. Without a URL the answers come from a backend in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar

from tests.benchmarks._measure import cpu_seconds, raise_file_limit, rss_mb

from scaleinfer import Backend, OpenAIBackend, stream_map
from scaleinfer.backends import EndpointStatus
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.requests import Request

SETTLED = 20_000
EVERY = 5000
FILLER = "x" * 70


class Memory(Backend):
    """Answers from memory, every hundredth call late, so that results come out of order."""

    kind: ClassVar[str] = "memory"
    endpoint = "memory"
    model = "memory"

    def __init__(self) -> None:
        self._calls = 0

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        self._calls += 1
        await asyncio.sleep(0.02 if self._calls % 100 == 0 else 0)
        assert request.messages is not None
        return Completion("echo: " + str(request.messages[0]["content"]), "stop", Usage(20, 20))

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="in memory")


def numbers(items: int) -> Iterator[int]:
    """A generator: its length is unknown to the map."""
    yield from range(items)


async def stream(options: argparse.Namespace, journal: str | None) -> dict[str, Any]:
    """Stream everything; sample memory from `SETTLED` items on."""
    backend = OpenAIBackend(options.url, model="sim-model") if options.url else Memory()
    done, base, most = 0, 0.0, 0.0
    last = -1
    began, busy = time.perf_counter(), cpu_seconds()
    async with aclosing(
        stream_map(
            numbers(options.items),
            lambda number: f"{number} {FILLER}",
            backend=backend,
            concurrency=options.wide,
            journal=journal,
            ordered=bool(options.ordered),
            progress="none",
        )
    ) as results:
        async for result in results:
            assert result.ok, result.error
            if options.ordered:
                assert result.index == last + 1
                last = result.index
            done += 1
            if done == SETTLED:
                base = rss_mb()
            elif done > SETTLED and done % EVERY == 0:
                most = max(most, rss_mb())
    assert done == options.items
    return {
        "base": base,
        "growth": most - base,
        "end": rss_mb() - base,
        "rate": done / (time.perf_counter() - began),
        "cpu": (cpu_seconds() - busy) / done,
    }


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--wide", type=int, default=256)
    parser.add_argument("--url", default="")
    parser.add_argument("--ordered", type=int, default=0)
    parser.add_argument("--journal", type=int, default=0)
    options = parser.parse_args()
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/journal.db" if options.journal else None
        print(json.dumps(uvloop.run(stream(options, path))), flush=True)


if __name__ == "__main__":
    main()
