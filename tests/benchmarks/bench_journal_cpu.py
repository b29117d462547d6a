"""CPU time that the journal takes of each thread, per item: claim, one attempt, one record.

Items come at a fixed rate and are recorded as many places later as are outstanding, so that the
shape is that of a run whose endpoint keeps so many calls in flight. The loop wakes at the same
moments with and without the journal; the difference of its thread's CPU time is the journal's,
callbacks and wake-ups included. What other threads took is the writer's. `--busy` burns so many
microseconds per item in the loop, as a client that is bound by its CPU does.

Run: python tests/benchmarks/bench_journal_cpu.py [--rate 6000] [--seconds 5] [--busy 0]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from scaleinfer.journal import Journal, JournalStatistics, Manifest
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from scaleinfer.errors import JournalError
    from scaleinfer.journal import Claim

TICK_S = 0.002
PAYLOAD = b'{"text":"' + b"yes, it is soluble in water. " * 10 + b'","usage":[40,20,0,1]}'
ENDPOINT = "http://127.0.0.1:8000/v1"


@dataclass(slots=True)
class Cost:
    """CPU seconds of one run and what the journal says of it."""

    wall: float
    loop: float
    others: float
    statistics: JournalStatistics | None = None


class Stream:
    """Claims items at a rate and records each when `outstanding` later ones have been claimed."""

    def __init__(self, journal: Journal | None, count: int, outstanding: int, busy: float) -> None:
        self.journal = journal
        self.outstanding = outstanding
        self.busy = busy
        self.landed = 0
        self.failed: list[JournalError] = []
        self.identities = [
            blake2b(n.to_bytes(8, "big"), digest_size=16).digest() for n in range(count)
        ]
        self.keys = [identity.hex() for identity in self.identities]
        self.held: deque[Claim | None] = deque()
        self.ended = asyncio.Event()

    def done(self, error: JournalError | None) -> None:
        """Count a record that is on disk."""
        if error is not None:
            self.failed.append(error)
        self.landed += 1
        if self.landed == len(self.keys):
            self.ended.set()

    async def run(self, rate: float) -> Cost:
        """Run the stream through; the first `outstanding` claims are not counted."""
        await self._claim(0, self.outstanding)
        began, loop, process = time.monotonic(), time.thread_time(), time.process_time()
        claimed, per_tick, tick = self.outstanding, rate * TICK_S, 0
        while self.held:
            tick += 1
            upto = min(self.outstanding + int(tick * per_tick), len(self.keys))
            finish = int(tick * per_tick) - int((tick - 1) * per_tick)
            for claim in [self.held.popleft() for _ in range(min(finish, len(self.held)))]:
                self._finish(claim)
            await self._claim(claimed, upto)
            claimed = upto
            await asyncio.sleep(max(began + tick * TICK_S - time.monotonic(), 0))
        await self.ended.wait()
        used = time.thread_time() - loop
        others = time.process_time() - process - used
        return Cost(time.monotonic() - began, used, others)

    async def _claim(self, start: int, end: int) -> None:
        for index in range(start, end):
            claim = None
            if self.journal is not None:
                identity = self.identities[index]
                claim = await self.journal.claim(identity, key=self.keys[index], index=index)
            self.held.append(claim)

    def _finish(self, claim: Claim | None) -> None:
        if self.busy:
            end = time.perf_counter() + self.busy
            while time.perf_counter() < end:
                pass
        attempt = Attempt(1, ENDPOINT, time.time(), 0.03, "ok", None, 40, 20)
        if self.journal is None or claim is None:
            self.done(None)
            return
        self.journal.attempt(claim, attempt)
        self.journal.record(claim, PAYLOAD, ok=True, done=self.done)


async def measure(
    folder: Path, count: int, outstanding: int, rate: float, busy: float
) -> tuple[Cost, Cost]:
    """Return the cost of a stream without and with a journal in `folder`."""
    without = await Stream(None, count, outstanding, busy).run(rate)
    path = folder / "bench.db"
    journal = Journal.open(path, Manifest("bench", "bench", {}))
    stream = Stream(journal, count, outstanding, busy)
    with_ = await stream.run(rate)
    with_.statistics = journal.statistics()
    await journal.aclose(state="complete", counts={})
    path.unlink()
    if stream.failed:
        raise stream.failed[0]
    return without, with_


async def main() -> None:
    """Print a table; of several repeats the one with the least CPU time in all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=6000.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--busy", type=float, default=0.0, help="us burnt in the loop per item")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--outstanding", type=int, nargs="*", default=[64, 1000, 10_000])
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print("outstanding  items/s  loop us  writer us  commits/s  rows/commit  commit ms  record ms")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for outstanding in options.outstanding:
            count = outstanding + int(options.rate * options.seconds)
            pairs = [
                await measure(Path(name), count, outstanding, options.rate, options.busy * 1e-6)
                for _ in range(options.repeats)
            ]
            without, with_ = min(pairs, key=lambda pair: pair[1].loop + pair[1].others)
            s = with_.statistics
            assert s is not None
            commits, records = max(s.commits, 1), max(s.records, 1)
            print(
                f"{outstanding:11d} {count / with_.wall:8.0f} "
                f"{1e6 * (with_.loop - without.loop) / count:8.1f} "
                f"{1e6 * with_.others / count:10.1f} {s.commits / with_.wall:10.0f} "
                f"{s.rows / commits:12.0f} {1e3 * s.commit_s / commits:10.2f} "
                f"{1e3 * s.record_wait_s / records:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(main())
