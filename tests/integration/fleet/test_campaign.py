"""What a long campaign meets: the client dies, the exchange restarts, other agents send work."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from academy.agent import Agent, action
from academy.handle import Handle  # noqa: TC002 - Academy reads the annotations
from academy.manager import Manager
from academy.runtime import RuntimeConfig
from academy.serialize import SerializationStrategy
from tests.services.http_exchange import HttpExchange
from tests.services.redis import Redis

from scaleinfer import parallel_map
from scaleinfer.fleet import (
    Coordinator,
    Fleet,
    InferenceWorker,
    WorkerSpec,
    exchange_factory,
)
from scaleinfer.fleet._launch import LocalLauncher
from scaleinfer.fleet.exchange import json_only
from scaleinfer.journal import list_runs, verify
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

ROOT = Path(__file__).parents[3]
QUIET: dict[str, Any] = {"progress": False}
ITEMS = 300

CLIENT = """
import asyncio, sys
from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet

async def main(exchange, journal):
    async with Fleet.attach(exchange, name="campaign", secret="word") as fleet:
        results = await parallel_map(
            range({items}), "item {{}}", fleet=fleet, journal=journal, progress=False
        )
        print(len(results.ok), results.stats.resumed)

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def by_hand(spec: WorkerSpec, folder: Path) -> Iterator[None]:
    """Start a worker as a batch script would, with nothing but its spec."""
    launcher = LocalLauncher(folder)
    launcher.start(spec.to_json())
    try:
        yield
    finally:
        launcher.close()


async def until(what: Any, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def test_a_client_that_was_killed_starts_again_with_the_same_workers(
    tmp_path: Path, journal: Path
) -> None:
    script = CLIENT.format(items=ITEMS)
    async with SimulatedServer(latency=0.2) as server:
        with Redis(tmp_path / "redis") as redis:
            spec = WorkerSpec(
                redis.url,
                fleet="campaign",
                secret="word",
                backend=(server.base_url,),
                concurrency=4,
            )
            command = [sys.executable, "-c", script, redis.url, str(journal)]
            with by_hand(spec, tmp_path):
                first = await asyncio.create_subprocess_exec(
                    *command, stdout=asyncio.subprocess.PIPE
                )
                await until(lambda: server.ledger.answered > 60)
                first.kill()
                await first.communicate()
                arrived = server.ledger.arrived
                again = await asyncio.create_subprocess_exec(
                    *command, stdout=asyncio.subprocess.PIPE
                )
                out, _ = await again.communicate()
    assert out, (tmp_path / "worker-1.log").read_text()
    ok, resumed = map(int, out.split())
    assert ok == ITEMS
    assert resumed > 0
    assert verify(journal).ok
    # What was in flight and what had not been reported is asked again, nothing else.
    assert server.ledger.arrived <= ITEMS + (arrived - resumed) + 40
    assert len(list_runs(journal)) == 2


@pytest.mark.parametrize("kind", ["redis", "http"])
async def test_the_exchange_restarts_in_the_middle_of_a_map(
    kind: str, tmp_path: Path, journal: Path
) -> None:
    service = Redis(tmp_path / "x") if kind == "redis" else HttpExchange(tmp_path / "x")
    async with SimulatedServer(latency=0.2) as server:
        with service:
            fleet = Fleet.local(2, backend=server.base_url, exchange=service.url, concurrency=4)
            async with fleet:
                await fleet.ready(2, timeout=60)
                mapping = asyncio.create_task(
                    parallel_map(range(ITEMS), "{}", fleet=fleet, journal=journal, **QUIET)
                )
                await until(lambda: server.ledger.answered > 60)
                await asyncio.to_thread(service.restart, away_s=1.0)
                began = time.monotonic()
                before = server.ledger.arrived
                await until(lambda: server.ledger.arrived > before + 20, 30)
                back = time.monotonic() - began
                results = await mapping
    assert len(results.ok) == ITEMS
    assert verify(journal).ok
    assert back < 30


class Screener(Agent):
    """Another agent, which sends work to a coordinator that it was given."""

    def __init__(self, coordinator: Handle[Coordinator]) -> None:
        super().__init__()
        self._coordinator = coordinator

    @action
    async def screen(self, names: list[str]) -> list[str | None]:
        async with Fleet.of(self._coordinator) as fleet:
            results = await parallel_map(names, "Screen {}", fleet=fleet, progress=False)
        return results.texts


async def test_under_the_users_own_manager(tmp_path: Path, server: SimulatedServer) -> None:
    config = RuntimeConfig(
        allowed_deserializers={SerializationStrategy.JSON},
        default_serializer=SerializationStrategy.JSON,
    )
    with Redis(tmp_path / "redis") as redis, json_only():
        manager = await Manager.from_exchange_factory(
            exchange_factory(redis.url), executors=ThreadPoolExecutor(4)
        )
        async with manager:
            coordinator = await manager.launch(Coordinator, config=config)
            for _ in range(2):
                await manager.launch(
                    InferenceWorker,
                    args=(coordinator,),
                    kwargs={"backend": server.base_url},
                    config=config,
                )
            screener = await manager.launch(Screener, args=(coordinator,), config=config)
            async with Fleet.of(coordinator) as fleet:
                await fleet.ready(2, timeout=60)
                names = [f"molecule {number}" for number in range(200)]
                here, there = await asyncio.gather(
                    parallel_map(names, "{}", fleet=fleet, **QUIET), screener.screen(names[:50])
                )
                await until(lambda: len(fleet.status().workers) == 2)
                status = fleet.status()
    assert here.texts == [f"echo: {name}" for name in names]
    assert there == [f"echo: Screen {name}" for name in names[:50]]
    assert len({result.worker for result in here}) == len(status.workers) == 2
    assert server.ledger.arrived == 250
