"""Memory does not grow with the number of items."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

STREAM = """
import asyncio, gc, json, os, sys
from scaleinfer import Backend, stream_map
from scaleinfer.backends import EndpointStatus
from scaleinfer.results import Completion, Usage

class AtOnce(Backend):
    kind = "memory"
    endpoint = "memory"
    model = "m"
    async def complete(self, request, *, timeout=None):
        await asyncio.sleep(0)
        return Completion("yes " * 20, "stop", Usage(100, 20, 0, 1), "m")
    async def check(self):
        return EndpointStatus("memory", True, "")

def rss():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

async def main(items, warm, journal, ordered):
    rows = ({"id": number, "text": f"row {number} " * 20} for number in range(items))
    seen, sizes = 0, []
    async for result in stream_map(rows, "About {text}", backend=AtOnce(), journal=journal,
                                   ordered=ordered, progress="log"):
        assert result.ok
        seen += 1
        if seen >= warm and seen % (items // 20) == 0:
            sizes.append(rss())
    print(json.dumps({"seen": seen, "sizes": sizes}))

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None, sys.argv[4] == "yes"))
"""


def streamed(items: int, journal: str, ordered: str) -> dict[str, Any]:
    warm = str(items // 20)
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(items), warm, journal, ordered],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["seen"] == items
    assert len(found["sizes"]) == 20
    return found


@pytest.mark.timeout(300)
def test_two_hundred_thousand_items() -> None:
    sizes = streamed(200_000, "", "no")["sizes"]
    assert max(sizes) - sizes[0] <= 20, sizes


@pytest.mark.timeout(300)
def test_with_a_journal_and_in_order(tmp_path: Path) -> None:
    sizes = streamed(30_000, str(tmp_path / "run.db"), "yes")["sizes"]
    assert max(sizes) - sizes[0] <= 20, sizes
