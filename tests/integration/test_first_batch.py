"""Batches at FIRST, from the front door: every row, within the quota, and paid for once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scaleinfer import parallel_map
from scaleinfer.backends import FirstBackend, FirstBatches, FirstLimits
from scaleinfer.batch import Batch
from scaleinfer.errors import ConfigError
from scaleinfer.journal import list_runs, read_results, verify
from scaleinfer.requests import Request
from scaleinfer.testing import (
    BatchApi,
    Fault,
    FirstCluster,
    FirstModel,
    FirstToken,
    SimulatedFirst,
    SimulatedServer,
)

pytestmark = pytest.mark.anyio

MODEL = "openai/gpt-oss-120b"
QUICK = FirstLimits(requests_per_second=50)
POLL = (0.05, 0.2)


@pytest.fixture(autouse=True)
def plain_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share limits with nobody else, and find no settings of the developer's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MODEL", "BASE_URL", "ACCESS_TOKEN", "CLIENT_ID", "BATCH_FOLDER"):
        monkeypatch.delenv(f"FIRST_{name}", raising=False)


def gateway(api: BatchApi | None = None, **settings: Any) -> SimulatedFirst:
    clusters = (
        FirstCluster(name="sophia", models=(FirstModel(name=MODEL),)),
        FirstCluster(
            name="metis", framework="api", direct=True, models=(FirstModel(name="gpt-oss-120b"),)
        ),
    )
    usual: dict[str, Any] = {"requests_per_second": 50, "cache_s": 0.1}
    return SimulatedFirst(clusters, batches=api or BatchApi(), **usual | settings)


def backend(of: SimulatedFirst, **settings: Any) -> FirstBackend:
    usual: dict[str, Any] = {"model": "gpt-oss-120b", "token": "any", "limits": QUICK}
    return FirstBackend("sophia/vllm", base_url=of.base_url, **usual | {"poll_s": 0.2} | settings)


def paid_once(first: SimulatedFirst, rows: int) -> None:
    assert len(first.ledger.counts()) == rows
    assert set(first.ledger.counts().values()) == {1}


async def test_the_spec_string_and_a_folder_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_ACCESS_TOKEN", "any")
    monkeypatch.setenv("FIRST_BATCH_FOLDER", str(tmp_path / "cluster"))
    left_out = Fault.drop(rate=0.03, first=1)
    async with gateway(BatchApi(seconds=0.1, faults=(left_out,))) as first:
        results = await parallel_map(
            range(300), "Is {} a prime?", backend="first:sophia/vllm", model="gpt-oss-120b",
            base_url=first.base_url, mode=Batch(max_rows=100, poll_s=POLL), progress=False,
        )  # fmt: skip
        assert len(results.ok) == 300
        paid_once(first, 300)
        # Three at first, one after the other, and then the rows that were left out.
        assert results.stats.batches > 3
        assert first.refused["batches"] == first.refused["requests"] == 0
        assert {record.model for record in first.ledger.requests} == {MODEL}
        assert {result.batch for result in results} != {None}
        assert len(list((tmp_path / "cluster").glob("*.jsonl"))) == results.stats.batches


async def test_rows_are_brought_there_and_back_by_the_users_own_functions(tmp_path: Path) -> None:
    moved: Counter[str] = Counter()

    async def stage(data: bytes, path: str) -> None:
        moved["there"] += data.count(b"\n")
        await asyncio.to_thread(Path(path).write_bytes, data)

    def fetch(path: str) -> bytes:
        moved["back"] += 1
        return Path(path).read_bytes()

    mode = Batch(folder=tmp_path, stage=stage, fetch=fetch, poll_s=POLL)
    async with gateway() as first:
        results = await parallel_map(
            range(50), "Is {}?", backend=backend(first), mode=mode, progress=False
        )
        assert len(results.ok) == 50
        assert moved == {"there": 50, "back": 1}


async def test_another_batch_of_the_users_is_waited_for(tmp_path: Path) -> None:
    async with gateway(BatchApi(seconds=0.5)) as first, backend(first) as adapter:
        other = FirstBatches(adapter._gateway, folder=tmp_path, model=MODEL)
        ask = Request([{"role": "user", "content": "somebody else's"}])
        upload = await other.upload("other", [other.line("1", ask)])
        await other.create("other", other.group(ask), upload)
        results = await parallel_map(
            range(20), "Is {}?", backend=adapter, progress=False,
            mode=Batch(folder=tmp_path, poll_s=POLL),
        )  # fmt: skip
        assert len(results.ok) == 20
        assert first.refused["batches"] >= 1
        assert results.stats.batches == 1


async def test_a_token_that_expires_while_a_batch_is_watched(tmp_path: Path) -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append("new" if asked else "old")
        return asked[-1]

    known = {"old": FirstToken("ada"), "new": FirstToken("ada")}
    async with gateway(BatchApi(seconds=0.6), tokens=known) as first:
        notes = 0

        def stage(data: bytes, path: str) -> None:
            nonlocal notes
            notes += 1
            Path(path).write_bytes(data)
            first.set_token("old", "expired")

        mode = Batch(
            folder=tmp_path, stage=stage, fetch=lambda path: Path(path).read_bytes(), poll_s=POLL
        )
        results = await parallel_map(
            range(30), "Is {}?", backend=backend(first, token=token), mode=mode, progress=False
        )
        assert len(results.ok) == 30
        assert asked == ["old", "new"]
        assert first.refused["inactive token"] >= 1
        assert notes == results.stats.batches == 1
        paid_once(first, 30)


@pytest.mark.parametrize("spoilt", [Fault.truncate, Fault.malformed])
async def test_a_batch_whose_number_was_lost_on_the_way_is_found(
    tmp_path: Path, spoilt: Any
) -> None:
    lost = spoilt(
        times=1, everywhere=True, match=lambda view: view.path.endswith("vllm/v1/batches")
    )
    async with gateway(BatchApi(seconds=0.1), faults=[lost]) as first:
        mode = Batch(folder=tmp_path, poll_s=POLL, settle_s=1.0)
        results = await parallel_map(
            range(20), "Is {}?", backend=backend(first), mode=mode, progress=False
        )
        assert len(results.ok) == 20
        assert first.ledger.other_paths["/resource_server/sophia/vllm/v1/batches"] == 1
        paid_once(first, 20)


async def test_a_batch_that_fails_with_its_job_is_asked_again(tmp_path: Path) -> None:
    # A third of its rows were done: they lie in its folder, and are not asked again.
    async with gateway(BatchApi(seconds=3.0, expires_s=1.0)) as first:
        mode = Batch(folder=tmp_path, poll_s=POLL, leftovers="online")
        results = await parallel_map(
            range(30), "Is {}?", backend=backend(first), mode=mode, progress=False
        )
        assert len(results.ok) == 30
        assert first.refused["batch failed"] >= 1
        assert {result.batch for result in results.ok[-3:]} == {None}
        assert {result.batch for result in results.ok[:3]} != {None}
        paid_once(first, 30)


async def test_a_folder_that_was_not_named() -> None:
    async with gateway() as first:
        with pytest.raises(ConfigError, match="needs a folder on the cluster") as caught:
            await parallel_map(range(3), "Is {}?", backend=backend(first), mode="batch")
        assert "FIRST_BATCH_FOLDER" in caught.value.hint
        assert first.ledger.other_paths["/resource_server/sophia/vllm/v1/batches"] == 0
        # Nobody has asked for batches: calls go out as ever.
        results = await parallel_map(range(3), "Is {}?", backend=backend(first), mode="auto")
        assert len(results.ok) == 3


async def test_a_folder_where_the_server_keeps_files_itself(tmp_path: Path) -> None:
    async with SimulatedServer(batches=BatchApi()) as server:
        with pytest.raises(ConfigError, match="keeps a batch's files itself"):
            await parallel_map(
                range(3), "Is {}?", base_url=server.base_url, mode=Batch(folder=tmp_path)
            )


async def test_a_cluster_without_batches(tmp_path: Path) -> None:
    async with gateway() as first:
        metis = FirstBackend(
            "metis/api", model=MODEL, base_url=first.base_url, token="any", limits=QUICK
        )
        with pytest.raises(ConfigError, match="has no batch API"):
            await parallel_map(range(3), "Is {}?", backend=metis, mode=Batch(folder=tmp_path))


def test_functions_go_in_pairs() -> None:
    with pytest.raises(ConfigError, match="both stage= and fetch="):
        Batch(folder="/x", fetch=lambda path: b"")


CLIENT = """
import sys
from scaleinfer import map_sync
from scaleinfer.backends import FirstBackend, FirstLimits
from scaleinfer.batch import Batch

