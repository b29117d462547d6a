"""Inputs that never end, raise, block or cannot be asked; streams that are left early."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import (
    Concurrency,
    OpenAIBackend,
    Permanent,
    Prompt,
    PromptError,
    Retry,
    parallel_map,
    stream_map,
)
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from scaleinfer import Result
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a server has no event for it
            await asyncio.sleep(0.005)


async def into(results: list[Result], stream: AsyncIterator[Result]) -> None:
    async for result in stream:
        results.append(result)  # noqa: PERF401 - what landed before it raised counts


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_an_endless_input_is_pulled_as_the_consumer_takes(
    kind: str, server: SimulatedServer
) -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            yield number

    async def slowly() -> AsyncIterator[int]:
        for number in endless():
            await asyncio.sleep(0)
            yield number

    items = endless() if kind == "plain" else slowly()
    taken = 0
    stream = stream_map(items, "{}", base_url=server.base_url, concurrency=4, **QUIET)
    async with aclosing(stream):
        async for _ in stream:
            taken += 1
            if taken == 100:
                break
        await asyncio.sleep(0.3)  # the consumer has stopped taking
        assert pulled - taken < 300
    await until(lambda: server.ledger.in_flight == 0)
    assert server.ledger.arrived <= pulled


@pytest.mark.parametrize("kind", ["generator", "async generator", "iterator"])
@pytest.mark.parametrize("at", [0, 1, 40])
async def test_a_raising_input_ends_the_run_with_what_landed(
    kind: str, at: int, server: SimulatedServer
) -> None:
    def broken() -> Iterator[int]:
        yield from range(at)
        raise LookupError("the file ends here")

    async def broken_too() -> AsyncIterator[int]:
        for number in broken():
            yield number

    class Broken:
        def __iter__(self) -> Iterator[int]:
            return broken()

    makes: dict[str, Callable[[], Any]] = {
        "generator": broken,
        "async generator": broken_too,
        "iterator": Broken,
    }
    make = makes[kind]
    landed: list[Result] = []
    options: dict[str, Any] = {"base_url": server.base_url, "concurrency": 8, **QUIET}
    with pytest.raises(LookupError, match="the file ends here") as caught:
        await into(landed, stream_map(make(), "{}", **options))
    assert f"after {at} items" in caught.value.__notes__[0]
    assert sorted(result.item for result in landed) == list(range(at))
    with pytest.raises(LookupError):
        await parallel_map(make(), "{}", **options)
    assert server.ledger.answered == 2 * at


async def test_an_input_that_blocks_does_not_lose_calls_in_flight() -> None:
    def blocking() -> Iterator[int]:
        for number in range(20):
            time.sleep(0.03)
            yield number

    with SimulatedServer(latency=0.01).in_thread() as server:
        results = await parallel_map(
            blocking(), "{}", base_url=server.base_url, retry=Retry(timeout=2.0), **QUIET
        )
        assert [result.item for result in results.ok] == list(range(20))
        assert server.ledger.arrived == 20


async def test_a_slow_async_input_does_not_wait_for_a_full_house(server: SimulatedServer) -> None:
    asked = asyncio.Event()

    async def trickle() -> AsyncIterator[int]:
        yield 0
        await asked.wait()  # would wait for ever if the first item waited for the second
        yield 1

    async with asyncio.timeout(10):
        async for result in stream_map(trickle(), "{}", base_url=server.base_url, **QUIET):
            assert result.ok
            asked.set()
    assert server.ledger.answered == 2


async def test_items_that_cannot_be_rendered_cost_themselves(server: SimulatedServer) -> None:
    def prompt(number: int) -> Any:
        match number % 5:
            case 1:
                raise ValueError("no smiles")
            case 2:
                return None
            case 3:
                return Prompt("x", completion=True, system="not allowed")
            case 4:
                return [{"role": "user", "content": object()}]
        return f"prompt {number}"

    results = await parallel_map(range(200), prompt, base_url=server.base_url, **QUIET)
    assert [result.ok for result in results] == [number % 5 == 0 for number in range(200)]
    assert results.stopped == ""
    assert results.stats.failed == 160
    assert server.ledger.arrived == 40
    for result in results.failed[:3]:
        assert isinstance(result.error, PromptError)
        assert str(result.error).startswith(f"item {result.index}: ")


async def test_prompts_beyond_the_limit_fail_alone_and_at_once() -> None:
    items = ["long " * 400 if number % 3 == 0 else f"item {number}" for number in range(90)]
    async with SimulatedServer(max_prompt_tokens=50) as server:
        results = await parallel_map(items, "{}", base_url=server.base_url, concurrency=4, **QUIET)
        assert [result.ok for result in results] == [number % 3 != 0 for number in range(90)]
        for result in results.failed:
            assert isinstance(result.error, Permanent)
            assert "Shorten the prompt" in str(result.error)
            assert result.attempts == 1
        assert server.ledger.arrived == 90


@pytest.mark.parametrize("ordered", [False, True])
async def test_leaving_a_stream_closes_its_connections(ordered: bool) -> None:
    def latency(view: RequestView) -> float:
        return 0.0 if int(view.prompt) == 0 else 60.0

    async with SimulatedServer(latency=latency) as server:
        stream = stream_map(
            itertools.count(),
            "{}",
            base_url=server.base_url,
            concurrency=16,
            ordered=ordered,
            **QUIET,
        )
        async with aclosing(stream):
            async for result in stream:
                assert result.item == 0
                await until(lambda: server.ledger.in_flight == 16)
                break
        await until(lambda: server.ledger.in_flight == 0)
        assert server.ledger.aborted == 16


async def test_an_exception_of_the_consumer_closes_its_connections() -> None:
    async with SimulatedServer(faults=[Fault.stall(match="1")]) as server:
        backend = OpenAIBackend(server.base_url)
        stream = stream_map(range(11), "{}", backend=backend, **QUIET)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - a stream is left from inside
            async with aclosing(stream):
                async for result in stream:
                    await until(lambda: server.ledger.in_flight == 2)
                    _ = 1 / (result.item * 0)
        await until(lambda: server.ledger.in_flight == 0)
        assert server.ledger.aborted == 2
        assert (await parallel_map(["x"], "{}", backend=backend, **QUIET)).stats.ok == 1


@pytest.mark.parametrize("items", [200, 2000])
async def test_the_search_for_the_best_limit_is_not_held_down_by_a_short_list(items: int) -> None:
    async with SimulatedServer(latency=0.02, ledger="counts") as server:
        bounds = Concurrency(start=4, max=200)
        results = await parallel_map(
            [f"item {number}" for number in range(items)],
            "{}",
            base_url=server.base_url,
            concurrency=bounds,
            **QUIET,
        )
        assert results.stats.ok == items
        assert server.ledger.peak_in_flight > 8
