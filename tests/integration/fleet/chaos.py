"""Faults for a fleet, on a schedule that a seed makes, and the counts that tell what they did.

Run as a program it is the model server that a test's workers start on their nodes: a
`SimulatedServer` that writes each request down before it answers, where the record outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.services.slurm import SlurmCluster

    from scaleinfer.fleet import Fleet
    from scaleinfer.testing import RequestView

__all__ = [
    "Arrival",
    "Arrivals",
    "Chaos",
    "Counts",
    "Fault",
    "Kind",
    "Left",
    "Mapping",
    "counts",
    "schedule",
    "until",
]

T = TypeVar("T")
_PATIENCE_S = 60.0
Kind = Literal["worker", "server", "partition", "job", "exchange"]


async def until(what: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.1)


# -- what arrived ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that reached a model server.

    Attributes:
        at: Unix time, in seconds.
        node: The server's node.
        pid: The server's process.
        prompt: What was asked.
    """

    at: float
    node: str
    pid: int
    prompt: str


class Arrivals:
    """Every request that reached a server of a fleet, from the files that the servers wrote.

    Args:
        folder: Where they write, one file for each process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def command(self, latency: float) -> list[str]:
        """Return the command of a server that writes here."""
        return [sys.executable, __file__, "{port}", str(self.folder), str(latency)]

    def all(self) -> list[Arrival]:
        """Return them in order."""
        found: list[Arrival] = []
        for path in self.folder.iterdir():
            node, _, pid = path.name.rpartition("-")
            # The last line of a server that was killed may be half a one.
            for line in path.read_text().split("\n")[:-1]:
                at, _, prompt = line.partition(" ")
                found.append(Arrival(float(at), node, int(pid), prompt))
        return sorted(found, key=lambda one: one.at)

    def count(self) -> int:
        """Return how many there are."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.iterdir())

    def servers(self) -> list[int]:
        """Return the processes that serve now."""
        pids = [int(path.name.rpartition("-")[2]) for path in self.folder.iterdir()]
        return sorted(pid for pid in pids if is_alive(pid))

    def busy(self, seconds: float) -> set[str]:
        """Return the nodes at which something arrived within the last seconds."""
        return {one.node for one in self.all() if one.at > time.time() - seconds}

    def asked_again(self, since: float) -> float | None:
        """Return the seconds until an item was asked that had been asked before."""
        seen: set[str] = set()
        for one in self.all():
            if one.at > since and one.prompt in seen:
                return one.at - since
            seen.add(one.prompt)
        return None


def is_alive(pid: int) -> bool:
    """Say whether a process runs."""
    with contextlib.suppress(OSError):
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    return False


# -- what was recorded -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a map's items.

    Attributes:
        lost: Items without a result.
        failed: Items whose result is an error.
        twice: Items with more than one result in the journal.
        again: Requests beyond the first of each item.
        damage: What `verify` has against the journal.
    """

    lost: int
    failed: int
    twice: int
    again: int
    damage: int


def counts(journal: Path, prompts: Sequence[str], arrived: Sequence[Arrival]) -> Counts:
    """Compare what was to be asked, what arrived, and what the journal holds."""
    from scaleinfer.journal import read_results, verify

    rows = list(read_results(journal, everything=True))
    results = Counter(row.index for row in rows)
    assert set(results) <= set(range(len(prompts)))
    wrong = [row for row in rows if row.ok and row.payload["text"] != f"echo: {prompts[row.index]}"]
    assert not wrong, wrong
    asked = Counter(one.prompt for one in arrived)
    assert set(asked) <= set(prompts)
    unasked = [row for row in rows if row.ok and prompts[row.index] not in asked]
    assert not unasked, unasked
    return Counts(
        lost=len(prompts) - len(results),
        failed=sum(not row.ok for row in rows),
        twice=sum(number > 1 for number in results.values()),
        again=sum(asked.values()) - len(asked),
        damage=len(verify(journal).problems),
    )


# -- what goes wrong ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: Seconds after the start.
        kind: What is done: `worker` and `server` are killed with -9, a node is cut off
            (`partition`), a job is cancelled, the exchange is killed and started again.
        lasts: Seconds until the node is connected, or the exchange started, again.
        pick: Chooses the victim among those there are.
    """

    at: float
    kind: Kind
    lasts: float
    pick: int


