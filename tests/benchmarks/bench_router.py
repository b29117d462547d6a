"""Eight endpoints, one of them 20 times slower: `nox -s bench -- router`.

The ideal is all items over the sum of the endpoints' rates (slots / step time / mean tokens).
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from tests.benchmarks._load import MEAN_TOKENS, varied
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

from scaleinfer import OpenAIBackend, parallel_map
from scaleinfer.engine import Dispatch
from scaleinfer.testing import Batching

SLOTS, STEP, SLOWER, ENDPOINTS = 16, 0.005, 20, 8
FILLER = "x" * 70
CASES = {
    "defaults": ("auto", False),
    "defaults, hedging": ("auto", True),
    f"concurrency={SLOTS}": (SLOTS, False),
    f"concurrency={SLOTS}, hedging": (SLOTS, True),
}


async def client(urls: list[str], items: int, case: str) -> dict[str, Any]:
    """Map over all endpoints; return the makespan and what went where."""
    concurrency, hedging = CASES[case]
    results = await parallel_map(
        range(items),
        lambda number: f"{number} {FILLER}",
        backend=[OpenAIBackend(url, model="sim-model", api_key="") for url in urls],
        concurrency=concurrency,  # type: ignore[arg-type] # an int or "auto"
        dispatch=Dispatch(hedging=hedging),
        progress="none",
    )
    assert len(results.ok) == items, results.failed[:1]
    stats = results.stats
    return {
        "elapsed": stats.elapsed_s,
        "calls": stats.calls,
        "slow": stats.endpoints[0].calls,
        "limits": [use.limit for use in stats.endpoints],
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--case")
    parser.add_argument("--urls")
    options = parser.parse_args()
    if options.urls:
        import uvloop

        raise_file_limit()
        job = client(options.urls.split(","), options.items, options.case)
        print(json.dumps(uvloop.run(job)), flush=True)
        return
    if options.quick:
        options.rounds, options.items = 1, options.items // 2
    rate = SLOTS / STEP / MEAN_TOKENS
    ideal = options.items / (rate * (ENDPOINTS - 1) + rate / SLOWER)
    heading(f"One of {ENDPOINTS} endpoints {SLOWER} times slower")
    print(f"{options.items:,} items, ideally {ideal:.1f} s. Medians of {options.rounds}.\n")
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for number in range(options.rounds):
        for case, found in runs.items():
            say(f"{case}, round {number + 1}")
            with ExitStack() as stack:
                urls = []
                for place in range(ENDPOINTS):
                    batching = Batching(slots=SLOTS, step_s=STEP * (1 if place else SLOWER))
                    server = served(answer=varied, batching=batching, load_report=False)
                    urls.append(stack.enter_context(server).base_url)
                run = alone("bench_router", urls=",".join(urls), items=options.items, case=case)
            say(f"  {run}")
            if "failed" in run:
                raise SystemExit(run["failed"])
            found.append(run)
    rows = []
    for case, found in runs.items():
        over = median(run["elapsed"] for run in found) / ideal
        slow = median(run["slow"] for run in found)
        calls = median(run["calls"] for run in found) / options.items
        rows.append(
            [case, "<= 1.1", f"{over:.2f}", verdict(over, most=1.1), f"{slow:.0f}", f"{calls:.3f}"]
        )
    table(
        ["map", "target", "makespan over ideal", "reached", "calls at the slow one",
         "calls per item"], rows
    )  # fmt: skip


if __name__ == "__main__":
    main()
