"""A server goes down in the middle of a run: `nox -s bench -- outage`.

By default 60 s of a run of 5 minutes; `--scale 0.2` makes it a minute with 12 s. Calls are
counted by the client, because a refused connection reaches no server; throughput by the server.
"""

from __future__ import annotations

import json
import tempfile
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
from scaleinfer.testing import Batching, Change

SLOTS, STEP = 64, 0.01
RATE = SLOTS / STEP / MEAN_TOKENS
WINDOW = 10.0
FILLER = "x" * 70


async def client(url: str, items: int, journal: str) -> dict[str, Any]:
    """Map with the defaults; return what the client counted."""
    results = await parallel_map(
        range(items),
        lambda number: f"{number} {FILLER}",
        backend=OpenAIBackend(url, model="sim-model", api_key=""),
        journal=journal,
        progress="none",
    )
    stats = results.stats
    return {
        "ok": len(results.ok),
        "calls": stats.calls,
        "retries": stats.retries,
        "stopped": stats.stopped,
        "elapsed": stats.elapsed_s,
        "errors": sorted({type(result.error).__name__ for result in results.failed}),
    }


def measured(down: str, options: Any) -> dict[str, Any]:
    began, outage, whole = (seconds * options.scale for seconds in (120.0, 60.0, 300.0))
    # A dead endpoint is known by its refusals, a hanging one only by its timeouts.
    change = Change(at=began, until=began + outage, down=down)  # type: ignore[arg-type] # from the command line
    items = int(RATE * (whole - outage))
    batching = Batching(slots=SLOTS, step_s=STEP)
    with served(answer=varied, batching=batching, load_report=False, changes=[change]) as server:
        run = alone("bench_outage", client=server.base_url, items=items)
        ledger = server.ledger
    if "failed" in run:
        return run
    ended = began + outage
    answered = ledger.per_second()["answered"]
    before = rate_of(answered, began - 2 * WINDOW, began)
    after = rate_of(answered, ended + WINDOW, ended + 2 * WINDOW)
    say(f"  {run}; answered a second {answered}")
    return run | {"items": items, "before": before, "after": after}


def rate_of(answered: list[int], start: float, end: float) -> float:
    window = answered[max(0, int(start)) : int(end)]
    return sum(window) / len(window) if window else 0.0


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--down", default="refuse,503,hang", help="how it is down")
    parser.add_argument("--client")
    parser.add_argument("--items", type=int)
    options = parser.parse_args()
    if options.client:
        import uvloop

        raise_file_limit()
        with tempfile.TemporaryDirectory() as folder:
            job = client(options.client, options.items, f"{folder}/journal.db")
            print(json.dumps(uvloop.run(job)), flush=True)
        return
    if options.quick:
        options.scale = min(options.scale, 0.2)
    heading(f"An outage of {60 * options.scale:g} s in a run of {300 * options.scale:g} s")
    rows = []
    for down in options.down.split(","):
        runs = []
        for number in range(options.rounds):
            say(f"down: {down}, round {number + 1}")
            runs.append(measured(down, options))
        if failed := [run["failed"] for run in runs if "failed" in run]:
            rows.append([down, f"failed: {failed[0]}", *[""] * 7])
            continue
        calls = median(run["calls"] / run["items"] for run in runs)
        back = median(run["after"] / run["before"] for run in runs)
        lost = max(run["items"] - run["ok"] for run in runs)
        rows.append(
            [down, "<= 1.1", f"{calls:.3f}", verdict(calls, most=1.1), ">= 0.9", f"{back:.2f}",
             verdict(back, least=0.9), lost, runs[0]["stopped"] or ", ".join(runs[0]["errors"])]
        )  # fmt: skip
    table(
        ["down", "target", "calls per item", "reached", "target",
         "throughput 10 to 20 s after its end, over before", "reached", "items lost", "why"], rows
    )  # fmt: skip


if __name__ == "__main__":
    main()
