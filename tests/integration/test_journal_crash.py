"""A real process writes a journal and is killed: nothing lost, nothing twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from scaleinfer.errors import JournalError
from scaleinfer.journal import list_runs, read_results, verify

if TYPE_CHECKING:
    from pathlib import Path

ITEMS = 1500
IN_FLIGHT = 50

WRITER = """
import asyncio, os, sys, time
from hashlib import blake2b
from scaleinfer.journal import Journal, Manifest
from scaleinfer.results import Attempt

path, items, in_flight, nonce = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def say(what, index, payload):
    os.write(1, f"{what} {index} {payload}\\n".encode())

async def main():
    journal = Journal.open(path, Manifest("kill", "f", {}))
    indexes = iter(range(items))
    async def slot():
        for index in indexes:
            # every tenth item is a duplicate of its neighbour
            identity = blake2b(str(index - (index % 10 == 9)).encode(), digest_size=16).digest()
            claim = await journal.claim(identity, key=str(index), index=index)
            if claim.stored is not None:
                say("stored", index, claim.stored.decode())
                continue
            say("asked", index, "")
            await asyncio.sleep(0.005)
            payload = '{"text":"%s-%d"}' % (nonce, index)
            journal.attempt(claim, Attempt(1, "e", time.time(), 0.005, "ok"))
            landed = asyncio.get_running_loop().create_future()
            journal.record(claim, payload.encode(), ok=True, done=landed.set_result)
            assert await landed is None
            say("done", index, payload)
    await asyncio.gather(*(slot() for _ in range(in_flight)))
    await journal.aclose(state="complete", counts={"items": items})
    say("end", 0, "")

asyncio.run(main())
"""


def start(path: Path, nonce: str, output: Path, items: int = ITEMS) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(items), str(IN_FLIGHT), nonce],
            stdout=file,
        )


def lines(output: Path) -> list[tuple[str, int, str]]:
    found = []
    for line in output.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            what, index, payload = line.rstrip("\n").split(" ", 2)
            found.append((what, int(index), payload))
    return found


def test_kill_nine_at_random_moments(tmp_path: Path) -> None:
    path, output, moment = tmp_path / "run.db", tmp_path / "out", random.Random(7)
    reported: dict[int, str] = {}
    asked: Counter[int] = Counter()
    kills = 0
    for round_ in range(60):
        process = start(path, str(round_), output)
        began = time.monotonic()
        while time.monotonic() - began < 20 and b"\n" not in output.read_bytes():
            time.sleep(0.005)
        if kills < 10:
            time.sleep(moment.uniform(0.0, 0.12))
            process.kill()
        ended = process.wait(timeout=30)
        for what, index, payload in lines(output):
            if what == "asked":
                assert index not in reported
                asked[index] += 1
            elif what == "done":
                reported[index] = payload
            elif what == "stored" and index in reported:
                assert payload == reported[index]
        if ended == 0:
            break
        kills += 1
        check_killed(path, reported)
    assert kills == 10
    stored = {result.index: result.payload for result in read_results(path)}
    assert stored.keys() == set(range(ITEMS))
    assert {index: stored[index] for index in reported} == {
        index: json.loads(payload) for index, payload in reported.items()
    }
    assert len(list(read_results(path, everything=True))) == ITEMS
    assert sum(asked.values()) - ITEMS <= kills * IN_FLIGHT
    assert verify(path).ok
    assert [run.state for run in list_runs(path)] == ["killed"] * kills + ["complete"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run.db"]


def check_killed(path: Path, reported: dict[int, str]) -> None:
    """A reader finds everything that was reported, with the dead writer's lock still there."""
    before = path.read_bytes()
    kept = {result.index: result.payload for result in read_results(path)}
    for index, payload in reported.items():
        assert kept[index] == json.loads(payload)
    assert list_runs(path)[-1].counts["ok"] <= ITEMS
    assert path.read_bytes() == before


def test_readers_and_writers_are_refused_while_one_writes(tmp_path: Path) -> None:
    path, output = tmp_path / "run.db", tmp_path / "out"
    process = start(path, "n", output, items=1_000_000)
    try:
        while b"done" not in output.read_bytes():
            time.sleep(0.005)
        began = time.monotonic()
        with pytest.raises(JournalError) as caught:
            list_runs(path)
        assert time.monotonic() - began < 1.0
        assert caught.value.reason == "locked"
        assert f"process {process.pid} on " in caught.value.message
        second = subprocess.run(
            [sys.executable, "-c", WRITER, str(path), "1", "1", "x"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert second.returncode == 1
        assert f"is being written by process {process.pid} on " in second.stderr
    finally:
        process.kill()
        process.wait(timeout=30)
    assert list_runs(path)[-1].state == "killed"


MEMORY = """
import asyncio, os, sys
from hashlib import blake2b
from scaleinfer.journal import Journal, Manifest
from scaleinfer.results import Attempt

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

async def main(path):
    journal = Journal.open(path, Manifest(None, "f", {}))
    async def item(index):
        identity = blake2b(str(index).encode(), digest_size=16).digest()
        claim = await journal.claim(identity, key=identity.hex(), index=index)
        journal.attempt(claim, Attempt(1, "e", 0.0, 0.1, "ok"))
        landed = asyncio.get_running_loop().create_future()
        journal.record(claim, b'{"text":"%s"}' % (b"x" * 300), ok=True, done=landed.set_result)
        await landed
    async def items(start, end):
        for first in range(start, end, 500):
            await asyncio.gather(*(item(index) for index in range(first, first + 500)))
    await items(0, 5_000)
    before = resident()
    await items(5_000, 40_000)
    print(resident() - before)
    await journal.aclose(state="complete", counts={})
    print(os.path.getsize(path) / 40_000 - 312)

asyncio.run(main(sys.argv[1]))
"""


def test_memory_is_flat_and_rows_are_small(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "run.db")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    grown_kib, overhead = (float(line) for line in result.stdout.split())
    assert grown_kib < 10_000
    assert overhead < 400