def schedule(seed: int, kinds: Sequence[Kind], *, number: int, within: float) -> list[Fault]:
    """Return faults in order of time; the same seed gives the same ones."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    for _ in range(number):
        kind = chance.choice(kinds)
        longest = {"partition": 25.0, "exchange": 5.0}.get(kind, 0.0)
        at, lasts = chance.uniform(0.0, within), chance.uniform(0.2 * longest, longest)
        faults.append(Fault(round(at, 1), kind, round(lasts, 1), chance.randrange(1000)))
    return sorted(faults, key=lambda fault: fault.at)


class Service(Protocol):
    """An exchange that can be killed and started."""

    def kill(self) -> None: ...
    def start(self) -> None: ...


@dataclass
class Chaos:
    """Does faults to a fleet.

    Attributes:
        fleet: The fleet.
        arrivals: What its servers write down.
        slurm: The cluster, if it runs on one.
        exchange: The exchange, if it is to be killed.
        said: Called with a line for each thing done.
        done: Each fault and the Unix time when it was done.
    """

    fleet: Fleet
    arrivals: Arrivals
    slurm: SlurmCluster | None = None
    exchange: Service | None = None
    said: Callable[[str], None] = print
    done: list[tuple[Fault, float]] = field(default_factory=list)
    _restarting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, faults: Sequence[Fault]) -> None:
        """Do them all at their times, and undo what can be undone, also when cancelled."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._at_its_time(fault))

    async def _at_its_time(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        await self.strike(fault)

    async def strike(self, fault: Fault) -> float:
        """Do one fault now, until it is over; return the Unix time when it was done."""
        began = time.time()
        victim = await getattr(self, f"_{fault.kind}")(fault)
        self.done.append((fault, began))
        self.said(f"{fault.kind} {victim}, {fault.lasts:g} s")
        return began

    async def _worker(self, fault: Fault) -> str:
        victim = _one(self.fleet.status().workers, fault.pick)
        if victim is not None:
            _kill(victim.facts.pid)
        return "none" if victim is None else f"{victim.name} on {victim.facts.node}"

    async def _server(self, fault: Fault) -> str:
        victim = _one(self.arrivals.servers(), fault.pick)
        if victim is not None:
            _kill(victim)
        return str(victim)

    async def _job(self, fault: Fault) -> str:
        assert self.slurm is not None
        slurm = self.slurm
        victim = _one(await asyncio.to_thread(slurm.jobs), fault.pick)
        if victim is not None:
            await asyncio.to_thread(slurm.run, "scancel", victim, check=False)
        return str(victim)

    async def _partition(self, fault: Fault) -> str:
        assert self.slurm is not None
        node = 1 + fault.pick % self.slurm.nodes
        self.slurm.partition(node)
        try:
            await asyncio.sleep(fault.lasts)
        finally:
            self.slurm.heal(node)
        return f"node{node}"

    async def _exchange(self, fault: Fault) -> str:
        assert self.exchange is not None
        async with self._restarting:
            self.exchange.kill()
            try:
                await asyncio.sleep(fault.lasts)
            finally:
                await asyncio.shield(asyncio.to_thread(self.exchange.start))
        return "restarted"


class Mapping:
    """A map that goes on until it is told to stop, so that faults do not meet its end.

    Args:
        fleet: Where it runs.
        journal: Its journal.
        most: Items after which it stops by itself.
    """

    def __init__(self, fleet: Fleet, journal: Path, *, most: int = 1_000_000) -> None:
        self.prompts: list[str] = []
        self.journal = journal
        self._fleet = fleet
        self._most = most
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Have it take no more items."""
        self._stopped = True

    async def done(self) -> int:
        """Wait for its end; return how many items have a good answer."""
        return await self._task

    async def _run(self) -> int:
        from scaleinfer import parallel_map

        results = await parallel_map(
            self._items(), "{}", fleet=self._fleet, journal=self.journal, progress=False
        )
        return len(results.ok)

    def _items(self) -> Iterator[str]:
        while not self._stopped and len(self.prompts) < self._most:
            self.prompts.append(f"item {len(self.prompts)}")
            yield self.prompts[-1]


class Left:
    """What a fleet leaves behind: made before it is opened, asked after it is closed.

    Args:
        slurm: The cluster, if it runs on one.
    """

    def __init__(self, slurm: SlurmCluster | None = None) -> None:
        self._slurm = slurm
        self._children, self._sockets = _children(), _sockets()

    def find(self) -> list[str]:
        """Wait until nothing is left, but not for long; return what is."""
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self._found()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _found(self) -> list[str]:
        found = [f"process {pid}" for pid in _children() - self._children]
        found += [f"{number} sockets" for number in [_sockets() - self._sockets] if number > 0]
        if self._slurm is not None:
            found += [f"job {job}" for job in self._slurm.jobs()]
            found += [f"process {pid} on a node" for pid in self._slurm.processes()]
        return found


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _sockets() -> int:
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(path).startswith("socket:")
    return found


def _one(found: Sequence[T], pick: int) -> T | None:
    return found[pick % len(found)] if found else None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# -- the model server --------------------------------------------------------------------------


def _serve(port: str, folder: str, latency: str) -> None:
    from scaleinfer._loop import run
    from scaleinfer.testing import SimulatedServer
    from scaleinfer.testing._process import serve_in_this_process

    path = Path(folder, f"{socket.gethostname()}-{os.getpid()}")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write_down(view: RequestView) -> float:
        os.write(file, f"{time.time():.6f} {view.prompts[0]}\n".encode())
        return float(latency)

    server = SimulatedServer(port=int(port), latency=write_down, ledger="counts")
    run(serve_in_this_process([server], lambda _server: None))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