url, journal, folder, items, rows = sys.argv[1:]
results = map_sync(
    (f"item {number}" for number in range(int(items))), "{}", journal=journal, progress="log",
    backend=FirstBackend(
        "sophia/vllm", model="gpt-oss-120b", base_url=url, token="any",
        limits=FirstLimits(requests_per_second=50),
    ),
    mode=Batch(max_rows=int(rows), poll_s=(0.05, 0.5), settle_s=1.0, folder=folder),
)
assert not results.failed, results.failed[0].error
"""


def client(first: SimulatedFirst, journal: Path, rows: int, items: int) -> subprocess.Popen[bytes]:
    folder = str(journal.parent / "cluster")
    arguments = [first.base_url, str(journal), folder, str(items), str(rows)]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_a_client_killed_twice_loses_nothing_and_pays_once(tmp_path: Path) -> None:
    items, journal = 10_000, tmp_path / "run.db"
    api = BatchApi(seconds=0.5, validating_s=0.1, faults=(Fault.drop(rate=0.01, first=1),))
    with gateway(api).in_thread() as first:
        for kill in range(2):
            batches = first.ledger.other_paths["/resource_server/sophia/vllm/v1/batches"]
            process = client(first, journal, 3000, items)
            while (
                first.ledger.other_paths["/resource_server/sophia/vllm/v1/batches"] == batches
                and process.poll() is None
            ):
                time.sleep(0.01)
            time.sleep(0.3 * kill)
            process.kill()
            process.communicate(timeout=60)
        process = client(first, journal, 3000, items)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert b"Picking up" in err
        paid_once(first, items)
        assert first.ledger.statistics()["answered_again"] == 0
        assert sum(first.ledger.asked().values()) > items, "some rows were left out"
    assert list_runs(journal)[-1].state == "complete"
    rows = [row for row in read_results(journal, everything=True) if row.ok]
    assert Counter(row.index for row in rows) == dict.fromkeys(range(items), 1)
    assert verify(journal).ok
