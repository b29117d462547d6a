"""Three workers on this machine share a map; one of them is killed, and nothing is lost.

Run from the repository root; it needs no model, the server is simulated:

    python examples/fleet_local.py --limit 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet
from scaleinfer.testing import SimulatedServer

DATA = Path(__file__).parent / "data" / "papers.jsonl"
WORKERS = 3


async def run(papers: list[dict[str, object]], base_url: str) -> None:
    # backend="local" has every worker load the embedded model.
    async with Fleet.local(WORKERS, backend=base_url, concurrency=4) as fleet:
        await fleet.ready(WORKERS, timeout=60)
        mapping = asyncio.create_task(
            parallel_map(
                papers,
                "Give three keywords for this title: {title}",
                fleet=fleet,
                progress=False,
            )
        )
        while fleet.status().answered < len(papers) // 4:  # noqa: ASYNC110  # nothing to wait on
            await asyncio.sleep(0.05)
        victim = fleet.status().workers[0]
        os.kill(victim.facts.pid, signal.SIGKILL)
        print(f"killed {victim.name}, which had {victim.held} requests")

        results = await mapping
        # A worker that was lost is started again.
        await fleet.ready(WORKERS, timeout=60)
        print(fleet.status())
    print(f"answers: {len(results.ok)} of {len(papers)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A map over workers on this machine.")
    parser.add_argument("--limit", type=int, default=200, help="how many papers (at most 200)")
    options = parser.parse_args()
    lines = DATA.read_text(encoding="utf-8").splitlines()[: options.limit]
    with SimulatedServer(latency=0.2).in_process() as server:
        asyncio.run(run([json.loads(line) for line in lines], server.base_url))


if __name__ == "__main__":
    main()
