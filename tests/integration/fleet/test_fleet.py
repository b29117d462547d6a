"""Maps over workers in other processes: what a user gets, and what faults cost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import string
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydantic import BaseModel

from scaleinfer import ConfigError, PromptError, WorkerLost, parallel_map, stream_map
from scaleinfer.fleet import Fleet, NodeServer, WorkerSpec
from scaleinfer.fleet._launch import LocalLauncher
from scaleinfer.journal import verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[3]
IDLE = "tests.integration.fleet.adapters:idle"
QUIET: dict[str, Any] = {"progress": False}


async def until(what: Callable[[], bool], seconds: float = 40.0) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


def of(fleet: Fleet) -> list[int]:
    return [worker.facts.pid for worker in fleet.status().workers]


def gone(pids: list[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


async def test_a_map_over_a_fleet_is_a_map(server: SimulatedServer, journal: Path) -> None:
    items = [f"item {number}" for number in range(100)]
    events: list[str] = []
    async with Fleet.local(2, backend=server.base_url, on_event=events.append) as fleet:
        await fleet.ready(2, timeout=60)
        pids = of(fleet)
        results = await parallel_map(items, "{}", fleet=fleet, journal=journal, **QUIET)
        again = await parallel_map(items, "{}", fleet=fleet, journal=journal, **QUIET)
        status = fleet.status()
    assert results.texts == [f"echo: {item}" for item in items]
    assert {result.worker for result in results} <= {worker.name for worker in status.workers}
    assert {result.endpoint for result in results} == {server.base_url}
    assert server.ledger.arrived == 100
    assert all(result.resumed and result.worker for result in again)
    assert verify(journal).problems == []
    assert status.answered == 100
    assert status.nodes == 1
    assert results.usage.requests == 100
    assert sum("is here" in event for event in events) == 2
    assert gone(pids)


class Number(BaseModel):
    value: int


async def test_schemas_repairs_and_what_fails_work_as_without_a_fleet() -> None:
    answers = iter(["no JSON", '{"value": 7}'])
    faults = [Fault.status(400, match="bad"), Fault.status(500, match="shaky", first=2)]
    async with (
        SimulatedServer(
            json_schema=False, answer=lambda view: next(answers, '{"value": 1}'), faults=faults
        ) as server,
        Fleet.local(1, backend=server.base_url) as fleet,
    ):
        one = await parallel_map(["a"], "Number of {}?", schema=Number, fleet=fleet, **QUIET)

        def prompt(item: str) -> str:
            if item == "raises":
                raise ValueError(item)
            return item

        mixed = await parallel_map(["shaky", "bad", "raises"], prompt, fleet=fleet, **QUIET)
    assert one[0].value == Number(value=7)
    assert one[0].attempts == 2
    assert [result.ok for result in mixed] == [True, False, False]
    assert mixed[0].attempts == 3
    assert mixed[1].error is not None
    assert type(mixed[1].error).__name__ == "Permanent"
    assert isinstance(mixed[2].error, PromptError)


async def test_a_killed_worker_costs_nothing_but_time(journal: Path) -> None:
    items = [f"item {number}" for number in range(300)]
    async with (
        SimulatedServer(latency=0.2) as server,
        Fleet.local(2, backend=server.base_url, concurrency=8) as fleet,
    ):
        await fleet.ready(2, timeout=60)
        mapping = asyncio.create_task(
            parallel_map(items, "{}", fleet=fleet, journal=journal, **QUIET)
        )
        await until(lambda: server.ledger.arrived > 60)
        victim = of(fleet)[0]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        results = await mapping
        took = time.monotonic() - killed
        status = fleet.status()
    assert results.texts == [f"echo: {item}" for item in items]
    assert verify(journal).ok
    assert status.lost_workers == 1
    # Its calls in flight, and what it had not reported.
    assert server.ledger.arrived <= 300 + 100
    assert took < 40
    assert victim not in of_status(status)


def of_status(status: Any) -> list[int]:
    return [worker.facts.pid for worker in status.workers]


async def test_what_kills_every_worker_is_given_up() -> None:
    items = [f"item {number}" for number in range(20)] + ["poison"]
    async with Fleet.local(1, backend=IDLE, concurrency=4) as fleet:
        results = await parallel_map(items, "{}", fleet=fleet, **QUIET)
    assert [result.ok for result in results] == [True] * 20 + [False]
    assert isinstance(results[20].error, WorkerLost)


async def test_two_maps_share_a_fleet_and_priority_overtakes() -> None:
    async with (
        SimulatedServer(latency=0.05) as server,
        Fleet.local(1, backend=server.base_url, concurrency=4) as fleet,
    ):
        await fleet.ready(timeout=60)
        order: list[str] = []

        async def ask(name: str, count: int, priority: int) -> None:
            stream = stream_map(
                range(count), f"{name} {{}}", fleet=fleet, priority=priority, **QUIET
            )
            async for result in stream:
                assert result.ok
                order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("batch", 200, 0))
            group.create_task(ask("other", 200, 0))
            await until(lambda: len(order) > 20)
            before = len(order)
            await ask("urgent", 8, 5)
            during = len(order) - before
    assert order.count("batch") == order.count("other") == 200
    # Not behind the hundreds of requests that waited already.
    assert during < 100
    middle = order[:200]
    assert 0.5 < middle.count("batch") / middle.count("other") < 2


async def test_leaving_a_stream_ends_the_calls_on_the_nodes() -> None:
    async with (
        SimulatedServer(latency=30.0) as server,
        Fleet.local(1, backend=server.base_url, concurrency=4) as fleet,
    ):
        await fleet.ready(timeout=60)
        stream = stream_map(range(10), "{}", fleet=fleet, **QUIET)
        async with aclosing(stream):
            waiting = asyncio.ensure_future(anext(stream))
            await until(lambda: server.ledger.in_flight == 4)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: server.ledger.in_flight == 0, 10)


async def test_no_worker_can_work_and_the_run_says_why() -> None:
    async with Fleet.local(1, backend="http://127.0.0.1:9/v1", model="m") as fleet:
        results = await parallel_map(range(5), "{}", fleet=fleet, **QUIET)
    assert not results.ok
    assert "127.0.0.1:9" in str(results[0].error)


async def test_a_worker_that_cannot_start_is_named_with_its_log(tmp_path: Path) -> None:
    async with Fleet.local(1, backend="no_such_module:make", folder=tmp_path) as fleet:
        results = await parallel_map(range(3), "{}", fleet=fleet, **QUIET)
    assert not results.ok
    assert "no_such_module" in str(results[0].error)


async def test_prompts_and_answers_larger_than_a_message() -> None:
    chance = random.Random(1)
    letters = string.ascii_letters + string.digits
    sizes = (10, 2_000_000, 300_000, 10, 900_000)
    items = ["".join(chance.choices(letters, k=size)) for size in sizes]
    async with Fleet.local(1, backend="tests.integration.fleet.adapters:parrot") as fleet:
        results = await parallel_map(items, "{}", fleet=fleet, **QUIET)
    assert results.texts == items


async def test_a_walltime_shorter_than_the_start_is_said(tmp_path: Path) -> None:
    def spec_of(launcher: LocalLauncher) -> LocalLauncher:
        started = launcher.start
        launcher.start = lambda spec: started(  # type: ignore[method-assign] # as a batch job's end
            replace(WorkerSpec.from_json(spec), walltime_s=4.0).to_json()
        )
        return launcher

    slow = "tests.integration.fleet.adapters:slow"
    fleet = Fleet(lambda folder: spec_of(LocalLauncher(folder)), 1, backend=slow, folder=tmp_path)
    async with fleet:
        results = await parallel_map(range(3), "{}", fleet=fleet, **QUIET)
    assert not results.ok
    assert "walltime" in str(results[0].error)


async def test_a_fleet_that_is_not_open_or_elsewhere() -> None:
    fleet = Fleet.local(1, backend=IDLE)
    with pytest.raises(ConfigError, match="not open"):
        await parallel_map([1], "{}", fleet=fleet, **QUIET)
    with pytest.raises(ConfigError, match="without a fleet"):
        await parallel_map([1], "{}", fleet=fleet, base_url="http://127.0.0.1:9", **QUIET)


async def test_each_worker_starts_feeds_and_stops_its_own_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scaleinfer.testing", "--port", "{port}", "--latency", "0.05"]
    server = NodeServer(command, per_node=2)
    async with Fleet.local(1, server=server, folder=tmp_path, concurrency=4) as fleet:
        await fleet.ready(timeout=60)
        mapping = asyncio.create_task(parallel_map(range(400), "{}", fleet=fleet, **QUIET))
        await until(lambda: len(fleet.status().workers[0].facts.endpoints) == 2)
        await until(lambda: fleet.status().answered > 50)
        worker = psutil.Process(of(fleet)[0])
        processes = worker.children(recursive=True)
        victims = [one for one in processes if "scaleinfer.testing" in one.cmdline()]
        assert len({one.pid for one in victims}) >= 2
        victims[-1].kill()
        results = await mapping
        endpoints = fleet.status().workers[0].facts.endpoints
    assert len(results.ok) == 400
    assert {result.endpoint for result in results} == set(endpoints)
    assert gone([one.pid for one in processes])


def test_workers_end_when_their_client_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio
from scaleinfer.fleet import Fleet, NodeServer

async def main():
    async with Fleet.local(2, backend={IDLE!r}) as fleet:
        await fleet.ready(2)
        print(*[worker.facts.pid for worker in fleet.status().workers], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    client = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert client.stdout is not None
    with client.stdout:
        pids = [int(pid) for pid in client.stdout.readline().split()]
        children = [child.pid for child in psutil.Process(client.pid).children(recursive=True)]
        assert len(pids) == 2
        client.kill()
        client.wait()
    deadline = time.monotonic() + 20
    while not gone(children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(children)
