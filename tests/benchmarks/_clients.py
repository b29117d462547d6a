"""One client in this process: asks a server for a number of answers and prints what it took.

`python -m tests.benchmarks._clients --only NAME --url URL --wide N --items N`. Run by
bench_throughput. Every client builds its bodies and parses the answers, as anybody must.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any, TypeAlias

import orjson
from tests.benchmarks._measure import cpu_seconds, raise_file_limit

One: TypeAlias = Callable[[int], Awaitable[str]]
Ask: TypeAlias = Callable[[int], Awaitable[None]]
"""Ask for so many answers; return when all are there."""

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer " + "k" * 40}
FILLER = "x" * 70
MODEL = "sim-model"


def prompt(number: int) -> str:
    return f"{number} {FILLER}"


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt(number)}]


def body(number: int) -> bytes:
    return orjson.dumps({"model": MODEL, "messages": messages(number)})


def text(answer: bytes) -> str:
    return str(orjson.loads(answer)["choices"][0]["message"]["content"])


def in_slots(one: One, wide: int) -> Ask:
    """Slots that pull numbers: the least that a client can do."""

    async def ask(count: int) -> None:
        numbers = iter(range(count))

        async def slot() -> None:
            for number in numbers:
                assert await one(number)

        await asyncio.gather(*(slot() for _ in range(wide)))

    return ask


def gathered(one: One, wide: int) -> Ask:
    """`asyncio.gather` over everything, with a semaphore: what most scripts do."""

    async def ask(count: int) -> None:
        places = asyncio.Semaphore(wide)

        async def placed(number: int) -> str:
            async with places:
                return await one(number)

        assert all(await asyncio.gather(*map(placed, range(count))))

    return ask


@asynccontextmanager
async def direct(url: str, wide: int) -> AsyncIterator[Ask]:
    from scaleinfer.backends._wire import open_wire

    wire = open_wire(url, kind="direct")
    address = f"{url}/chat/completions"

    async def one(number: int) -> str:
        return text((await wire.post(address, body(number), HEADERS, 600)).body)

    try:
        yield in_slots(one, wide)
    finally:
        await wire.aclose()


@asynccontextmanager
async def pyreqwest(url: str, wide: int) -> AsyncIterator[Ask]:
    from datetime import timedelta

    builder: Any = import_module("pyreqwest.client").ClientBuilder().no_proxy()
    builder = builder.follow_redirects(False).default_headers(HEADERS)
    client = builder.timeout(timedelta(seconds=600)).build()
    address = f"{url}/chat/completions"

    async def one(number: int) -> str:
        response = await client.post(address).body_bytes(body(number)).build().send()
        return text(bytes(await response.bytes()))

    try:
        yield in_slots(one, wide)
    finally:
        await client.close()


@asynccontextmanager
async def aiohttp_gather(url: str, wide: int) -> AsyncIterator[Ask]:
    import aiohttp

    address = f"{url}/chat/completions"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def one(number: int) -> str:
            async with session.post(address, data=body(number)) as response:
                return text(await response.read())

        yield gathered(one, wide)


@asynccontextmanager
async def mapped(url: str, wide: int, *, journal: bool) -> AsyncIterator[Ask]:
    from scaleinfer import OpenAIBackend, parallel_map

    with tempfile.TemporaryDirectory() as folder:
        async with OpenAIBackend(url, model=MODEL, api_key="k" * 40) as backend:
            runs = 0

            async def ask(count: int) -> None:
                nonlocal runs
                runs += 1
                results = await parallel_map(
                    range(count),
                    prompt,
                    backend=backend,
                    concurrency=wide,
                    journal=f"{folder}/{runs}.db" if journal else None,
                    progress="none",
                )
                assert len(results.ok) == count, results.failed[:1]

            yield ask


@asynccontextmanager
async def openai(url: str, wide: int, *, over_aiohttp: bool) -> AsyncIterator[Ask]:
    from openai import AsyncOpenAI, DefaultAioHttpClient

    client: Any = AsyncOpenAI(
        base_url=url,
        api_key="any",
        max_retries=0,
        timeout=600,
        http_client=DefaultAioHttpClient() if over_aiohttp else None,
    )
    async with client:

        async def one(number: int) -> str:
            answer = await client.chat.completions.create(model=MODEL, messages=messages(number))
            return str(answer.choices[0].message.content)

        yield gathered(one, wide)


@asynccontextmanager
async def litellm(url: str, wide: int) -> AsyncIterator[Ask]:
    # Without it the import asks GitHub for prices.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    package: Any = import_module("litellm")

    async def one(number: int) -> str:
        answer = await package.acompletion(
            model=f"openai/{MODEL}", api_base=url, api_key="any", messages=messages(number)
        )
        return str(answer.choices[0].message.content)

    yield gathered(one, wide)


@asynccontextmanager
async def langchain(url: str, wide: int) -> AsyncIterator[Ask]:
    package: Any = import_module("langchain_openai")
    model = package.ChatOpenAI(model=MODEL, base_url=url, api_key="any", max_retries=0)

    async def ask(count: int) -> None:
        answers = await model.abatch(
            [prompt(number) for number in range(count)], config={"max_concurrency": wide}
        )
        assert all(answer.content for answer in answers)

    yield ask


@asynccontextmanager
async def inspect_ai(url: str, wide: int) -> AsyncIterator[Ask]:
    package: Any = import_module("inspect_ai")
    dataset: Any = import_module("inspect_ai.dataset")
    solver: Any = import_module("inspect_ai.solver")
    get_model: Any = import_module("inspect_ai.model").get_model
    model = get_model(f"openai/{MODEL}", base_url=url, api_key="any", responses_api=False)

    with tempfile.TemporaryDirectory() as folder:

        async def ask(count: int) -> None:
            samples = [dataset.Sample(input=prompt(number)) for number in range(count)]
            logs = await package.eval_async(
                package.Task(dataset=dataset.MemoryDataset(samples), solver=solver.generate()),
                model=model,
                log_dir=folder,
                max_connections=wide,
                max_samples=wide,
            )
            assert logs[0].status == "success", logs[0].error

        yield ask


CLIENTS: dict[str, Callable[[str, int], AbstractAsyncContextManager[Ask]]] = {
    "wire": direct,
    "pyreqwest": pyreqwest,
    "aiohttp": aiohttp_gather,
    "map": lambda url, wide: mapped(url, wide, journal=False),
    "map+journal": lambda url, wide: mapped(url, wide, journal=True),
    "openai": lambda url, wide: openai(url, wide, over_aiohttp=False),
    "openai-aiohttp": lambda url, wide: openai(url, wide, over_aiohttp=True),
    "litellm": litellm,
    "langchain": langchain,
    "inspect_ai": inspect_ai,
}


async def measure(name: str, url: str, wide: int, items: int, warm: int) -> dict[str, float]:
    """Return items a second, CPU seconds an item and peak memory; connections made before."""
    async with CLIENTS[name](url, wide) as ask:
        await ask(warm)
        began, busy = time.perf_counter(), cpu_seconds()
        await ask(items)
        elapsed, busy = time.perf_counter() - began, cpu_seconds() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rate": items / elapsed, "cpu": busy / items, "rss": peak * 1024 / 1e6}


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=CLIENTS, required=True)
    parser.add_argument("--url", required=True)
    for name in ("wide", "items", "warm"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    raise_file_limit()
    job = measure(options.only, options.url, options.wide, options.items, options.warm)
    print(json.dumps(uvloop.run(job)), flush=True)


if __name__ == "__main__":
    main()
