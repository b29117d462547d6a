"""What it costs to keep accounts: journal, prices, budget, progress and metrics, on and off.

Run it on an idle machine: `nox -s bench -- accounts`. Each measurement has a client process and a
server process of its own; rounds are interleaved. Two cases: a server that sets the pace (1,000
answers a second), and one that leaves it to the client's CPU.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks._measure import (
    alone,
    arguments,
    cpu_seconds,
    heading,
    median,
    raise_file_limit,
    say,
    served,
    table,
    verdict,
)

CASES = {
    "the server sets the pace: 500 in flight, 0.5 s": (500, 0.5, 20_000),
    "the client does: 128 in flight, 0.02 s": (128, 0.02, 40_000),
}
ON = {
    "off": (),
    "budget": ("budget",),
    "journal": ("journal",),
    "metrics": ("metrics",),
    "all": ("journal", "budget", "progress", "metrics"),
}
TARGET = 0.9


async def measure(url: str, on: tuple[str, ...], items: int, wide: int) -> dict[str, float]:
    """Return items a second and CPU seconds an item of one map."""
    from scaleinfer import Budget, OpenAIBackend, parallel_map
    from scaleinfer.observe import Telemetry, configure
    from scaleinfer.prices import Price, Prices

    backend = OpenAIBackend(url, model="sim-model", api_key="any")
    options: dict[str, Any] = {"progress": "log" if "progress" in on else "none"}
    if "budget" in on:
        options["prices"] = Prices({"sim-model": Price(prompt=0.1, completion=0.4)})
        options["budget"] = Budget(usd=1_000, tokens=10**10)
    if "metrics" in on:
        configure(Telemetry(metrics=True, prometheus=0, spans=0.01))

    async def run(count: int, folder: str) -> None:
        if "journal" in on:
            options["journal"] = Path(folder) / f"{count}.db"
        results = await parallel_map(
            (f"Is substance {number} soluble? Answer in a word." for number in range(count)),
            "{item}",
            backend=backend,
            concurrency=wide,
            sampling={"max_tokens": 50},
            **options,
        )
        assert len(results.ok) == count

    with tempfile.TemporaryDirectory() as folder:
        async with backend:
            await run(wide, folder)
            began, busy = time.perf_counter(), cpu_seconds()
            await run(items, folder)
            elapsed, busy = time.perf_counter() - began, cpu_seconds() - busy
    configure(None)
    return {"rate": items / elapsed, "cpu": busy / items}


def measured(wide: int, latency: float, items: int, rounds: int) -> dict[str, dict[str, float]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ON}
    for number in range(rounds):
        for name in ON:
            say(f"round {number + 1}: {name}")
            with served(latency=latency) as server:
                runs[name].append(
                    alone("bench_accounts", url=server.base_url, on=name, items=items, wide=wide)
                )
    return {
        name: {key: median(run[key] for run in some) for key in ("rate", "cpu")}
        for name, some in runs.items()
    }


def main() -> None:
    parser = arguments(__doc__)
    for name in ("url", "on"):
        parser.add_argument(f"--{name}")
    for name in ("items", "wide"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    if options.url:
        raise_file_limit()
        job = measure(options.url, ON[options.on], options.items, options.wide)
        print(json.dumps(asyncio.run(job)), flush=True)
        return
    rounds = 1 if options.quick else options.rounds
    heading(f"Accounts on and off, medians of {rounds}")
    for title, (wide, latency, items) in CASES.items():
        found = measured(wide, latency, items // 4 if options.quick else items, rounds)
        off = found["off"]["rate"]
        print(f"\n### {title}\n")
        table(
            ["on", "items/s", "over off", "target", "reached", "CPU us/item"],
            [
                [name, f"{one['rate']:,.0f}", f"{one['rate'] / off:.2f}",
                 f">= {TARGET}" if name == "all" else "",
                 verdict(one["rate"] / off, least=TARGET) if name == "all" else "",
                 f"{one['cpu'] * 1e6:,.0f}"]
                for name, one in found.items()
            ],
        )  # fmt: skip
    sys.stdout.flush()


if __name__ == "__main__":
    main()
