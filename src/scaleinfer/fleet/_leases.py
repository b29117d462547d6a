"""Who works on what: leases of tasks to workers. A plain state machine: the clock is passed in.

Messages between workers and coordinator may be lost, late or doubled, and workers may vanish at
any moment. Four rules keep every task in one place and no answer counted twice:

* Each lease of a task has a number, the fence, one higher than any before. A worker that hands a
  task back names its fence; an old one changes nothing.
* What a reply granted counts as lost if the worker's next message does not acknowledge it.
* A worker that is silent for too long loses its leases; its tasks go out again, first of all.
* The first answer to a task counts, whoever brings it; every other is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Grant", "LeaseStatistics", "LeaseTable", "WorkerStatistics"]

_SUSPECT = 2
_LATE = 3.0
"""A task out for so many times the usual may be asked a second time, if a worker is idle."""
_SILENT = 3
"""Messages that did not come, after which a worker's tasks may be asked a second time."""
_MEMORY = 256
"""Answers whose median is the usual time; a mean would be moved by the few of a slow worker,
which are the ones to tell apart."""
_OWN_MEMORY = 8
_WORTH = 2.0
"""A task whose worker will take so many times the usual for the rest of it may be asked a second
time."""
_LOOK_AGAIN = 0.2
"""Part of an interval after which late tasks are looked for again; it means to look at all."""
_LAG = 3.0


@dataclass(slots=True)
class Grant:
    """What a worker is told.

    Attributes:
        leases: Tasks it shall do, each with its fence.
        drop: Tasks it need not do any more: answered elsewhere, or withdrawn.
        give_back: Tasks it shall hand back of those it has not begun.
    """

    leases: list[tuple[int, int]] = field(default_factory=list)
    drop: list[int] = field(default_factory=list)
    give_back: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """A worker at one moment.

    Attributes:
        name: Its name.
        held: Tasks leased to it.
        unbegun: Tasks among them that it had not begun when it last said.
        room: Tasks it can make use of at once.
        answered: Answers that counted.
        seen: The clock when it was last heard of.
    """

    name: str
    held: int
    unbegun: int
    room: int
    answered: int
    seen: float


@dataclass(frozen=True, slots=True)
class LeaseStatistics:
    """A lease table at one moment.

    Attributes:
        queued: Tasks that nobody holds.
        leased: Tasks that a worker holds.
        answered: Tasks that were answered.
        doubled: Answers that came after another.
        requeued: Leases that ended without an answer.
        copies: Tasks that were given to a second worker while the first still had them.
        lost_workers: Workers given up.
        workers: The workers.
    """

    queued: int
    leased: int
    answered: int
    doubled: int
    requeued: int
    copies: int
    lost_workers: int
    workers: tuple[WorkerStatistics, ...]


class _Task:
    __slots__ = ("fence", "holders", "job", "losses", "once", "priority", "since", "size")

    def __init__(self, job: int, priority: int, size: int, *, once: bool = False) -> None:
        self.job = job
        self.priority = priority
        self.size = size
        self.once = once
        self.fence = 0
        self.losses = 0
        self.since = 0.0
        self.holders: dict[str, int] = {}


