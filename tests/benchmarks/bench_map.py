"""What `parallel_map` costs over the wire client alone, and what the journal costs on top.

Run it on an idle machine: `nox -s bench -- map`. The server is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import orjson

from scaleinfer import parallel_map
from scaleinfer.backends._wire import AiohttpWire
from scaleinfer.testing import SimulatedServer

FILLER = "x" * 70


async def raw(url: str, items: int, concurrency: int) -> float:
    """Return items a second of the wire client alone: no retries, no journal, no results."""
    wire = AiohttpWire(url)
    numbers = iter(range(items))

    async def slot() -> None:
        for number in numbers:
            message = {"role": "user", "content": f"{number} {FILLER}"}
            body = orjson.dumps({"model": "sim-model", "messages": [message]})
            response = await wire.post(
                f"{url}/chat/completions", body, {"Content-Type": "application/json"}, 600
            )
            orjson.loads(response.body)

    began = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    elapsed = time.perf_counter() - began
    await wire.aclose()
    return items / elapsed


async def mapped(url: str, items: int, concurrency: int, journal: str | None) -> float:
    """Return items a second of `parallel_map`."""
    began = time.perf_counter()
    results = await parallel_map(
        range(items),
        lambda number: f"{number} {FILLER}",
        base_url=url,
        concurrency=concurrency,
        journal=journal,
        progress="none",
    )
    elapsed = time.perf_counter() - began
    assert len(results.ok) == items
    return items / elapsed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"raw wire": [], "map": [], "map + journal": []}
    with (
        SimulatedServer(latency=options.latency, ledger="counts").in_process() as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        url, many, wide = server.base_url, options.items, options.concurrency
        asyncio.run(mapped(url, many // 10, wide, None))  # warms imports and the server up
        for number in range(options.rounds):
            journal = str(Path(folder) / f"{number}.db")
            rates["raw wire"].append(asyncio.run(raw(url, many, wide)))
            rates["map"].append(asyncio.run(mapped(url, many, wide, None)))
            rates["map + journal"].append(asyncio.run(mapped(url, many, wide, journal)))
    first = statistics.median(rates["raw wire"])
    print(f"{options.items} items, {options.concurrency} in flight, {options.latency} s answers")
    print("| what | items/s | over the wire alone |\n|---|---|---|")
    for name, measured in rates.items():
        middle = statistics.median(measured)
        print(f"| {name} | {middle:,.0f} | {middle / first:.2f} |")


if __name__ == "__main__":
    main()
