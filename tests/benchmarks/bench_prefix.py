"""How much of the prompts the endpoint's prefix cache answers: `nox -s bench -- prefix`.

Papers, five questions about each, in random order. The caches hold a tenth of the papers in
all. The hit rate is the share of prompt tokens that came from a cache, by the servers' ledgers.
"""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from typing import Any

from tests.benchmarks._load import varied
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

QUESTIONS, PAPER_TOKENS, SLOTS = 5, 500, 64
ORDERS = ("defaults", "sorted offline", "as it arrives")


def prompts(papers: int, order: str) -> list[str]:
    """Return all prompts: each paper's text, then a question."""
    luck = random.Random(1)
    words = [f"{luck.getrandbits(60):015x} " for _ in range(2000)]
    texts = ["".join(luck.choices(words, k=PAPER_TOKENS // 4)) for _ in range(papers)]
    asked = [
        f"{text}\n\nQuestion {number}: what does the paper say about topic {number}?"
        for text in texts
        for number in range(QUESTIONS)
    ]
    if order != "sorted offline":
        luck.shuffle(asked)
    return asked


async def client(urls: list[str], papers: int, order: str, concurrency: str) -> dict[str, Any]:
    """Map over all of them; return the seconds it took."""
    items = prompts(papers, order)
    results = await parallel_map(
        items,
        lambda text: text,
        backend=[OpenAIBackend(url, model="sim-model", api_key="") for url in urls],
        concurrency="auto" if concurrency == "auto" else int(concurrency),
        dispatch=Dispatch() if order == "defaults" else Dispatch(prefix_window=0),
        progress="none",
    )
    assert len(results.ok) == len(items), results.failed[:1]
    return {"elapsed": results.stats.elapsed_s}


def measured(order: str, endpoints: int, concurrency: str, papers: int) -> dict[str, Any]:
    batching = Batching(
        slots=SLOTS // endpoints,
        step_s=0.005,
        prefill_tokens_per_s=60_000 / endpoints,
        prefix_cache_tokens=papers * PAPER_TOKENS // 10 // endpoints,
    )
    with ExitStack() as stack:
        servers = [
            stack.enter_context(served(answer=varied, batching=batching, load_report=False))
            for _ in range(endpoints)
        ]
        urls = ",".join(server.base_url for server in servers)
        run = alone("bench_prefix", urls=urls, papers=papers, order=order, concurrency=concurrency)
        seen = [server.statistics() for server in servers]
    if "failed" in run:
        raise SystemExit(run["failed"])
    asked = sum(one["prompt_tokens"] for one in seen)
    rate = sum(one["cached_tokens"] for one in seen) / asked
    say(f"  {rate:.3f} of {asked:,} prompt tokens, {run['elapsed']:.1f} s")
    return run | {"rate": rate}


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--papers", type=int, default=2000)
    parser.add_argument("--order", choices=ORDERS)
    parser.add_argument("--concurrency")
    parser.add_argument("--urls")
    options = parser.parse_args()
    if options.urls:
        import uvloop

        raise_file_limit()
        job = client(options.urls.split(","), options.papers, options.order, options.concurrency)
        print(json.dumps(uvloop.run(job)), flush=True)
        return
    if options.quick:
        options.rounds = 1
    items = options.papers * QUESTIONS
    heading("Prefix affinity")
    print(f"{items:,} items: {options.papers:,} papers of {PAPER_TOKENS} tokens, {QUESTIONS} "
          f"questions each. Medians of {options.rounds}.\n")  # fmt: skip
    rows = []
    best = 0.0
    for endpoints, concurrency in ((1, "64"), (1, "auto"), (4, "16")):
        runs: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
        for number in range(options.rounds):
            for order, found in runs.items():
                say(f"{endpoints} endpoints, {concurrency}, {order}, round {number + 1}")
                found.append(measured(order, endpoints, concurrency, options.papers))
        # Of one endpoint: what sorting brings where nothing has to be routed.
        best = best or median(run["rate"] for run in runs["sorted offline"])
        for order, found in runs.items():
            rate, took = (median(run[name] for run in found) for name in ("rate", "elapsed"))
            ours = order == "defaults"
            rows.append(
                [endpoints, concurrency, order, f"{rate:.3f}", ">= 0.9" if ours else "",
                 f"{rate / best:.3f}", verdict(rate / best, least=0.9) if ours else "",
                 f"{took:.1f}"]
            )  # fmt: skip
    table(
        ["endpoints", "concurrency", "order", "hit rate", "target",
         "over sorted offline, one endpoint", "reached", "seconds"], rows
    )  # fmt: skip


if __name__ == "__main__":
    main()