class _Worker:
    __slots__ = (
        "answered", "drop", "granted", "last", "leases", "recalled", "room", "seen", "told",
        "unbegun", "usual",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.seen = now
        self.room = 0
        self.unbegun = 0
        self.recalled = 0
        self.told = 0
        self.answered = 0
        self.usual = 0.0
        self.last = -1
        self.leases: dict[int, int] = {}
        self.drop: list[int] = []
        self.granted: deque[tuple[int, list[tuple[int, int]]]] = deque()


class LeaseTable:
    """Tasks, and the workers that hold them.

    A task is a number, a size and the job it belongs to. The table knows nothing of what is
    asked.

    Args:
        most_losses: A task whose holders were lost so many times is given up: it may be what
            kills them. From the second loss on a worker gets one such task at a time, so that
            only the guilty one keeps count.
        copies_share: Most second copies, as a share of the answers; and one more.

    Attributes:
        interval: Seconds between two messages of a worker.
    """

    def __init__(self, *, most_losses: int = 4, copies_share: float = 0.03) -> None:
        self.interval = 0.1
        self._most_losses = most_losses
        self._copies_share = copies_share
        self._tasks: dict[int, _Task] = {}
        self._workers: dict[str, _Worker] = {}
        # Priority, then job, then its tasks in order.
        self._queues: dict[int, dict[int, deque[int]]] = {}
        self._leased_of: dict[int, int] = {}
        self._next = 0
        self._queued = self._room = 0
        self._answered = self._doubled = self._requeued = self._copies = self._lost = 0
        self._times: deque[float] = deque(maxlen=_MEMORY)
        self._usual = math.inf
        self._late_at = -math.inf
        self._late_tasks: list[tuple[int, str]] = []
        self._looked: float | None = None

    # -- tasks -----------------------------------------------------------------------------

    def add(self, job: int, *, priority: int = 0, size: int = 0, once: bool = False) -> int:
        """Add a task and return its number.

        Args:
            job: Tasks of the same job come from the same map; jobs share the workers.
            priority: Tasks with a higher one go first.
            size: Bytes it takes in a message.
            once: True to give it up rather than have it done again after its worker was lost,
                and never to give it to a second one.
        """
        number = self._next
        self._next += 1
        self._tasks[number] = _Task(job, priority, size, once=once)
        self._queue(number, last=True)
        return number

    def withdraw(self, number: int) -> None:
        """Nobody wants the answer any more."""
        task = self._tasks.pop(number, None)
        if task is None:
            return
        if not task.holders:
            self._queued -= 1  # its number stays in the queue until it is met there
        self._release(number, task)

    def answered(self, worker: str, number: int, now: float) -> bool:
        """A worker brings an answer; return True if it is the first to this task."""
        task = self._tasks.pop(number, None)
        if task is None:
            self._doubled += 1
            return False
        holder = self._workers.get(worker)
        if holder is not None:
            holder.answered += 1
            if worker in task.holders:
                self._took(now - task.since, holder if len(task.holders) == 1 else None)
        self._answered += 1
        if not task.holders:
            # Its worker was given up, and nobody else has it yet.
            self._queued -= 1
        self._release(number, task, but=worker)
        return True

    def handed_back(self, worker: str, number: int, fence: int) -> None:
        """A worker hands back a task that it has not begun."""
        task, holder = self._tasks.get(number), self._workers.get(worker)
        if task is None or task.holders.get(worker) != fence:
            return
        if holder is not None:
            self._end_lease(worker, number, task)

    # -- workers ---------------------------------------------------------------------------

    def message(
        self, worker: str, now: float, *, number: int, ack: int, room: int, unbegun: int
    ) -> bool:
        """Take note of a worker's message, before what it brings is told; return if it is new.

        Args:
            worker: Its name; a worker that starts anew has a new one.
            now: The clock, in seconds.
            number: The worker's count of its messages.
            ack: The `number` of the latest message whose reply it has got; -1 for none.
            room: Tasks it can make use of at once.
            unbegun: Tasks it holds and has not begun.
        """
        known = self._workers.get(worker)
        if known is None:
            known = self._workers[worker] = _Worker(now)
        known.seen = now
        if number <= known.last:
            return False
        self._room += room - known.room
        known.last, known.room, known.unbegun, known.told = number, room, unbegun, 0
        while known.granted:
            replied, leases = known.granted.popleft()
            if replied > ack:
                for task_number, fence in reversed(leases):
                    self.handed_back(worker, task_number, fence)
        return True

    def grant(self, worker: str, now: float, *, most_bytes: int) -> Grant:
        """Return what to tell a worker in reply to the message it has just sent.

        Args:
            worker: Its name.
            now: The clock, in seconds.
            most_bytes: Size of the tasks that fit into the reply; one fits always.
        """
        holder = self._workers[worker]
        grant = Grant(drop=holder.drop)
        holder.drop = []
        # As many as it may have asked for by what it has not begun: what it holds is known here.
        want, size = holder.room - len(holder.leases), 0
        suspect = any(self._tasks[n].losses >= _SUSPECT for n in holder.leases)
        passed: list[int] = []
        while want > 0 and (number := self._pop()) is not None:
            task = self._tasks[number]
            if grant.leases and size + task.size > most_bytes:
                passed.append(number)
                break
            if task.losses >= _SUSPECT:
                if suspect:
                    passed.append(number)
                    continue
                suspect = True
            size += task.size
            grant.leases.append((number, self._lease(worker, number, task, now)))
            want -= 1
        for number in reversed(passed):
            self._queue(number, last=False)
        if want > 0 and not self._queued:
            self._at_the_end(worker, holder, grant, want, now)
        if grant.leases:
            holder.granted.append((holder.last, list(grant.leases)))
        grant.give_back = holder.told = holder.recalled
        holder.recalled = 0
        return grant

    def leave(self, worker: str) -> None:
        """A worker has ended as it should; what it still holds goes out again."""
        holder = self._workers.pop(worker, None)
        if holder is not None:
            self._room -= holder.room
            for number in reversed(holder.leases):
                self._end_lease(worker, number, self._tasks[number])

    def lost(self, worker: str, *, blame: bool = True) -> list[int]:
        """A worker is gone; return the tasks that are given up because too many were.

        Args:
            worker: Its name.
            blame: False if what it held cannot be the cause.
        """
        holder = self._workers.pop(worker, None)
        if holder is None:
            return []
        self._lost += 1
        self._room -= holder.room
        held = {number: self._tasks[number] for number in holder.leases}
        suspects = {n: t for n, t in held.items() if t.losses >= _SUSPECT}
        for task in (suspects or held).values() if blame else ():
            task.losses += 1
        for number in reversed(held):
            self._end_lease(worker, number, held[number])
        guilty = [
            n
            for n, t in held.items()
            if (t.once or t.losses >= self._most_losses) and not t.holders
        ]
        for number in guilty:
            self.withdraw(number)
        return guilty

    def silent(self, now: float, after: float) -> list[str]:
        """Return the workers that have not been heard of for so many seconds.

        To be asked about once a second: if the asker itself was held up, its workers' messages
        were too, and they get the time back.
        """
        before, self._looked = self._looked, now
        if before is not None and now - before > _LAG:
            for worker in self._workers.values():
                worker.seen = min(now, worker.seen + now - before)
        return [name for name, worker in self._workers.items() if now - worker.seen > after]

    @property
    def room(self) -> int:
        """Tasks that all workers together can make use of at once."""
        return self._room

    @property
    def workers(self) -> int:
        """Workers that are there."""
        return len(self._workers)

    @property
    def queued(self) -> int:
        """Tasks that nobody holds."""
        return self._queued

    def __len__(self) -> int:
        return len(self._tasks)

    def statistics(self) -> LeaseStatistics:
        """Return where the table stands."""
        return LeaseStatistics(
            queued=self._queued,
            leased=len(self._tasks) - self._queued,
            answered=self._answered,
            doubled=self._doubled,
            requeued=self._requeued,
            copies=self._copies,
            lost_workers=self._lost,
            workers=tuple(
                WorkerStatistics(
                    name, len(one.leases), one.unbegun, one.room, one.answered, one.seen
                )
                for name, one in self._workers.items()
            ),
        )

    # -- the inside ------------------------------------------------------------------------

    def _queue(self, number: int, *, last: bool) -> None:
        task = self._tasks[number]
        queue = self._queues.setdefault(task.priority, {}).setdefault(task.job, deque())
        if last:
            queue.append(number)
        else:
            queue.appendleft(number)
        self._queued += 1

    def _pop(self) -> int | None:
        """Take the next task: of the highest priority, of the job that has the fewest out."""
        tasks, leased = self._tasks, self._leased_of
        while self._queues:
            priority = max(self._queues)
            jobs = self._queues[priority]
            while jobs:
                job = (
                    min(jobs, key=lambda one: leased.get(one, 0))
                    if len(jobs) > 1
                    else next(iter(jobs))
                )
                queue = jobs[job]
                while queue:
                    number = queue.popleft()
                    task = tasks.get(number)
                    if task is not None and not task.holders:
                        self._queued -= 1
                        return number
                del jobs[job]
            del self._queues[priority]
        return None

    def _lease(self, worker: str, number: int, task: _Task, now: float) -> int:
        task.fence += 1
        task.holders[worker] = task.fence
        task.since = now
        self._workers[worker].leases[number] = task.fence
        self._leased_of[task.job] = self._leased_of.get(task.job, 0) + 1
        return task.fence

    def _end_lease(self, worker: str, number: int, task: _Task) -> None:
        """A lease ends without an answer; if it was the only one, the task goes out again."""
        self._forget(worker, number, task)
        self._requeued += 1
        if not task.holders:
            self._queue(number, last=False)

    def _forget(self, worker: str, number: int, task: _Task) -> None:
        del task.holders[worker]
        left = self._leased_of[task.job] - 1
        if left:
            self._leased_of[task.job] = left
        else:
            del self._leased_of[task.job]
        holder = self._workers.get(worker)
        if holder is not None:
            del holder.leases[number]

    def _release(self, number: int, task: _Task, *, but: str = "") -> None:
        """The task is over: tell those who hold it."""
        for worker in list(task.holders):
            self._forget(worker, number, task)
            holder = self._workers.get(worker)
            if holder is not None and worker != but:
                holder.drop.append(number)

    def _took(self, seconds: float, alone: _Worker | None) -> None:
        self._times.append(seconds)
        if alone is not None:
            part = 1 / min(alone.answered, _OWN_MEMORY)
            alone.usual += part * (seconds - alone.usual)

    def _at_the_end(
        self, worker: str, holder: _Worker, grant: Grant, want: int, now: float
    ) -> None:
        """Nothing is queued and a worker is idle: take from those who have too much."""
        others = [w for w in self._workers.values() if w is not holder]
        richest = max(others, key=_to_spare, default=None)
        if richest is not None and (spare := _to_spare(richest)) > 0 and not holder.unbegun:
            # Half of the difference evens the two out.
            richest.recalled += min(want, (spare + 1) // 2)
            return
        if holder.unbegun or len(holder.leases) > holder.room // 2:
            return
        late = self._late(now)
        if holder.usual > _WORTH * self._usual:
            return  # it is the slow one
        while late and want > 0 and self._copies < 1 + self._copies_share * self._answered:
            number, of = late[-1]
            task = self._tasks.get(number)
            if task is None or of not in task.holders or len(task.holders) > 1:
                late.pop()
                continue
            if of == worker:
                return
            late.pop()
            since = task.since
            grant.leases.append((number, self._lease(worker, number, task, now)))
            task.since = since
            self._copies += 1
            want -= 1

    def _late(self, now: float) -> list[tuple[int, str]]:
        """Tasks that take much longer than usual, or will, or whose worker is silent.

        Returns:
            Each with its worker; the latest last.
        """
        if now - self._late_at < _LOOK_AGAIN * self.interval:
            return self._late_tasks
        found: list[tuple[float, int, str]] = []
        usual = self._usual = median(self._times) if self._times else math.inf
        for name, worker in self._workers.items():
            silent = now - worker.seen > 1.0 + _SILENT * self.interval
            for number in worker.leases:
                task = self._tasks[number]
                out = now - task.since
                late = out > _LATE * usual > 0 or worker.usual - out > _WORTH * usual
                if len(task.holders) == 1 and not task.once and (silent or late):
                    found.append((out, number, name))
        self._late_at = now
        self._late_tasks = [(number, name) for _, number, name in sorted(found)]
        return self._late_tasks


def _to_spare(worker: _Worker) -> int:
    return min(worker.unbegun, len(worker.leases)) - worker.told - worker.recalled
