"""Ctrl-C: what had landed comes back within two seconds, connections are closed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scaleinfer.testing import RequestView, ServerProcess

pytestmark = pytest.mark.alone

START = """
import asyncio, itertools, json, sys, time
from scaleinfer import map_sync, parallel_map, stream_map
url, journal = sys.argv[1], sys.argv[2] or None
options = dict(base_url=url, model="sim-model", concurrency=8, progress=False, journal=journal)

def tell(results, **more):
    told = [(result.index, result.ok, type(result.error).__name__) for result in results]
    print(json.dumps({"results": told, **more}), flush=True)
"""

MAPS = {
    "parallel_map": """
results = asyncio.run(parallel_map(range(100), "{}", **options))
tell(results, stopped=results.stopped)
""",
    "map_sync": """
results = map_sync(range(100), "{}", **options)
tell(results, stopped=results.stopped)
""",
    "map_sync in a loop": """
async def main():
    return map_sync(range(100), "{}", **options)
results = asyncio.run(main())
tell(results, stopped=results.stopped)
""",
    "generator": """
results = map_sync((number for number in range(100)), "{}", **options)
tell(results, stopped=results.stopped)
""",
    "slow list": """
class Slow(list):
    def __iter__(self):
        for number in super().__iter__():
            if number > 60:
                time.sleep(0.1)
            yield number
results = map_sync(Slow(range(200)), "{}", **options)
tell(results[:100], stopped=results.stopped, all=len(results))
""",
    "several questions": """
results = map_sync(range(100), lambda n: {"a": f"{n}", "b": f"{n} again"}, **options)
tell(results, stopped=results.stopped)
""",
    "stream_map": """
landed = []
async def main():
    async for result in stream_map(itertools.count(), "{}", **options):
        landed.append(result)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    tell(landed, stopped="KeyboardInterrupt")
""",
    "two maps": """
async def main():
    return await asyncio.gather(
        parallel_map(range(100), "{}", **options),
        parallel_map(range(100, 110), "{}", **(options | {"journal": None})),
    )
one, two = asyncio.run(main())
assert two.stopped == one.stopped
tell(one, stopped=one.stopped)
""",
}


def quick_then_slow(view: RequestView) -> float:
    """The first twenty items are answered at once, the others never."""
    return 0.0 if int(view.prompt.split()[0]) < 20 else 60.0


@pytest.fixture(scope="module")
def slow_server() -> Iterator[ServerProcess]:
    with SimulatedServer(latency=quick_then_slow).in_process() as server:
        yield server


def interrupted(script: str, server: ServerProcess, journal: str) -> tuple[dict[str, Any], float]:
    """Run a script until the slow items are in flight, press Ctrl-C; return what it told."""
    aborted = server.statistics()["aborted"]
    process = subprocess.Popen(
        [sys.executable, "-c", START + script, server.base_url, journal],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while server.statistics()["in_flight"] < 8:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(0.2)  # what has been answered is to be on disk
        pressed = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
        took = time.monotonic() - pressed
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert out, err.decode()
    assert b"Traceback" not in err
    assert server.statistics()["in_flight"] == 0
    assert server.statistics()["aborted"] - aborted >= 8
    return json.loads(out), took


@pytest.mark.parametrize("with_journal", [False, True], ids=["", "journal"])
@pytest.mark.parametrize("kind", MAPS)
def test_ctrl_c_returns_what_landed(
    kind: str, with_journal: bool, slow_server: ServerProcess, tmp_path: Path
) -> None:
    journal = str(tmp_path / "run.db") if with_journal else ""
    told, took = interrupted(MAPS[kind], slow_server, journal)
    assert took < 2.0
    ok = {index for index, good, _ in told["results"] if good}
    assert ok == set(range(20))
    if kind == "stream_map":
        assert told["stopped"] == "KeyboardInterrupt"
        return
    assert told["stopped"] == "Ctrl-C was pressed."
    indexes = [index for index, _, _ in told["results"]]
    assert indexes == list(range(len(indexes)))
    if kind != "generator":
        assert len(indexes) == 100
    assert told.get("all", 200) == 200
    assert {name for _, good, name in told["results"] if not good} == {"RunStopped"}


def test_a_second_ctrl_c_goes_through(slow_server: ServerProcess) -> None:
    script = """
def stuck(number):
    if number == 30:
        print("stuck", flush=True)
        time.sleep(60)
    return f"{number}"
try:
    map_sync(range(100), stuck, **options)
except KeyboardInterrupt:
    tell([], stopped="at the second")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", START + script, slow_server.base_url, ""], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + 30
        while not process.stdout.readline() and time.monotonic() < deadline:
            pass
        for _ in range(2):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.3)
        out, _ = process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert json.loads(out)["stopped"] == "at the second"
