"""The last 1 % of a run with and without hedging: `nox -s bench -- hedging`.

1.5 % of the calls take 20 times as long as the others (0.08 to 0.12 s), whichever copy it is.
"""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from typing import Any

from tests.benchmarks._load import heavy_tailed
from tests.benchmarks._measure import (
    alone,
    arguments,
    heading,
    median,
    raise_file_limit,
    say,
    served,
    table,
    verdict,
)

from scaleinfer import OpenAIBackend, stream_map
from scaleinfer.engine import Dispatch


async def client(url: str, items: int, salt: int, *, hedging: bool) -> dict[str, Any]:
    """Stream a list; return when it was done, and when 99 % of it was."""
    began = time.perf_counter()
    times = []
    async with aclosing(
        stream_map(
            range(items),
            lambda number: f"run {salt}, item {number}",
            backend=OpenAIBackend(url, model="sim-model", api_key=""),
            concurrency=64,
            dispatch=Dispatch(hedging=hedging),
            progress="none",
        )
    ) as results:
        async for result in results:
            assert result.ok, result.error
            times.append(time.perf_counter() - began)
    assert len(times) == items
    return {"tail": times[-1] - times[items * 99 // 100 - 1], "whole": times[-1]}


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--url")
    parser.add_argument("--salt", type=int)
    parser.add_argument("--hedging", type=int)
    options = parser.parse_args()
    if options.url:
        import uvloop

        raise_file_limit()
        job = client(options.url, options.items, options.salt, hedging=bool(options.hedging))
        print(json.dumps(uvloop.run(job)), flush=True)
        return
    if options.quick:
        options.rounds = 3
    heading("Hedging")
    print(f"{options.items:,} items, 64 in flight, medians of {options.rounds}.\n")
    runs: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for salt in range(options.rounds):
        for hedging, found in runs.items():
            with served(latency=heavy_tailed) as server:
                run = alone("bench_hedging", url=server.base_url, items=options.items, salt=salt,
                            hedging=hedging)  # fmt: skip
                if "failed" in run:
                    raise SystemExit(run["failed"])
                run["extra"] = server.statistics()["arrived"] / options.items - 1
            say(f"round {salt + 1}, hedging {hedging}: {run}")
            found.append(run)
    tails = {hedging: median(run["tail"] for run in found) for hedging, found in runs.items()}
    rows = []
    for hedging, found in runs.items():
        extra = median(run["extra"] for run in found)
        over = tails[hedging] / tails[0]
        rows.append(
            ["hedging" if hedging else "without", f"{tails[hedging]:.2f}",
             "<= 0.5" if hedging else "", f"{over:.2f}",
             verdict(over, most=0.5) if hedging else "", "<= 3 %" if hedging else "",
             f"{extra:.2%}", verdict(extra, most=0.03) if hedging else "",
             f"{median(run['whole'] for run in found):.1f}"]
        )  # fmt: skip
    table(
        ["map", "last 1 % (s)", "target", "over without", "reached", "target", "extra calls",
         "reached", "whole run (s)"], rows
    )  # fmt: skip


if __name__ == "__main__":
    main()
