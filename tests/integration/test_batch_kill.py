"""`kill -9` of clients in batch mode: no row is lost, and none is paid for twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from scaleinfer.journal import list_runs, read_results, verify
from scaleinfer.testing import BatchApi, Fault, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.testing import ServerProcess

CLIENT = """
import sys
from scaleinfer import map_sync
from scaleinfer.batch import Batch

results = map_sync(
    (f"item {number}" for number in range(int(sys.argv[3]))), "{}", base_url=sys.argv[1],
    model="sim-model", journal=sys.argv[2], progress="log",
    mode=Batch(max_rows=int(sys.argv[4]), poll_s=(0.05, 0.5), settle_s=1.0),
)
assert not results.failed, results.failed[0].error
"""


def client(server: ServerProcess, journal: Path, items: int, rows: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT, server.base_url, str(journal), str(items), str(rows)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def check(server: ServerProcess, journal: Path, items: int) -> None:
    """What the server knows of answers, and what the journal holds."""
    ledger = server.ledger
    assert ledger.counts() == {f"item {number}": 1 for number in range(items)}
    assert ledger.statistics()["answered_again"] == 0
    assert list_runs(journal)[-1].state == "complete"
    rows = [row for row in read_results(journal, everything=True) if row.ok]
    assert Counter(row.index for row in rows) == dict.fromkeys(range(items), 1)
    assert all(row.payload["text"] == f"echo: item {row.index}" for row in rows)
    assert verify(journal).ok


def asked(server: ServerProcess) -> int:
    """Requests for files and batches so far."""
    paths = server.statistics()["other_paths"]
    return sum(number for path, number in paths.items() if "/v1/" in path)


def batches_created(server: ServerProcess) -> int:
    return int(server.statistics()["other_paths"].get("/v1/batches", 0))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("items", "rows", "kills", "seed"), [(10_000, 1500, 2, 1), (2000, 150, 6, 2)]
)
def test_killed_at_random_moments(
    tmp_path: Path, items: int, rows: int, kills: int, seed: int
) -> None:
    journal, chance = tmp_path / "run.db", random.Random(seed)
    api = BatchApi(seconds=2.0, validating_s=0.2, faults=(Fault.drop(rate=0.01, first=1),))
    with SimulatedServer(batches=api).in_process() as server:
        for _ in range(kills):
            seen = asked(server)
            process = client(server, journal, items, rows)
            while asked(server) == seen and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 3.0))
            process.kill()
            process.communicate(timeout=60)
        process = client(server, journal, items, rows)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        check(server, journal, items)
        # Something was left out, or this test shows nothing of it.
        assert sum(server.ledger.asked().values()) > items


@pytest.mark.timeout(120)
def test_killed_between_the_servers_yes_and_our_note_of_it(tmp_path: Path) -> None:
    items, journal = 300, tmp_path / "run.db"
    # The batch is made when the request arrives; its answer comes when the client is dead.
    slow = Fault.delay(30.0, times=2, everywhere=True, match="/v1/batches")
    settings = SimulatedServer(batches=BatchApi(), faults=(slow,), prompt_of=None)
    with settings.in_process() as server:
        for _ in range(2):
            process = client(server, journal, items, 200)
            seen = batches_created(server)
            while batches_created(server) == seen:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.kill()
            process.communicate(timeout=60)
        process = client(server, journal, items, 200)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        assert b"Picking up" in err
        check(server, journal, items)
