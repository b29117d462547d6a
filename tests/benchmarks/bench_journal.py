"""What the journal costs: a loop over simulated calls, without it and with it.

Each item is one claim, one call of 30 ms (`asyncio.sleep`), one attempt and one record. A slot
either waits until its record is on disk (`await`) or takes the next item at once and lets the
record land behind it (`behind`); 2,000 items/s is the rate the target speaks of.

Run: python tests/benchmarks/bench_journal.py [--seconds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from scaleinfer.journal import Journal, JournalStatistics, Manifest
from scaleinfer.results import Attempt

if TYPE_CHECKING:
    from scaleinfer.errors import JournalError

CALL_S = 0.03
PAYLOAD = b'{"text":"' + b"yes, it is soluble in water. " * 10 + b'","usage":[40,20,0,1]}'


@dataclass(slots=True)
class Measured:
    """One run of the loop."""

    rate: float
    cpu: float
    statistics: JournalStatistics | None = None
    bytes_per_item: float = 0.0


class Load:
    """A number of slots that take items until the time is over."""

    def __init__(self, journal: Journal | None, slots: int, rate: float, *, behind: bool) -> None:
        self.journal = journal
        self.slots = slots
        self.rate = rate
        self.behind = behind
        self.started = 0
        self.done = 0
        self.began = 0.0

    async def run(self, seconds: float) -> Measured:
        """Run the slots and return items a second and CPU seconds a second."""
        self.began = time.monotonic()
        before = _cpu()
        async with asyncio.TaskGroup() as group:
            for _ in range(self.slots):
                group.create_task(self._slot(self.began + seconds))
        if self.journal is not None:
            await self.journal.flush()
        took = time.monotonic() - self.began
        return Measured(self.done / took, (_cpu() - before) / took)

    async def _slot(self, end: float) -> None:
        while time.monotonic() < end:
            index = self.started
            self.started += 1
            if self.rate:
                await asyncio.sleep(max(0.0, self.began + index / self.rate - time.monotonic()))
            await self._item(index)

    async def _item(self, index: int) -> None:
        if self.journal is None:
            await asyncio.sleep(CALL_S)
            self.done += 1
            return
        identity = blake2b(index.to_bytes(8, "big"), digest_size=16).digest()
        claim = await self.journal.claim(identity, key=identity.hex(), index=index)
        await asyncio.sleep(CALL_S)
        self.journal.attempt(
            claim, Attempt(1, "http://127.0.0.1:8000/v1", time.time(), CALL_S, "ok", None, 40, 20)
        )
        landed = asyncio.get_running_loop().create_future()

        def done(error: JournalError | None) -> None:
            self.done += error is None
            landed.set_result(None)

        self.journal.record(claim, PAYLOAD, ok=True, done=done)
        if not self.behind:
            await landed


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(
    folder: Path | None, slots: int, rate: float, seconds: float, *, behind: bool = False
) -> Measured:
    """Run one load, with a journal in `folder` unless that is `None`."""
    if folder is None:
        return await Load(None, slots, rate, behind=behind).run(seconds)
    path = folder / f"bench-{os.getpid()}-{time.monotonic_ns()}.db"
    journal = Journal.open(path, Manifest("bench", "bench", {}))
    load = Load(journal, slots, rate, behind=behind)
    measured = await load.run(seconds)
    measured.statistics = journal.statistics()
    await journal.aclose(state="complete", counts={})
    measured.bytes_per_item = path.stat().st_size / max(load.done, 1) - len(PAYLOAD)
    path.unlink()
    return measured


async def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print(
        f"{'slots':>5} {'offered/s':>9} {'mode':>6} {'none/s':>7} {'journal/s':>9} {'cost':>6} "
        f"{'cpu':>5} {'cpu+':>5} {'commits/s':>9} {'commit ms':>9} "
        f"{'claim ms':>8} {'record ms':>9} {'B/item':>6}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for slots, rate in ((64, 2000.0), (128, 2000.0), (64, 0.0), (128, 0.0), (512, 0.0)):
            for behind in (False, True):
                pairs = [
                    (
                        await measure(None, slots, rate, options.seconds),
                        await measure(folder, slots, rate, options.seconds, behind=behind),
                    )
                    for _ in range(options.repeats)
                ]
                pairs.sort(key=lambda pair: pair[1].rate / pair[0].rate)
                _show(slots, rate, "behind" if behind else "await", *pairs[len(pairs) // 2])


def _show(slots: int, rate: float, mode: str, none: Measured, with_: Measured) -> None:
    s = with_.statistics
    assert s is not None
    print(
        f"{slots:5d} {rate or float('inf'):9.0f} {mode:>6} {none.rate:7.0f} {with_.rate:9.0f} "
        f"{1 - with_.rate / none.rate:6.1%} {none.cpu:5.2f} {with_.cpu:5.2f} "
        f"{s.commits * with_.rate / max(s.records, 1):9.0f} "
        f"{1e3 * s.commit_s / max(s.commits, 1):9.2f} "
        f"{1e3 * s.claim_wait_s / max(s.claims, 1):8.2f} "
        f"{1e3 * s.record_wait_s / max(s.records, 1):9.2f} {with_.bytes_per_item:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
