"""Faults in a fleet on Slurm: how long they are noticed, and what they cost.

`nox -s bench -- fleet_faults` takes 40 minutes; `--quick` does each thing once. Needs root and what
`tests/services/slurm.py` and `redis.py` install: each node is a network namespace with a hostname
of its own. Everything runs with the fleet's default settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import parsl  # noqa: F401 # it opens what it keeps for the life of the process before we count
from tests.benchmarks._measure import arguments, heading, median, say, table, verdict
from tests.integration.fleet.chaos import (
    Arrivals,
    Chaos,
    Fault,
    Kind,
    Left,
    Mapping,
    counts,
    schedule,
    until,
)
from tests.services.http_exchange import HttpExchange
from tests.services.redis import Redis
from tests.services.slurm import SlurmCluster, _path, install

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet, NodeServer
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KINDS: tuple[Kind, ...] = ("worker", "server", "partition", "job", "exchange")
NODES, PLACES = 3, 4
LATENCY_S, LONG_S = 0.3, 1.5
"""A call's time; where it is measured what is asked again, longer than a node takes to stop."""
READY_S = 150.0
NOTHING_S = 30.0


def exchange_of(kind: str, folder: Path, host: str) -> Any:
    """Return an exchange that can be killed."""
    if kind == "redis":
        return Redis(folder, host=host, password="word")
    return HttpExchange(folder, host=host)


def fleet_on(
    slurm: SlurmCluster,
    folder: Path,
    arrivals: Arrivals,
    exchange: str,
    *,
    one_job: bool,
    latency: float = LATENCY_S,
) -> Fleet:
    """Return a fleet of three nodes with a model server on each."""
    several: dict[str, Any] = {} if one_job else {"min_workers": NODES, "max_workers": NODES}
    return Fleet.slurm(
        nodes=NODES,
        address=slurm.address,
        walltime="00:30:00",
        folder=folder / "fleet",
        server=NodeServer(arrivals.command(latency)),
        concurrency=PLACES,
        exchange=exchange,
        on_event=told,
        **several,
    )


def told(line: str) -> None:
    say(f"    {line.splitlines()[0]}")


# -- how long it takes -------------------------------------------------------------------------


async def detected(slurm: SlurmCluster, rounds: int, kind: str) -> dict[str, list[float]]:
    """Return for each fault the seconds until the first item was asked again."""
    found: dict[str, list[float]] = {fault: [] for fault in KINDS}
    with tempfile.TemporaryDirectory(prefix="fleet-faults-") as text:
        folder = Path(text)
        arrivals = Arrivals(folder / "arrived")
        with exchange_of(kind, folder / "exchange", slurm.address) as exchange:
            fleet = fleet_on(slurm, folder, arrivals, exchange.url, one_job=False, latency=LONG_S)
            async with fleet:
                await fleet.ready(NODES, timeout=READY_S)
                mapping = Mapping(fleet, folder / "run.db")
                chaos = Chaos(fleet, arrivals, slurm, exchange, said=told)
                for number in range(rounds):
                    for fault in KINDS:
                        found[fault].append(await one(chaos, fault, number))
                        say(f"  {fault}: {found[fault][-1]:.1f} s")
                mapping.stop()
                await mapping.done()
            say(f"  {counts(mapping.journal, mapping.prompts, arrivals.all())}")
    return found


async def one(chaos: Chaos, kind: Kind, number: int) -> float:
    """Do one fault to a fleet that works; return the seconds until its work goes on elsewhere."""
    fleet, arrivals = chaos.fleet, chaos.arrivals
    while True:
        await until(lambda: fleet.broker.workers == NODES and len(arrivals.servers()) == NODES)
        await asyncio.sleep(2.0)
        await until(lambda: len(arrivals.busy(2.0)) == NODES)
        if (seconds := await struck(chaos, kind, number)) is not None:
            return seconds
        # Its victim had just reported all it had begun. That nothing is lost is counted later.
        say("    nothing was in flight, once more")


async def struck(chaos: Chaos, kind: Kind, number: int) -> float | None:
    fleet, arrivals, began = chaos.fleet, chaos.arrivals, time.time()
    lasts = {"partition": 20.0, "exchange": 1.0}.get(kind, 0.0)
    striking = asyncio.create_task(chaos.strike(Fault(0.0, kind, lasts, number)))
    if kind == "exchange":
        # Nothing need be asked again: it is back when the coordinator hears an answer.
        await striking
        answered = fleet.status().answered
        await until(lambda: fleet.status().answered > answered)
        return time.time() - began
    with contextlib.suppress(TimeoutError):
        await until(lambda: arrivals.asked_again(began) is not None, NOTHING_S)
    await striking
    return arrivals.asked_again(began)


# -- what it costs -----------------------------------------------------------------------------


