"""A client that streams an endless map for some seconds, in a process of its own.

`python -m tests.benchmarks._streaming --url URL --seconds 60`. Run by bench_limiter; what came
of it is in the server's ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from contextlib import aclosing, suppress
from typing import Any

from tests.benchmarks._measure import cpu_seconds, raise_file_limit

from scaleinfer import OpenAIBackend, stream_map

FILLER = "x" * 70


async def stream(url: str, seconds: float, concurrency: Any, client: str) -> dict[str, float]:
    """Stream until the time is over; return what the client counted."""
    backend = OpenAIBackend(url, model="sim-model", api_key="", headers={"x-client": client})
    ok = lost = 0
    busy, began = cpu_seconds(), time.monotonic()
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(seconds),
            aclosing(
                stream_map(
                    itertools.count(),
                    lambda number: f"{client} {number} {FILLER}",
                    backend=backend,
                    concurrency=concurrency,
                    progress="none",
                )
            ) as results,
        ):
            async for result in results:
                ok += result.ok
                lost += not result.ok
    took = time.monotonic() - began
    return {"ok": ok, "lost": lost, "took": took, "cpu": (cpu_seconds() - busy) / took}


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--concurrency", default="auto")
    parser.add_argument("--client", default="one")
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    raise_file_limit()
    time.sleep(options.delay)
    concurrency = "auto" if options.concurrency == "auto" else int(options.concurrency)
    print(json.dumps(uvloop.run(
        stream(options.url, options.seconds, concurrency, options.client)
    )), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
