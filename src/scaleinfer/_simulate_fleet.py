"""A fleet of workers that pull leases from one coordinator: simulated lease by lease.

A worker's pace within a lease comes from processes that were simulated item by item.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from scaleinfer._simulate_settings import Spread, drawn

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    from scaleinfer._simulate_process import Trace

__all__ = ["Fleet", "FleetTrace", "Leases", "Pace"]


@dataclass(frozen=True, slots=True)
class Leases:
    """How a fleet's workers come by their items.

    Attributes:
        items: Items in a full lease; they shrink towards the end, to half of what is left
            over all workers.
        least: Items in the smallest one, but for the very last.
        overhead_s: Seconds of the coordinator's core for one lease.
        exchange_s: Seconds that a question and its answer are on their way.
    """

    items: int
    least: int
    overhead_s: float
    exchange_s: float


class Pace:
    """When a worker that never lacks items sends its k-th one, from one simulated process.

    Args:
        trace: What that process did.
        rate: Items a second beyond what was simulated.

    Attributes:
        seconds_per_item: Mean time from an item's sending to its result.
    """

    __slots__ = ("_drains", "_per_item", "_starts", "seconds_per_item")

    def __init__(self, trace: Trace, rate: float) -> None:
        starts, ends = trace.starts, trace.ends
        self._starts: array[float] = starts
        self._per_item = 1 / rate
        # Had the k-th item been the last one, the process would have been done so much later:
        # those in flight are the latest of all that were sent before.
        latest = accumulate(ends, max)
        self._drains = [end - start for end, start in zip(latest, starts, strict=True)]
        self.seconds_per_item = (sum(ends) - sum(starts)) / len(starts)

    def start(self, number: int) -> float:
        """Return when the item with this number (from 0) is sent."""
        starts = self._starts
        if number < len(starts):
            return starts[number]
        return starts[-1] + (number - len(starts) + 1) * self._per_item

    def drain(self, number: int, chance: float) -> float:
        """Return how long after the start of item `number`, the last one, all results are there.

        Args:
            number: The item.
            chance: 0 to 1; picks one of the places of the simulated run that are alike.
        """
        drains = self._drains
        # Until as many were sent as can be in flight the batch is filling.
        half = len(drains) // 2
        if number < half:
            return drains[number]
        return drains[half + int(chance * (len(drains) - half))]


class _Worker:
    __slots__ = ("drain_at", "held", "pace", "shift", "slowness")

    def __init__(self, pace: Pace, slowness: float, drain_at: float) -> None:
        self.pace = pace
        self.slowness = slowness
        self.drain_at = drain_at
        self.held = 0
        self.shift = 0.0

    def start(self, number: int) -> float:
        return self.shift + self.slowness * self.pace.start(number)


@dataclass(slots=True)
class FleetTrace:
    """What a fleet did.

    Attributes:
        spans: For every lease: when its first and its last result came, and how many items.
        ends: When each worker had its last result, or was told that nothing is left.
        dry: When the coordinator had nothing left.
        first: When the first item reached a worker.
        messages: Questions that the coordinator answered until then.
        coordinator: Share of the time, until then, that its core was busy.
        starved: Share of the workers' time that they waited for a lease, after their first one.
        leases: Leases given.
    """

    spans: list[tuple[float, float, int]]
    ends: list[float]
    dry: float
    first: float
    messages: int
    coordinator: float
    starved: float
    leases: int


class Fleet:
    """Workers and their coordinator.

    Args:
        paces: Kinds of workers; each worker is one of them by chance.
        workers: How many there are.
        leases: How they come by their items.
        start_s: Seconds from the job's start until a worker can take items.
        speed_cv: Coefficient of variation of the workers' speed.
        seed: Another seed, other chances.
    """

    def __init__(
        self,
        paces: Sequence[Pace],
        workers: int,
        leases: Leases,
        *,
        start_s: Spread,
        speed_cv: float,
        seed: int,
    ) -> None:
        chance = random.Random(f"{seed} fleet")
        draw_start = drawn(start_s, f"{seed} start")
        draw_speed = drawn((1.0, speed_cv), f"{seed} speed")
        self._leases = leases
        self._begins = [draw_start() for _ in range(workers)]
        self._workers = [
            _Worker(paces[int(chance.random() * len(paces))], 1 / draw_speed(), chance.random())
            for _ in range(workers)
        ]
        self._starved = 0.0

    def run(self, items: int) -> FleetTrace:
        """Have the workers do so many items."""
        leases, workers = self._leases, self._workers
        way = leases.exchange_s / 2
        asking = [(begin + way, number) for number, begin in enumerate(self._begins)]
        heapq.heapify(asking)
        free, left = 0.0, items
        spans: list[tuple[float, float, int]] = []
        ends = [0.0] * len(workers)
        dry = first = 0.0
        messages = given = 0
        while asking:
            arrived, number = heapq.heappop(asking)
            worker = workers[number]
            free = max(arrived, free) + leases.overhead_s
            got = free + way
            if not left:
                ends[number] = self._finished(worker, got)
                continue
            size = min(leases.items, max(leases.least, left // (2 * len(workers))), left)
            if left == items:
                first = got
            left -= size
            messages += 1
            given += 1
            if not left:
                dry = free
            self._take(worker, got, size)
            took = worker.slowness * worker.pace.seconds_per_item
            spans.append(
                (
                    worker.start(worker.held - size) + took,
                    worker.start(worker.held - 1) + took,
                    size,
                )
            )
            # It asks for more while half a lease is unsent.
            again = worker.start(worker.held - 1 - size // 2)
            heapq.heappush(asking, (max(got, again) + way, number))
        busy = messages * leases.overhead_s / max(dry - min(self._begins), leases.overhead_s, 1e-9)
        time = sum(ends) - sum(self._begins)
        starved = self._starved / time if time > 0 else 0.0
        return FleetTrace(spans, ends, dry, first, messages, min(busy, 1.0), starved, given)

    def _take(self, worker: _Worker, got: float, size: int) -> None:
        idle_since = worker.start(worker.held)
        if not worker.held:
            worker.shift = got
        elif got > idle_since:
            worker.shift += got - idle_since
            self._starved += got - idle_since
        worker.held += size

    @staticmethod
    def _finished(worker: _Worker, told: float) -> float:
        if not worker.held:
            return told
        last = worker.held - 1
        drain = worker.pace.drain(last, worker.drain_at)
        return worker.start(last) + worker.slowness * drain
