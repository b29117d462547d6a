"""Twenty times `kill -9` in the middle of one run: nothing lost, nothing twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from scaleinfer.journal import list_runs, read_results, verify
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

ITEMS, CONCURRENCY, KILLS = 4000, 16, 20

CLIENT = """
import asyncio, os, sys
from scaleinfer import stream_map

async def main():
    async for result in stream_map(
        (f"item {number}" for number in range(int(sys.argv[3]))), "{}", base_url=sys.argv[1],
        model="sim-model", journal=sys.argv[2], concurrency=int(sys.argv[4]), progress=False,
    ):
        assert result.ok, result.error
        os.write(1, b"%d %d\\n" % (result.index, result.resumed))

asyncio.run(main())
"""


@pytest.mark.timeout(180)
def test_kill_dash_nine(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    chance = random.Random(4)
    reported: set[int] = set()
    asked_again: list[tuple[int, int]] = []
    last_in_flight = in_flight = 0
    with SimulatedServer(latency=(0.02, 0.01)).in_process() as server:
        command = [sys.executable, "-c", CLIENT, server.base_url, str(journal)]
        command += [str(ITEMS), str(CONCURRENCY)]
        for kill in range(KILLS + 1):
            before = server.statistics()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if kill < KILLS:
                while server.statistics()["arrived"] == before["arrived"]:
                    assert process.poll() is None, process.communicate()
                    time.sleep(0.005)
                time.sleep(chance.uniform(0.0, 0.25))
                in_flight = server.statistics()["in_flight"]
                process.kill()
            out, err = process.communicate(timeout=60)
            assert process.returncode == (-9 if kill < KILLS else 0), err.decode()
            lines = [line.split() for line in out.decode().splitlines()]
            fresh = [int(index) for index, resumed in lines if resumed == "0"]
            # What was reported once is on disk: no later run may ask it.
            assert not reported & set(fresh)
            reported |= set(fresh)
            after = server.statistics()
            again = (after["arrived"] - after["prompts"]) - (before["arrived"] - before["prompts"])
            if kill:
                asked_again.append((again, last_in_flight))
            last_in_flight = in_flight
        ledger = server.ledger
    assert list_runs(journal)[-1].state == "complete"
    rows = [row for row in read_results(journal, everything=True) if row.ok]
    assert Counter(row.index for row in rows) == dict.fromkeys(range(ITEMS), 1)
    for row in rows:
        assert row.payload["text"] == f"echo: item {row.index}"
    assert verify(journal).ok
    assert set(ledger.asked()) == {f"item {number}" for number in range(ITEMS)}
    print("asked again, at the server at the kill:", asked_again)
    assert len(asked_again) == KILLS
    assert max(again for again, _ in asked_again) <= CONCURRENCY
