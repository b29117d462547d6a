"""FIRST's limits: how close a map comes to them, and how often it is told: `nox -s bench -- first`.

A simulated gateway with the real one's numbers (10 requests a second, 60,000 tokens a minute in
fixed windows that are charged after the answer), asked by one process, or by two of the same user;
and one without these, with one and with four instances of a model behind it. Each case is a
process of its own.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.benchmarks._measure import (
    alone,
    arguments,
    finished,
    heading,
    median,
    say,
    started,
    table,
    verdict,
)

from scaleinfer import parallel_map
from scaleinfer._loop import run
from scaleinfer.backends import FirstBackend, FirstLimits
from scaleinfer.testing import FirstCluster, FirstModel, SimulatedFirst

MODEL = "openai/gpt-oss-120b"
STEADY_AFTER = 10.0
REQUESTS_A_SECOND, TOKENS_A_SECOND = 10.0, 1000.0
LATENCY = (3.0, 1.0)
CASES = {
    # Items, tokens of an answer.
    "requests": (2000, 10),
    "tokens": (600, 300),
    "processes": (2000, 10),
}
PROCESSES = 2
INSTANCES = 4
PLACES, SECONDS_A_PLACE = 16, 30
"""Requests that an instance answers at once, and how many one after the other."""


async def measured(case: str, items: int) -> dict[str, Any]:
    """Map over the gateway, both on one loop; return what the gateway saw.

    What else the machine does then delays both alike, as no network does.
    """
    async with gateway(case) as first:
        began = time.monotonic()
        ok = await asked(first.base_url, items)
        elapsed = time.monotonic() - began
    return {"ok": ok} | seen(first, case, items, elapsed)


def measured_processes(items: int) -> dict[str, Any]:
    """Have two processes of one user map over the gateway; return what that saw."""
    with gateway("processes").in_thread() as first:
        each: dict[str, Any] = {"items": items // PROCESSES, "url": first.base_url, "alone_": 1}
        clients = [started("bench_first", case="processes", **each) for _ in range(PROCESSES)]
        told = [finished(client) for client in clients]
    for one in told:
        if "failed" in one:
            return one
    times = [(record.arrived, record.finished or 0.0) for record in first.ledger.requests]
    elapsed = max(end for _, end in times) - min(begin for begin, _ in times)
    return {"ok": sum(one["ok"] for one in told)} | seen(first, "processes", items, elapsed)


async def measured_instances(count: int) -> dict[str, Any]:
    """Map over so many instances of a model, without limits of the gateway; return the rate."""
    model = FirstModel(name=MODEL, tokens_per_minute=1e9, tokens_per_minute_per_user=1e9)
    items = count * PLACES * SECONDS_A_PLACE
    async with SimulatedFirst(
        [FirstCluster(name="sophia", models=(model,))],
        latency=(1.0, 0.3), slots=count * PLACES, requests_per_second=10_000,
    ) as first:  # fmt: skip
        began = time.monotonic()
        ok = await asked(first.base_url, items, FirstLimits(requests_per_second=10_000))
        return {"ok": ok, "items": items, "rate": items / (time.monotonic() - began)}


def gateway(case: str) -> SimulatedFirst:
    """Return the gateway with its real limits."""
    clusters = [FirstCluster(name="sophia", models=(FirstModel(name=MODEL),))]
    return SimulatedFirst(clusters, latency=LATENCY, answer_tokens=CASES[case][1], phase_s=20.0)


async def asked(url: str, items: int, limits: FirstLimits | None = None) -> int:
    """Map over the gateway; return how many items were answered."""
    backend = FirstBackend("sophia/vllm", model=MODEL, base_url=url, token="any", limits=limits)
    results = await parallel_map(
        range(items), "Is {} a prime number?", backend=backend, progress="none"
    )
    return len(results.ok)


def seen(first: SimulatedFirst, case: str, items: int, elapsed: float) -> dict[str, Any]:
    """Return what the gateway saw of a case."""
    ledger = first.ledger
    per_second = REQUESTS_A_SECOND
    if case == "tokens":
        each = (ledger.prompt_tokens + ledger.completion_tokens) / ledger.answered
        per_second = min(per_second, TOKENS_A_SECOND / each)
    # The last answers take as long as any, whatever the limits.
    return {
        "elapsed": elapsed,
        "share": items / per_second / elapsed,
        "refused": ledger.rejected_share(STEADY_AFTER),
        "refusals": ledger.statistics()["by_status"].get(429, 0),
    }


def rows_of_limits(options: Any) -> list[list[str]]:
    """Measure the cases with limits; return the table's rows."""
    rows = []
    for case in [options.case] if options.case else CASES:
        items = options.items or (CASES[case][0] // (4 if options.quick else 1))
        runs = []
        for number in range(options.rounds):
            say(f"{case}, {items:,} items, round {number + 1}")
            whole = case == "processes"
            runs.append(
                measured_processes(items) if whole
                else alone("bench_first", case=case, items=items, alone_=1)
            )  # fmt: skip
            if "failed" in runs[-1]:
                raise SystemExit(runs[-1]["failed"])
            say(f"  {runs[-1]}")
        share = median(run["share"] for run in runs)
        refused = max(run["refused"] for run in runs)
        rows.append([f"{case}: share of the limit", ">= 0.95", f"{share:.3f}",
                     verdict(share, least=0.95)])  # fmt: skip
        rows.append([f"{case}: 429 after {STEADY_AFTER:.0f} s", "0", f"{refused:.4f}",
                     verdict(refused, most=0.0)])  # fmt: skip
        if any(run["ok"] < items for run in runs):
            raise SystemExit("items failed")
    return rows


def row_of_instances(rounds: int) -> list[str]:
    """Measure one and several instances; return the table's row."""
    ratios = []
    for number in range(rounds):
        rates = []
        for count in (1, INSTANCES):
            say(f"{count} instances, round {number + 1}")
            told = alone("bench_first", instances=count)
            if "failed" in told or told["ok"] < told["items"]:
                raise SystemExit(told.get("failed", "items failed"))
            say(f"  {told}")
            rates.append(told["rate"])
        ratios.append(rates[1] / rates[0])
    ratio = median(ratios)
    name = f"{INSTANCES} instances over one: throughput"
    return [name, ">= 3.8", f"{ratio:.2f}", verdict(ratio, least=3.8)]


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--case", choices=[*CASES, "instances"])
    parser.add_argument("--items", type=int)
    parser.add_argument("--alone-", type=int, dest="alone")
    parser.add_argument("--url")
    parser.add_argument("--instances", type=int)
    options = parser.parse_args()
    if options.instances:
        print(json.dumps(run(measured_instances(options.instances))), flush=True)
        return
    if options.url:
        print(json.dumps({"ok": run(asked(options.url, options.items))}), flush=True)
        return
    if options.alone:
        print(json.dumps(run(measured(options.case, options.items))), flush=True)
        return
    heading("FIRST's limits")
    rows = [] if options.case == "instances" else rows_of_limits(options)
    if options.case in (None, "instances"):
        rows.append(row_of_instances(options.rounds))
    table(["measure", "target", "measured", "reached"], rows)


if __name__ == "__main__":
    main()
