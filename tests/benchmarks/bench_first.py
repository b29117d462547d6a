"""FIRST's limits: how close a map comes to them, and how often it is told: `nox -s bench -- first`.

A simulated gateway with the real one's numbers (10 requests a second, 60,000 tokens a minute in
fixed windows that are charged after the answer). Each case is a process of its own.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.benchmarks._measure import alone, arguments, heading, median, say, table, verdict

from scaleinfer import parallel_map
from scaleinfer._loop import run
from scaleinfer.backends import FirstBackend
from scaleinfer.testing import FirstCluster, FirstModel, SimulatedFirst

MODEL = "openai/gpt-oss-120b"
STEADY_AFTER = 10.0
REQUESTS_A_SECOND, TOKENS_A_SECOND = 10.0, 1000.0
LATENCY = (3.0, 1.0)
CASES = {
    # Items, tokens of an answer.
    "requests": (2000, 10),
    "tokens": (600, 300),
}


async def measured(case: str, items: int) -> dict[str, Any]:
    """Map over the gateway, both on one loop; return what the gateway saw.

    What else the machine does then delays both alike, as no network does.
    """
    clusters = [FirstCluster(name="sophia", models=(FirstModel(name=MODEL),))]
    answer_tokens = CASES[case][1]
    async with SimulatedFirst(
        clusters, latency=LATENCY, answer_tokens=answer_tokens, phase_s=20.0
    ) as first:
        backend = FirstBackend("sophia/vllm", model=MODEL, base_url=first.base_url, token="any")
        began = time.monotonic()
        results = await parallel_map(
            range(items), "Is {} a prime number?", backend=backend, progress="none"
        )
        measures: dict[str, Any] = {"elapsed": time.monotonic() - began, "ok": len(results.ok)}
    ledger = first.ledger
    per_second = REQUESTS_A_SECOND
    if case == "tokens":
        each = (ledger.prompt_tokens + ledger.completion_tokens) / ledger.answered
        per_second = min(per_second, TOKENS_A_SECOND / each)
    ceiling = items / per_second
    # The last answers take as long as any, whatever the limits.
    return measures | {
        "share": ceiling / measures["elapsed"],
        "refused": ledger.rejected_share(STEADY_AFTER),
        "refusals": ledger.statistics()["by_status"].get(429, 0),
    }


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--items", type=int)
    parser.add_argument("--alone-", type=int, dest="alone")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(run(measured(options.case, options.items))), flush=True)
        return
    heading("FIRST's limits")
    rows = []
    for case in [options.case] if options.case else CASES:
        items = options.items or (CASES[case][0] // (4 if options.quick else 1))
        runs = []
        for number in range(options.rounds):
            say(f"{case}, {items:,} items, round {number + 1}")
            runs.append(alone("bench_first", case=case, items=items, alone_=1))
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
    table(["measure", "target", "measured", "reached"], rows)


if __name__ == "__main__":
    main()
