"""Faults in the middle of a map, with real processes and on a real Slurm: nothing lost or twice."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.integration.fleet.chaos import (
    Arrivals,
    Chaos,
    Fault,
    Kind,
    Left,
    Mapping,
    counts,
    schedule,
    until,
)
from tests.integration.fleet.test_campaign import by_hand
from tests.services.http_exchange import HttpExchange
from tests.services.redis import Redis

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet, NodeServer, WorkerSpec
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.services.slurm import SlurmCluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(200)]

LATENCY_S = 0.3
LOCAL: tuple[Kind, ...] = ("worker", "server", "exchange")


@pytest.fixture
def arrivals(tmp_path: Path) -> Arrivals:
    """What the model servers of a test write down."""
    return Arrivals(tmp_path / "arrived")


def on_slurm(
    slurm: SlurmCluster, folder: Path, arrivals: Arrivals, nodes: int = 2, **options: Any
) -> Fleet:
    """Return a fleet with a model server on each node, and otherwise the default settings."""
    return Fleet.slurm(
        nodes=nodes,
        address=slurm.address,
        walltime="00:10:00",
        folder=folder / "fleet",
        server=NodeServer(arrivals.command(LATENCY_S)),
        concurrency=4,
        **options,
    )


def assert_nothing_lost(mapping: Mapping, arrivals: Arrivals, *, most_again: int) -> None:
    told = counts(mapping.journal, mapping.prompts, arrivals.all())
    assert (told.lost, told.failed, told.twice, told.damage) == (0, 0, 0, 0), told
    assert told.again <= most_again, told


async def test_a_node_that_is_cut_off_is_replaced_and_works_again_once_it_is_back(
    slurm: SlurmCluster, tmp_path: Path, journal: Path, arrivals: Arrivals
) -> None:
    left = Left(slurm)
    async with on_slurm(slurm, tmp_path, arrivals) as fleet:
        await fleet.ready(2, timeout=100)
        mapping = Mapping(fleet, journal)
        await until(lambda: arrivals.count() > 40)
        names = {worker.name for worker in fleet.status().workers}

        slurm.partition(1)
        cut = time.time()
        try:
            await until(lambda: arrivals.asked_again(cut) is not None)
            await until(lambda: len(fleet.status().workers) == 1)
            # It goes on with what it had, and nobody hears of it.
            assert any(one.node == "node1" and one.at > cut for one in arrivals.all())
        finally:
            slurm.heal(1)
        healed = time.time()
        await until(lambda: {worker.name for worker in fleet.status().workers} == names)
        await until(lambda: at(arrivals, "node1", healed + 1.0) > 20)
        mapping.stop()
        assert await mapping.done() == len(mapping.prompts)
        status = fleet.status()
    assert status.lost_workers >= 1
    # What it held: both its calls in flight and those that it had not begun.
    assert_nothing_lost(mapping, arrivals, most_again=60)
    assert await asyncio.to_thread(left.find) == []


def at(arrivals: Arrivals, node: str, since: float) -> int:
    return sum(one.node == node and one.at > since for one in arrivals.all())


async def test_a_job_that_is_cancelled_hands_its_work_back_and_another_takes_its_place(
    slurm: SlurmCluster, tmp_path: Path, journal: Path, arrivals: Arrivals
) -> None:
    left = Left(slurm)
    async with on_slurm(slurm, tmp_path, arrivals, min_workers=2, max_workers=2) as fleet:
        await fleet.ready(2, timeout=100)
        assert len(slurm.jobs()) == 2
        mapping = Mapping(fleet, journal)
        await until(lambda: arrivals.count() > 40)
        names = {worker.name for worker in fleet.status().workers}

        cut = time.time()
        await Chaos(fleet, arrivals, slurm).strike(Fault(0.0, "job", 0.0, 0))

        await until(lambda: arrivals.asked_again(cut) is not None, 45)
        await until(lambda: len({one.name for one in fleet.status().workers} - names) == 1)
        mapping.stop()
        assert await mapping.done() == len(mapping.prompts)
        slurm.partition(2)
        try:
            closing = asyncio.create_task(fleet._close())
            await asyncio.sleep(3.0)
        finally:
            slurm.heal(2)
        await closing
    assert_nothing_lost(mapping, arrivals, most_again=40)
    # Closed while a node was cut off, of which Slurm hears again only now.
    assert await asyncio.to_thread(left.find) == []


async def test_the_only_server_and_the_fleets_own_exchange_are_killed_and_serve_again(
    tmp_path: Path, journal: Path, arrivals: Arrivals
) -> None:
    server = NodeServer(arrivals.command(LATENCY_S))
    left = Left()
    async with Fleet.local(1, server=server, folder=tmp_path / "fleet", concurrency=8) as fleet:
        await fleet.ready(timeout=60)
        mapping = Mapping(fleet, journal)
        await until(lambda: arrivals.count() > 60)
        (first,) = arrivals.servers()
        await Chaos(fleet, arrivals).strike(Fault(0.0, "server", 0.0, 0))
        # Enough that all of its places must be in use again.
        await until(lambda: sum(one.pid != first for one in arrivals.all()) > 60)
        exchange_process().kill()
        before = fleet.status().answered
        await until(lambda: fleet.status().answered > before + 60)
        mapping.stop()
        assert await mapping.done() == len(mapping.prompts)
        lost = fleet.status().lost_workers
    assert lost <= 1
    assert_nothing_lost(mapping, arrivals, most_again=60)
    assert await asyncio.to_thread(left.find) == []


def exchange_process() -> psutil.Process:
    mine = psutil.Process().children(recursive=True)
    (found,) = [one for one in mine if "scaleinfer.fleet._serve_exchange" in one.cmdline()]
    return found


@pytest.mark.parametrize(("seed", "kind"), [(1, "redis"), (2, "http")])
async def test_nothing_is_lost_or_recorded_twice_under_a_random_schedule(
    seed: int, kind: str, tmp_path: Path, journal: Path, arrivals: Arrivals
) -> None:
    service = Redis(tmp_path / "x") if kind == "redis" else HttpExchange(tmp_path / "x")
    faults = schedule(seed, LOCAL, number=4, within=10.0)
    left = Left()
    with service:
        fleet = Fleet.local(
            2,
            server=NodeServer(arrivals.command(LATENCY_S)),
            folder=tmp_path / "fleet",
            concurrency=4,
            exchange=service.url,
        )
        async with fleet:
            await fleet.ready(2, timeout=60)
            mapping = Mapping(fleet, journal)
            await until(lambda: arrivals.count() > 20)
            await Chaos(fleet, arrivals, exchange=service).run(faults)
            mapping.stop()
            assert await mapping.done() == len(mapping.prompts)
    assert_nothing_lost(mapping, arrivals, most_again=100)
    assert await asyncio.to_thread(left.find) == []


def test_a_schedule_is_the_seeds() -> None:
    first = schedule(7, LOCAL, number=20, within=10.0)
    assert first == schedule(7, LOCAL, number=20, within=10.0)
    assert first != schedule(8, LOCAL, number=20, within=10.0)
    assert {fault.kind for fault in first} == set(LOCAL)
    assert [fault.at for fault in first] == sorted(fault.at for fault in first)


async def test_a_worker_whose_job_ends_hands_back_what_it_has_not_begun(
    tmp_path: Path, journal: Path
) -> None:
    items = [f"item {number}" for number in range(300)]
    async with SimulatedServer(latency=0.5) as server:
        with Redis(tmp_path / "redis") as redis:
            stays = WorkerSpec(
                redis.url, fleet="f", backend=(server.base_url,), concurrency=4, name="stays"
            )
            ends = WorkerSpec(
                redis.url,
                fleet="f",
                backend=(server.base_url,),
                concurrency=4,
                name="ends",
                walltime_s=12.0,
            )
            events: list[str] = []
            (tmp_path / "a").mkdir()
            (tmp_path / "b").mkdir()
            fleet = Fleet.attach(redis.url, name="f", on_event=events.append)
            with by_hand(stays, tmp_path / "a"), by_hand(ends, tmp_path / "b"):
                async with fleet:
                    await fleet.ready(2, timeout=60)
                    results = await parallel_map(
                        items, "{}", fleet=fleet, journal=journal, progress=False
                    )
                    status = fleet.status()
    assert results.texts == [f"echo: {item}" for item in items]
    assert "ends has left" in events
    assert [worker.name for worker in status.workers] == ["stays"]
    assert status.lost_workers == 0
    assert {result.worker for result in results} == {"stays", "ends"}
    # It stops early enough for its calls to end; at worst those in flight are asked again.
    assert server.ledger.arrived <= 300 + 8
    assert not [prompt for prompt, times in server.ledger.asked().items() if times > 2]