async def run(slurm: SlurmCluster, seed: int, items: int) -> dict[str, Any]:
    """Map under the faults of one schedule; return what became of the items."""
    faults = schedule(seed, KINDS, number=4, within=12.0)
    kind, one_job = ("redis", "http")[seed % 2], bool(seed // 2 % 2)
    say(f"run {seed}: {kind}, {'one job' if one_job else 'a job for each node'}")
    left = Left(slurm)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fleet-faults-") as text:
        folder = Path(text)
        arrivals = Arrivals(folder / "arrived")
        with exchange_of(kind, folder / "exchange", slurm.address) as exchange:
            fleet = fleet_on(slurm, folder, arrivals, exchange.url, one_job=one_job)
            async with fleet:
                await fleet.ready(NODES, timeout=READY_S)
                mapping = Mapping(fleet, folder / "run.db", most=items)
                await until(lambda: arrivals.count() > 2 * NODES * PLACES)
                chaos = Chaos(fleet, arrivals, slurm, exchange, said=told)
                await asyncio.gather(mapping.done(), chaos.run(faults))
                status = fleet.status()
        found = counts(mapping.journal, mapping.prompts, arrivals.all())
        say(f"  {found}, {status.lost_workers} workers lost, {status.doubled} late answers")
    behind = await asyncio.to_thread(left.find)
    say(f"  left: {behind or 'nothing'}; {time.monotonic() - began:.0f} s")
    await asyncio.to_thread(slurm.wait_idle, 60.0)
    return {"kinds": [fault.kind for fault in faults], "counts": found, "left": behind}


async def idle(kind: str, seconds: float) -> dict[str, Any]:
    """Hold a fleet of local processes without work, then use it."""
    with tempfile.TemporaryDirectory(prefix="fleet-faults-") as folder:
        async with SimulatedServer() as server:
            with exchange_of(kind, Path(folder), "127.0.0.1") as exchange:
                fleet = Fleet.local(2, backend=server.base_url, exchange=exchange.url)
                async with fleet:
                    await fleet.ready(2, timeout=READY_S)
                    before = {worker.name for worker in fleet.status().workers}
                    await asyncio.sleep(seconds)
                    began = time.monotonic()
                    results = await parallel_map(range(200), "{}", fleet=fleet, progress=False)
                    took = time.monotonic() - began
                    after = {worker.name for worker in fleet.status().workers}
    return {"ok": len(results.ok), "seconds": took, "same": before == after}


# -- the tables --------------------------------------------------------------------------------


async def show_detection(slurm: SlurmCluster, rounds: int) -> None:
    heading("From the fault to the first item that is asked again")
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for exchange in ("redis", "http"):
        for kind, seconds in (await detected(slurm, rounds, exchange)).items():
            found[kind] += seconds
    table(
        ["fault", "times", "median, s", "worst, s", "target", "reached"],
        [
            [kind, len(took), f"{median(took):.1f}", f"{max(took):.1f}", "<= 15",
             verdict(max(took), most=15.0)]
            for kind, took in found.items()
        ],
    )  # fmt: skip


async def show_runs(slurm: SlurmCluster, seeds: range, items: int) -> None:
    heading(f"{len(seeds)} runs of {items} items, 4 faults each by a random schedule")
    runs = [await run(slurm, seed, items) for seed in seeds]
    tallies = [one["counts"] for one in runs]
    rows: list[list[Any]] = [
        [f"faults: {kind}", "", sum(one["kinds"].count(kind) for one in runs), ""] for kind in KINDS
    ]
    for name, what in {
        "items lost": sum(one.lost for one in tallies),
        "items failed": sum(one.failed for one in tallies),
        "results recorded twice": sum(one.twice for one in tallies),
        "damage in journals": sum(one.damage for one in tallies),
        "processes, jobs, sockets left": sum(len(one["left"]) for one in runs),
    }.items():
        rows.append([name, 0, what, verdict(what, most=0)])
    again = [one.again for one in tallies]
    rows.append(["items asked again in a run, median and most", "",
                 f"{median(again):.0f}, {max(again)}", ""])  # fmt: skip
    table(["measure", "target", "measured", "reached"], rows)


async def show_idle(seconds: float) -> None:
    heading(f"A fleet without work for {seconds:g} s, then 200 items")
    rows = []
    for kind in ("redis", "http"):
        held = await idle(kind, seconds)
        rows.append([kind, held["ok"], f"{held['seconds']:.1f}", "yes" if held["same"] else "no"])
    table(["exchange", "answered", "s", "the same workers"], rows)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--runs", type=int, default=30, help="runs under random faults")
    parser.add_argument("--first", type=int, default=1, help="the first one's seed")
    parser.add_argument("--items", type=int, default=600, help="items of each")
    parser.add_argument("--idle", type=float, default=75.0, help="seconds without work")
    parser.add_argument("--only", default="detection,runs,idle")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.runs = 1, 2
    wanted: dict[str, Callable[[SlurmCluster], Awaitable[None]]] = {
        "detection": lambda slurm: show_detection(slurm, options.rounds),
        "runs": lambda slurm: show_runs(
            slurm, range(options.first, options.first + options.runs), options.items
        ),
        "idle": lambda _slurm: show_idle(options.idle),
    }
    install()
    with tempfile.TemporaryDirectory(prefix="fleet-faults-slurm-") as root:
        slurm = SlurmCluster.start(Path(root, "cluster"), NODES)
        with contextlib.closing(_Stopping(slurm)):
            os.environ |= {"SLURM_CONF": slurm.conf, "PATH": _path()}
            for name in options.only.split(","):
                asyncio.run(wanted[name](slurm))  # type: ignore[arg-type] # a coroutine, all of them


class _Stopping:
    def __init__(self, slurm: SlurmCluster) -> None:
        self._slurm = slurm

    def close(self) -> None:
        self._slurm.stop()


if __name__ == "__main__":
    main()
