"""`Fleet.slurm` from end to end: a model on each node, a node cut off, growing and shrinking."""

from __future__ import annotations

import asyncio
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.fleet.chaos import Arrivals, Left, Mapping, counts, until

from scaleinfer import Sampling, parallel_map
from scaleinfer.fleet import Fleet, NodeServer
from scaleinfer.journal import read_results, verify

if TYPE_CHECKING:
    from tests.services.slurm import SlurmCluster

    from scaleinfer import MapResult

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

MOLECULES = Path(__file__).parents[3] / "examples" / "data" / "molecules.csv"


def prompt(molecule: dict[str, str]) -> str:
    return f"Is {molecule['name']} ({molecule['formula']}) a liquid at 25 C? Answer yes or no."


async def test_300_records_on_three_nodes_with_a_model_each_while_one_is_cut_off(
    slurm: SlurmCluster, tmp_path: Path, journal: Path, local_model: Path
) -> None:
    await asyncio.to_thread(slurm.wait_idle, 90.0)
    with MOLECULES.open(newline="") as file:
        molecules = list(csv.DictReader(file))
    assert len(molecules) == 300
    server = NodeServer(
        [sys.executable, "-m", "scaleinfer.cli", "serve", "--port", "{port}"],
        name="smollm",
        # Three engines share the cores of one machine here.
        env={"SCALEINFER_DATA": str(local_model.parent.parent), "OMP_NUM_THREADS": "1"},
        ready_timeout=200.0,
    )
    left = Left(slurm)
    fleet = Fleet.slurm(
        nodes=3,
        address=slurm.address,
        walltime="00:20:00",
        server=server,
        concurrency=4,
        folder=tmp_path / "fleet",
    )
    async with fleet:
        await fleet.ready(3, timeout=200)
        mapping = asyncio.create_task(asked(molecules, fleet, journal))
        await until(lambda: all(one.answered > 3 for one in fleet.status().workers), 250)
        assert fleet.status().nodes == 3
        slurm.partition(2)
        try:
            await until(lambda: fleet.status().lost_workers == 1 or mapping.done())
            assert not mapping.done()
            results = await mapping
            status = fleet.status()
        finally:
            slurm.heal(2)
    assert [result.item for result in results] == molecules
    assert len(results.ok) == 300
    assert all(result.text for result in results)
    # Some were answered by the node that was cut off, before it was.
    assert len({result.worker for result in results}) == 3
    assert len(status.workers) < 3
    rows = list(read_results(journal, everything=True))
    assert sorted(row.index for row in rows) == list(range(300))
    assert verify(journal).ok
    assert await asyncio.to_thread(left.find) == []


async def asked(molecules: list[dict[str, str]], fleet: Fleet, journal: Path) -> MapResult:
    sampling = Sampling(max_tokens=2, temperature=0.0)
    return await parallel_map(
        molecules, prompt, fleet=fleet, sampling=sampling, journal=journal, progress=False
    )


async def test_a_fleet_grows_by_its_backlog_shrinks_to_nothing_and_grows_again(
    slurm: SlurmCluster, tmp_path: Path, journal: Path
) -> None:
    # The test before has cut a node off.
    await asyncio.to_thread(slurm.wait_idle, 90.0)
    arrivals = Arrivals(tmp_path / "arrived")
    left = Left(slurm)
    fleet = Fleet.slurm(
        nodes=1,
        min_workers=0,
        max_workers=3,
        idle_s=3.0,
        address=slurm.address,
        walltime="00:10:00",
        server=NodeServer(arrivals.command(0.3)),
        concurrency=4,
        folder=tmp_path / "fleet",
    )
    async with fleet:
        mapping = Mapping(fleet, journal)
        await until(lambda: len(fleet.status().workers) == 3)
        assert fleet.status().nodes == 3
        assert len(slurm.jobs()) == 3
        mapping.stop()
        assert await mapping.done() == len(mapping.prompts)
        await until(lambda: not fleet.status().workers)
        again = await parallel_map(["item 0"], "{}", fleet=fleet, progress=False)
        assert again.texts == ["echo: item 0"]
        status = fleet.status()
    told = counts(journal, mapping.prompts, arrivals.all())
    assert (told.lost, told.failed, told.twice) == (0, 0, 0)
    assert status.lost_workers == 0
    assert await asyncio.to_thread(left.find) == []
