"""A run that was held back by its own side says by what."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import Concurrency, RateLimit, Retry, parallel_map
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from scaleinfer.testing import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def quick() -> Iterator[ServerProcess]:
    """A server in a process of its own, so that its work is not the client's."""
    with SimulatedServer(latency=0.005).in_process() as server:
        yield server


async def test_a_blocking_input(quick: ServerProcess) -> None:
    def blocking() -> Iterator[int]:
        for number in range(30):
            time.sleep(0.025)
            yield number

    results = await parallel_map(blocking(), "{}", base_url=quick.base_url, **QUIET)
    shares = results.stats.time
    assert shares.held_back_by.startswith("the input")
    assert shares.input > 0.5
    assert shares.ours


async def test_an_async_input_that_comes_slowly(quick: ServerProcess) -> None:
    async def slow() -> AsyncIterator[int]:
        for number in range(30):
            await asyncio.sleep(0.025)
            yield number

    results = await parallel_map(slow(), "{}", base_url=quick.base_url, **QUIET)
    assert results.stats.time.held_back_by.startswith("the input")
    assert 0.5 < results.stats.time.input <= 1.0


async def test_a_busy_loop(quick: ServerProcess) -> None:
    def busy(item: int) -> str:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        return str(item)

    results = await parallel_map(
        (number for number in range(100)), busy, base_url=quick.base_url, **QUIET
    )
    shares = results.stats.time
    assert shares.held_back_by.startswith("this process: its event loop was busy")
    assert shares.client > 0.5


async def test_a_loop_that_something_blocks(quick: ServerProcess) -> None:
    def blocks(item: int) -> str:
        time.sleep(0.01)
        return str(item)

    results = await parallel_map(
        (number for number in range(100)), blocks, base_url=quick.base_url, **QUIET
    )
    shares = results.stats.time
    assert shares.held_back_by.startswith("this process: something blocked")
    assert shares.worst_loop_lag_s > 0.05


async def test_a_slow_prompt_fn(quick: ServerProcess) -> None:
    async def slow(item: int) -> str:
        await asyncio.sleep(0.2)
        return str(item)

    results = await parallel_map(range(60), slow, base_url=quick.base_url, concurrency=8, **QUIET)
    assert results.stats.time.held_back_by.startswith("prompt_fn")


async def test_a_slow_server() -> None:
    async with SimulatedServer(latency=0.3) as server:
        results = await parallel_map(range(90), "{}", base_url=server.base_url, **QUIET)
    shares = results.stats.time
    assert shares.endpoint > 0.7
    assert shares.client < 0.5
    assert not shares.held_back_by.startswith(("this process", "the input", "the journal"))


@pytest.mark.parametrize("bound", [4, Concurrency(min=4, start=4, max=4)], ids=["int", "max"])
async def test_a_limit_of_the_users_own(bound: Any) -> None:
    async with SimulatedServer(latency=0.03) as server:
        results = await parallel_map(
            range(100), "{}", base_url=server.base_url, concurrency=bound, **QUIET
        )
    reason = "fixed" if bound == 4 else "bounded by max"
    assert results.stats.time.held_back_by == f"the limit of calls in flight (4: {reason})"
    assert results.stats.endpoints[0].reason == reason


async def test_a_limit_that_was_never_reached() -> None:
    async with SimulatedServer(latency=0.6) as server:
        results = await parallel_map(
            range(10), "{}", base_url=server.base_url, concurrency=100, **QUIET
        )
    assert results.stats.time.held_back_by == "the endpoint"
    assert not results.stats.time.ours


async def test_a_rate_limit(quick: ServerProcess) -> None:
    results = await parallel_map(
        range(60),
        "{}",
        base_url=quick.base_url,
        rate_limit=RateLimit(requests_per_minute=1800),
        **QUIET,
    )
    assert results.stats.time.held_back_by == "the rate limit"
    assert results.stats.time.queue > 0.5


async def test_errors() -> None:
    async with SimulatedServer(faults=[Fault.status(500, first=1)], latency=0.001) as server:
        results = await parallel_map(
            itertools.islice(itertools.count(), 40),
            "{}",
            base_url=server.base_url,
            retry=Retry(initial=0.4),
            **QUIET,
        )
    assert results.stats.ok == 40
    assert results.stats.time.held_back_by.startswith("errors")
    assert results.stats.time.retry > 0.5


async def test_shares_add_up_and_a_short_run_has_no_verdict(quick: ServerProcess) -> None:
    results = await parallel_map(range(20), "{}", base_url=quick.base_url, **QUIET)
    shares = results.stats.time
    parts = (shares.endpoint, shares.connection, shares.record, shares.retry)
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(1.0)
    assert shares.held_back_by == ""


FEW_FILES = """
import json, sys
from scaleinfer import map_sync
results = map_sync(range(400), "{}", base_url=sys.argv[1], concurrency=1000, progress="log")
use = results.stats.endpoints[0]
print(json.dumps([results.stats.ok, use.limit, use.peak_in_flight, results.stopped]))
"""


def test_few_file_descriptors_cap_the_calls_in_flight_with_a_word(quick: ServerProcess) -> None:
    command = f'ulimit -n 128; exec "{sys.executable}" -c "$0" "$1"'
    done = subprocess.run(
        ["bash", "-c", command, FEW_FILES, quick.base_url],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    ok, limit, peak, stopped = json.loads(done.stdout)
    assert (ok, stopped) == (400, ""), done.stderr
    assert 16 <= limit < 128
    assert peak <= limit
    assert f"At most {limit} calls in flight" in done.stderr
    assert "ulimit" in done.stderr
