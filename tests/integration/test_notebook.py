"""A cell that is interrupted, a kernel that is restarted: only the rest is asked again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.journal import list_runs, verify
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

ITEMS = 200
IN_FLIGHT = 8

# A process of its own: what Jupyter's client leaves open is not ours to clear away.
DRIVER = """
import asyncio, json, sys, urllib.request
import nbformat
from nbclient import NotebookClient

url, call, items, share = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
BEGIN = '''
import asyncio, json
from scaleinfer import map_sync, parallel_map
items = [f"item {number}" for number in range(%d)]
''' % items
RUN = '''
results = %s(items, "{}", base_url=%r, journal="run.db", concurrency=8, progress="notebook")
''' % (call, url)
SAY = '''
await asyncio.sleep(0)
mine = [repr(t.get_coro()) for t in asyncio.all_tasks() if "scaleinfer" in repr(t.get_coro())]
print(json.dumps({"tasks": mine, "stopped": results.stopped, "ok": results.stats.ok,
                  "resumed": results.stats.resumed, "left": results.stats.not_asked}))
'''


def arrived():
    with urllib.request.urlopen(url.replace("/v1", "/ledger/statistics")) as answer:
        return json.load(answer)["arrived"]


async def main():
    cells = [nbformat.v4.new_code_cell(source) for source in (BEGIN, RUN, SAY)]
    book = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(book, timeout=100, allow_errors=True)
    said, counts = [], [0]

    async def run(index):
        cell = book.cells[index]
        await client.async_execute_cell(cell, index)
        said.append([dict(output) for output in cell.outputs])

    async with client.async_setup_kernel():
        await run(0)
        interrupted = asyncio.create_task(run(1))
        while arrived() < share * items:
            await asyncio.sleep(0.01)
        await client.km.interrupt_kernel()
        await interrupted
        await run(2)
        counts.append(arrived())
        if "restart" in sys.argv:
            await client.km.restart_kernel(now=True)
            await client.kc.wait_for_ready(timeout=60)
            await run(0)
        await run(1)
        await run(2)
        counts.append(arrived())
    print(json.dumps({"said": said, "counts": counts}))


asyncio.run(main())
"""


@pytest.fixture
def slow() -> Iterator[SimulatedServer]:
    with SimulatedServer(latency=0.05).in_thread() as server:
        yield server


def driven(server: SimulatedServer, folder: Path, call: str, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, server.base_url, call, str(ITEMS), "0.3", *more],
        cwd=folder, capture_output=True, text=True, timeout=160, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("call", ["await parallel_map", "map_sync"])
@pytest.mark.parametrize("more", [(), ("restart",)], ids=["again", "restarted"])
def test_a_cell_that_was_interrupted_asks_only_the_rest(
    slow: SimulatedServer, tmp_path: Path, call: str, more: tuple[str, ...]
) -> None:
    found = driven(slow, tmp_path, call, *more)

    outputs = [output for cell in found["said"] for output in cell]
    shown = json.dumps(outputs)
    assert not [output for output in outputs if output["output_type"] == "error"], shown[:3000]
    for word in ("Warning", "never retrieved", "never awaited", "was destroyed", "Traceback"):
        assert word not in shown, re.findall(f".{{0,200}}{word}.{{0,200}}", shown)
    first, second = (
        json.loads(output["text"])
        for output in outputs
        if output["output_type"] == "stream" and output["text"].startswith('{"tasks"')
    )
    assert first["tasks"] == second["tasks"] == []
    assert "Ctrl-C" in first["stopped"]
    assert 0.2 * ITEMS < first["ok"] < 0.6 * ITEMS
    assert first["ok"] + first["left"] == ITEMS
    # What had landed is not asked again; at most what was in flight is.
    assert second["stopped"] == ""
    assert second["resumed"] == first["ok"]
    _, before, after = found["counts"]
    assert after - before == ITEMS - first["ok"]
    assert before - first["ok"] <= IN_FLIGHT
    answered = slow.ledger.counts()
    assert set(answered) == {f"item {number}" for number in range(ITEMS)}
    assert sum(answered.values()) - ITEMS <= IN_FLIGHT

    journal = tmp_path / "run.db"
    assert [info.state for info in list_runs(journal)] == ["stopped", "complete"]
    report = verify(journal)
    assert report.problems == []
    assert [account.not_asked for account in report.accounts] == [first["left"], 0]
