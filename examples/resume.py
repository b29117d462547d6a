"""Kill a run with SIGKILL, run it again, and let the server say what it was asked twice.

Run from the repository root; it needs no model, the server is simulated:

    python examples/resume.py --limit 200
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaleinfer import MapResult, map_sync
from scaleinfer.testing import SimulatedServer

DATA = Path(__file__).parent / "data" / "papers.jsonl"
IN_FLIGHT = 8


def ask(base_url: str, journal: str, limit: int) -> MapResult:
    """Ask about the first `limit` papers; the same call starts a run and resumes it."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    papers = [json.loads(line) for line in lines[:limit]]
    return map_sync(
        papers,
        "Give three keywords for this title: {title}",
        base_url=base_url,
        journal=journal,
        concurrency=IN_FLIGHT,
        progress="none",
        name="resume",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a run and resume it.")
    parser.add_argument("--limit", type=int, default=200, help="how many papers (at most 200)")
    parser.add_argument("--child", nargs=2, metavar=("URL", "JOURNAL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        base_url, journal = options.child
        ask(base_url, journal, options.limit)
        return

    with (
        tempfile.TemporaryDirectory() as folder,
        SimulatedServer(latency=0.05).in_process() as server,
    ):
        journal = str(Path(folder) / "run.db")
        again = [sys.executable, __file__, "--limit", str(options.limit)]
        first = subprocess.Popen([*again, "--child", server.base_url, journal])
        while first.poll() is None and server.ledger.answered < options.limit // 2:
            time.sleep(0.02)
        first.kill()
        first.wait()
        time.sleep(0.2)  # what the first run had sent reaches the server
        asked = len(server.ledger.asked())
        print(f"the first run was killed when it had asked about {asked} of {options.limit} papers")

        results = ask(server.base_url, journal, options.limit)
        twice = sum(count > 1 for count in server.ledger.asked().values())

    resumed = results.stats.resumed
    print(f"the second run found {resumed} answers in the journal")
    print(f"answers: {len(results.ok)} of {options.limit}, lost: {options.limit - len(results.ok)}")
    print(f"asked twice: {twice}, the {asked - resumed} whose answers the journal did not have yet")


if __name__ == "__main__":
    main()
