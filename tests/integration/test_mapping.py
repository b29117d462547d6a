"""The front door against a simulated server: inputs, prompts, answers, backends, loops."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pytest

from scaleinfer import (
    ConfigError,
    OpenAIBackend,
    PromptError,
    Result,
    Retry,
    map_sync,
    parallel_map,
    stream_map,
)
from scaleinfer.results import Usage
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

NAMES = [f"molecule {number}" for number in range(12)]
ECHOES = [f"echo: About {name}." for name in NAMES]
TEMPLATE = "About {}."
QUIET: dict[str, Any] = {"progress": False}


@dataclass
class Molecule:
    name: str


async def into(landed: list[Result], stream: AsyncIterator[Result]) -> None:
    async for result in stream:
        landed.append(result)  # noqa: PERF401 - what landed before an exception counts


def generated() -> Iterator[str]:
    yield from NAMES


async def generated_later() -> AsyncIterator[str]:
    for name in NAMES:
        await asyncio.sleep(0)
        yield name


INPUTS: dict[str, tuple[Any, Any]] = {
    "list": (lambda: NAMES, TEMPLATE),
    "tuple": (lambda: tuple(NAMES), TEMPLATE),
    "dict values": (lambda: dict(enumerate(NAMES)).values(), TEMPLATE),
    "generator": (generated, TEMPLATE),
    "async generator": (generated_later, TEMPLATE),
    "map object": (lambda: map(str, NAMES), lambda name: f"About {name}."),
    "dicts": (lambda: [{"name": name} for name in NAMES], "About {name}."),
    "objects": (lambda: [Molecule(name) for name in NAMES], "About {name}."),
    "pandas": (lambda: pd.DataFrame({"name": NAMES}), "About {name}."),
    "polars": (lambda: pl.DataFrame({"name": NAMES}), "About {name}."),
    "numbers": (lambda: range(12), lambda number: f"About molecule {number}."),
}


@pytest.mark.parametrize("kind", INPUTS)
async def test_every_kind_of_input(kind: str, server: SimulatedServer) -> None:
    make, prompt_fn = INPUTS[kind]
    results = await parallel_map(make(), prompt_fn, base_url=server.base_url, **QUIET)
    assert results.texts == ECHOES
    assert [result.index for result in results] == list(range(12))
    assert server.ledger.counts() == {f"About {name}.": 1 for name in NAMES}


async def test_hugging_face_dataset(server: SimulatedServer) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"name": NAMES})
    for items in (rows, rows.to_iterable_dataset()):
        results = await parallel_map(items, "About {name}.", base_url=server.base_url, **QUIET)
        assert results.texts == ECHOES
        assert results[3].item == {"name": NAMES[3]}


async def test_a_result_says_everything(server: SimulatedServer) -> None:
    (result,) = await parallel_map(["ice"], TEMPLATE, base_url=server.base_url, **QUIET)
    assert isinstance(result, Result)
    assert (result.ok, result.error, result.item, result.index) == (True, None, "ice", 0)
    assert result.text == result.value == "echo: About ice."
    assert result.usage == Usage(3, 4, 0, 1)
    assert (result.attempts, result.resumed, result.worker) == (1, False, None)
    assert (result.model, result.finish_reason) == ("sim-model", "stop")
    assert result.endpoint == server.base_url
    assert 0 < result.latency_s < 5
    assert result.cost_usd is None
    assert len(result.key) == 32


@pytest.mark.parametrize("items", [[], iter(()), pd.DataFrame({"name": []})])
async def test_nothing_to_do(items: Any, server: SimulatedServer) -> None:
    results = await parallel_map(items, "{name}", base_url=server.base_url, **QUIET)
    assert len(results) == 0
    assert (results.ok, results.failed, results.texts) == ([], [], [])
    assert results.stopped == ""
    assert results.cost_usd is None
    assert server.ledger.arrived == 0
    assert repr(results)


@pytest.mark.parametrize("items", [None, 3, "text", b"text", {"a": 1}])
async def test_no_input_at_all(items: Any, server: SimulatedServer) -> None:
    with pytest.raises(ConfigError, match="items"):
        await parallel_map(items, TEMPLATE, base_url=server.base_url, **QUIET)


async def test_order_of_input_or_of_completion() -> None:
    async with SimulatedServer(latency=lambda view: 0.2 if "0" in view.prompt else 0.0) as server:
        options: dict[str, Any] = {"base_url": server.base_url, **QUIET}
        results = await parallel_map(range(6), "{}", **options)
        assert [result.item for result in results] == [0, 1, 2, 3, 4, 5]
        results = await parallel_map(range(6), "{}", ordered=False, **options)
        assert [result.item for result in results][-1] == 0
        assert sorted(result.item for result in results) == [0, 1, 2, 3, 4, 5]
        streamed = [result.item async for result in stream_map(range(6), "{}", **options)]
        assert streamed[-1] == 0
        streamed = [r.item async for r in stream_map(range(6), "{}", ordered=True, **options)]
        assert streamed == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("ordered", [True, False])
async def test_endless_input_is_pulled_no_further_than_a_window(
    ordered: bool, server: SimulatedServer
) -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            yield number

    taken = 0
    results = stream_map(
        endless(), "{}", base_url=server.base_url, concurrency=4, ordered=ordered, **QUIET
    )
    async with aclosing(results):
        async for _ in results:
            taken += 1
            await asyncio.sleep(0.001)  # a slow consumer holds the input back
            # 2 lanes a call and 32 spare, twice that for the window.
            assert pulled - taken <= 2 * (2 * 4 + 32)
            if taken == 200:
                break
    await asyncio.sleep(0.05)
    assert pulled - taken <= 80
    assert server.ledger.in_flight == 0


async def test_break_without_closing_leaves_nothing(server: SimulatedServer) -> None:
    before = asyncio.all_tasks()
    async for _ in stream_map(itertools.count(), "{}", base_url=server.base_url, **QUIET):
        break
    for _ in range(100):
        await asyncio.sleep(0.01)
        if not asyncio.all_tasks() - before - server_tasks():
            break
    assert not asyncio.all_tasks() - before - server_tasks()


def server_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "scaleinfer.testing" in repr(task)}


async def test_the_inputs_own_exception_comes_through(server: SimulatedServer) -> None:
    def broken() -> Iterator[int]:
        yield from range(5)
        raise LookupError("the file ends here")

    with pytest.raises(LookupError, match="the file ends here") as caught:
        await parallel_map(broken(), "{}", base_url=server.base_url, **QUIET)
    assert "after 5 items" in caught.value.__notes__[0]
    assert server.ledger.answered == 5
    landed: list[Result] = []
    with pytest.raises(LookupError):
        await into(landed, stream_map(broken(), "{}", base_url=server.base_url, **QUIET))
    assert sorted(result.item for result in landed) == list(range(5))


async def test_two_maps_at_once_share_a_backend(server: SimulatedServer) -> None:
    backend = OpenAIBackend(server.base_url, model="sim-model")
    one, two = await asyncio.gather(
        parallel_map(NAMES, TEMPLATE, backend=backend, **QUIET),
        parallel_map(NAMES, "More about {}.", backend=backend, **QUIET),
    )
    assert one.texts == ECHOES
    assert two.texts == [f"echo: More about {name}." for name in NAMES]


def test_a_backend_serves_one_loop_after_the_other_and_several_threads() -> None:
    with SimulatedServer().in_thread() as server:
        backend = OpenAIBackend(server.base_url)
        for _ in range(3):
            results = asyncio.run(parallel_map(NAMES, TEMPLATE, backend=backend, **QUIET))
            assert results.texts == ECHOES
        texts: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda: texts.append(
                    map_sync(NAMES, TEMPLATE, backend=backend, **QUIET).texts
                )
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [ECHOES] * 3


def test_map_sync_in_a_script_and_in_a_running_loop() -> None:
    async def main(url: str) -> list[str | None]:
        return map_sync(NAMES, TEMPLATE, base_url=url, **QUIET).texts

    with SimulatedServer().in_thread() as server:
        assert map_sync(NAMES, TEMPLATE, base_url=server.base_url, **QUIET).texts == ECHOES
        assert asyncio.run(main(server.base_url)) == ECHOES


async def test_more_calls_in_flight_than_clients_usually_allow() -> None:
    async with SimulatedServer(latency=0.3) as server:
        results = await parallel_map(
            range(400), "{}", base_url=server.base_url, concurrency=400, **QUIET
        )
        assert results.stats.peak_in_flight == 400
        assert server.ledger.peak_in_flight >= 390
    assert all(result.text == f"echo: {result.item}" for result in results)


async def test_long_prompts_and_long_answers_arrive_whole() -> None:
    answer = "x" * 3_000_000
    async with SimulatedServer(answer=lambda view: answer, keep_bodies=True) as server:
        prompt = "ä" * 1_000_000
        (result,) = await parallel_map(
            [prompt], "{}", base_url=server.base_url, retry=Retry(timeout=30), **QUIET
        )
        assert result.ok, result.error
        assert result.text == answer
        assert server.ledger.counts() == {prompt: 1}


async def test_a_context_too_long_fails_that_item_alone() -> None:
    async with SimulatedServer(max_prompt_tokens=50) as server:
        items = ["short", "long " * 200, "brief"]
        results = await parallel_map(items, "{}", base_url=server.base_url, **QUIET)
        assert [result.ok for result in results] == [True, False, True]
        assert "item 1: " in str(results[1].error)
        assert "Shorten the prompt" in str(results[1].error)
        assert results[1].attempts == 1


def fragile(number: int) -> Any:
    if number % 3 == 0:
        raise KeyError("smiles")
    return None if number % 3 == 1 else f"About {number}."


async def test_on_error_raise_ends_the_run(server: SimulatedServer) -> None:
    with pytest.raises(PromptError, match="item 0"):
        await parallel_map(range(50), fragile, base_url=server.base_url, on_error="raise", **QUIET)
    with pytest.raises(PromptError):
        async for _ in stream_map(
            range(50), fragile, base_url=server.base_url, on_error="raise", **QUIET
        ):
            pass


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"concurrency": 0}, "concurrency must be"),
        ({"concurrency": "many"}, "concurrency must be"),
        ({"concurrency": True}, "concurrency must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"key": "id"}, "key must be a function"),
        ({"retry": 3}, "retry must be a Retry"),
        ({"sampling": {"temp": 1}}, "no parameter temp"),
        ({"schema": dict}, "pydantic model class"),
        ({"progress": "loud"}, "progress mode"),
        ({"backend": "opneai"}, "unknown"),
        ({"prompt_fn": "no field"}, "names no field"),
        ({"prompt_fn": 3}, "prompt_fn must be"),
    ],
)
async def test_wrong_arguments_are_named_before_anything_is_sent(
    wrong: dict[str, Any], complaint: str, server: SimulatedServer
) -> None:
    arguments: dict[str, Any] = {"prompt_fn": TEMPLATE, "base_url": server.base_url, **QUIET}
    if "backend" in wrong:
        del arguments["base_url"]
    arguments |= wrong
    with pytest.raises(ConfigError, match=complaint):
        await parallel_map(NAMES, **arguments)
    with pytest.raises(ConfigError, match=complaint):
        await anext(stream_map(NAMES, **arguments))
    assert server.ledger.arrived == 0


async def test_cancelling_closes_the_connections() -> None:
    async with SimulatedServer(latency=30) as server:
        running = asyncio.create_task(
            parallel_map(range(100), "{}", base_url=server.base_url, concurrency=20, **QUIET)
        )
        while server.ledger.in_flight < 20:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.1)
        assert server.ledger.aborted == 20
        assert server.ledger.in_flight == 0
        assert server.ledger.arrived == 20
