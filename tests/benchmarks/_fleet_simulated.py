"""A fleet in simulated time: the real lease table, the real paces, no processes.

Messages take some milliseconds each way. What a client or a worker computes takes no time, so
this shows what the rules cost, apart from the machine.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

from scaleinfer.fleet._leases import Grant, LeaseTable
from scaleinfer.fleet._pace import Pace, interval_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_BYTES = 450_000
_BYTES = 150
_AHEAD = 2


class _Worker:
    def __init__(self, name: str, seconds: float, places: int) -> None:
        self.name = name
        self.seconds = seconds
        self.places = places
        self.pace = Pace(interval_for(1, idle=True))
        self.backlog: deque[tuple[int, int]] = deque()
        self.working: set[int] = set()
        self.done: list[int] = []
        self.back: list[tuple[int, int]] = []
        self.number = self.ack = -1
        self.waiting = False
        self.wakes = 0.0


class SimulatedFleet:
    """Workers of different speeds that share tasks of the same length.

    Args:
        seconds: How long each worker takes for a task.
        places: Tasks that each works on at once.
        latency: Seconds that a message takes one way.
    """

    def __init__(self, seconds: Sequence[float], *, places: int, latency: float = 0.005) -> None:
        self.now = 0.0
        self.table = LeaseTable()
        self._latency = latency
        self._left = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._workers = [
            _Worker(f"worker-{number}", each, places) for number, each in enumerate(seconds)
        ]
        for number, worker in enumerate(self._workers):
            # They have been there for a while, each at a moment of its own.
            worker.pace.sent(-0.25 * number / len(self._workers), 0)
            self._look(worker)

    def run(self, tasks: int) -> float:
        """Do so many tasks; return the seconds until the last answer has come."""
        self._left = tasks
        self._fill()
        while len(self.table) or self._left:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.now

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._order), event))

    def _fill(self) -> None:
        places = max(64, _AHEAD * self.table.room)
        while self._left and len(self.table) < places:
            self.table.add(1, size=_BYTES)
            self._left -= 1

    def _look(self, worker: _Worker) -> None:
        """Begin what fits, and send a message if one is due."""
        while worker.backlog and len(worker.working) < worker.places:
            number, _ = worker.backlog.popleft()
            worker.working.add(number)
            self._at(self.now + worker.seconds, lambda n=number: self._answered(worker, n))  # type: ignore[misc] # mypy sees no type in a default
        if worker.waiting:
            return
        starving = not worker.backlog and len(worker.working) < worker.places
        due = worker.pace.due(starving=starving and bool(worker.done))
        if due <= self.now:
            self._send(worker)
        elif not worker.wakes or due < worker.wakes:
            worker.wakes = due
            self._at(due, lambda: self._woken(worker))

    def _woken(self, worker: _Worker) -> None:
        worker.wakes = 0.0
        self._look(worker)

    def _answered(self, worker: _Worker, number: int) -> None:
        if number in worker.working:
            worker.working.discard(number)
            worker.done.append(number)
            self._look(worker)

    def _send(self, worker: _Worker) -> None:
        worker.waiting = True
        worker.number += 1
        worker.pace.sent(self.now, len(worker.done))
        said = (worker.number, worker.ack, worker.pace.room(worker.places), len(worker.backlog))
        done, back, worker.done, worker.back = worker.done, worker.back, [], []
        self._at(self.now + self._latency, lambda: self._taken(worker, said, done, back))

    def _taken(
        self,
        worker: _Worker,
        said: tuple[int, int, int, int],
        done: list[int],
        back: list[tuple[int, int]],
    ) -> None:
        table, name = self.table, worker.name
        number, ack, room, unbegun = said
        table.message(name, self.now, number=number, ack=ack, room=room, unbegun=unbegun)
        table.interval = interval_for(table.workers)
        for task, fence in back:
            table.handed_back(name, task, fence)
        for task in done:
            table.answered(name, task, self.now)
        grant = table.grant(name, self.now, most_bytes=_MOST_BYTES)
        interval = interval_for(table.workers, idle=not len(table))
        self._fill()
        self._at(self.now + self._latency, lambda: self._replied(worker, number, grant, interval))

    def _replied(self, worker: _Worker, number: int, grant: Grant, interval: float) -> None:
        worker.waiting, worker.ack, worker.pace.interval = False, number, interval
        dropped = set(grant.drop)
        worker.working -= dropped
        worker.backlog = deque(one for one in worker.backlog if one[0] not in dropped)
        for _ in range(min(grant.give_back, len(worker.backlog))):
            worker.back.append(worker.backlog.pop())
        worker.backlog.extend(grant.leases)
        self._look(worker)
