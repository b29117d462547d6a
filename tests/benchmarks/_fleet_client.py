"""The client's side of the fleet's benchmarks, each case in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from tests.benchmarks._fleet_actions import run_actions
from tests.benchmarks._fleet_peers import texts
from tests.benchmarks._measure import cpu_seconds, raise_file_limit

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet
from scaleinfer.requests import Request, Sampling

if TYPE_CHECKING:
    from scaleinfer.fleet._broker import Broker

NOOP = "tests.benchmarks._fleet_backends:noop"
PACED = "tests.benchmarks._fleet_backends:paced"
FILLER = "y" * 80


class Cpu:
    """CPU seconds of this process and of others, from when it was made."""

    def __init__(self, others: list[int]) -> None:
        self._others = [psutil.Process(pid) for pid in others]
        self._before = self._now()
        self._began = time.perf_counter()

    def _now(self) -> list[float]:
        return [cpu_seconds(), *(sum(one.cpu_times()[:2]) for one in self._others)]

    def read(self) -> tuple[float, list[float]]:
        """Return the seconds that have passed, and each process's CPU seconds."""
        took = time.perf_counter() - self._began
        return took, [now - then for now, then in zip(self._now(), self._before, strict=True)]


def figures(cpu: Cpu, items: int) -> dict[str, Any]:
    """Return items a second, and CPU microseconds an item: client, all workers, exchange."""
    took, (ours, exchange, *workers) = cpu.read()
    return {
        "rate": items / took,
        "client_us": 1e6 * ours / items,
        "workers_us": 1e6 * sum(workers) / items,
        "exchange_us": 1e6 * exchange / items,
    }


async def ask_all(broker: Broker, items: int) -> None:
    """Give a broker so many requests, never more ahead than it has use for."""
    sampling, changed, done, asked = Sampling(), asyncio.Event(), 0, 0

    def answered(future: asyncio.Future[Any]) -> None:
        nonlocal done
        done += 1
        future.result()
        changed.set()

    while done < items:
        while asked < items and asked - done < max(broker.places, 64):
            asked += 1
            prompt = [{"role": "user", "content": f"item {asked} {FILLER}"}]
            _, answer = broker.ask(Request(prompt, None, sampling))
            answer.add_done_callback(answered)
        changed.clear()
        await changed.wait()


async def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Run one way to get items to four processes and back."""
    items, workers = options.items, options.workers
    if options.case == "actions":
        took, ours, theirs = await run_actions(_plain(options.exchange), workers, items, 64)
        return {
            "rate": items / took,
            "client_us": 1e6 * ours / items,
            "workers_us": 1e6 * sum(theirs) / items,
        }
    async with Fleet.local(workers, backend=NOOP, exchange=options.exchange) as fleet:
        await fleet.ready(workers, timeout=60)
        broker: Any = fleet.broker
        pids = [options.exchange_pid, *(one.facts.pid for one in fleet.status().workers)]
        await ask_all(broker, items // 10)  # the workers' rates are known then
        if options.case == "broker":
            cpu = Cpu(pids)
            await ask_all(broker, items)
        else:
            with tempfile.TemporaryDirectory() as folder:
                journal = Path(folder) / "run.db" if options.case == "map-journal" else None
                cpu = Cpu(pids)
                results = await parallel_map(
                    range(items),
                    lambda number: f"item {number} {FILLER}",
                    fleet=fleet,
                    journal=journal,
                    progress="none",
                )
                found = figures(cpu, items)
            assert len(results.ok) == items, results.failed[:1]
            return found
        return figures(cpu, items)


def _plain(exchange: str) -> Any:
    """Return Academy's own factory, as its examples make it."""
    from urllib.parse import urlsplit

    from academy.exchange import HttpExchangeFactory, RedisExchangeFactory

    url = urlsplit(exchange)
    if url.scheme == "redis":
        assert url.hostname is not None
        assert url.port is not None
        return RedisExchangeFactory(url.hostname, url.port, socket_timeout=None)
    return HttpExchangeFactory(exchange, auth_method=None)


async def coordinate(options: argparse.Namespace) -> dict[str, Any]:
    """Hold the work of simulated workers; return what that costs once all are there."""
    prompts, sampling = texts(1000, seed=1), Sampling()
    async with Fleet.attach(options.exchange, name=options.fleet) as fleet:
        broker: Any = fleet.broker
        job, waiting, answered = broker.job(), set[asyncio.Future[Any]](), 0

        def settled(future: asyncio.Future[Any]) -> None:
            nonlocal answered
            waiting.discard(future)
            answered += 1
            assert len(future.result().text) == 200

        async def feed() -> None:
            while True:
                while len(waiting) < max(broker.places, 1_000):
                    prompt = [{"role": "user", "content": next(prompts)}]
                    _, answer = broker.ask(Request(prompt, None, sampling), job=job)
                    waiting.add(answer)
                    answer.add_done_callback(settled)
                await asyncio.sleep(0.05)

        feeding = asyncio.create_task(feed())
        await fleet.ready(options.workers, timeout=180)
        await asyncio.sleep(options.warm)
        before, cpu = answered, Cpu([])
        await asyncio.sleep(options.seconds)
        took, (used,) = cpu.read()
        counted = answered - before
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        status = fleet.status()
        for future in waiting:
            future.remove_done_callback(settled)
            future.add_done_callback(lambda done: done.exception())
    return {
        "rate": counted / took,
        "cores": used / took,
        "us": 1e6 * used / max(counted, 1),
        "answered": answered,
        "lost_workers": status.lost_workers,
        "requeued": status.requeued,
        "doubled": status.doubled,
        "copies": status.copies,
    }


async def slow_worker(options: argparse.Namespace) -> dict[str, Any]:
    """Map over workers one of which is slower; return the makespan and what went where."""
    async with Fleet.local(
        options.workers, backend=PACED, exchange=options.exchange, concurrency=8
    ) as fleet:
        await fleet.ready(options.workers, timeout=60)
        results = await parallel_map(
            range(options.items), lambda n: f"item {n} {FILLER}", fleet=fleet, progress="none"
        )
        status = fleet.status()
    assert len(results.ok) == options.items, results.failed[:1]
    return {
        "elapsed": results.stats.elapsed_s,
        "slow": sum(result.model == "slow" for result in results),
        "copies": status.copies,
        "requeued": status.requeued,
        "doubled": status.doubled,
        "answered": [worker.answered for worker in status.workers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--exchange", required=True)
    parser.add_argument("--exchange-pid", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--fleet", default="bench")
    parser.add_argument("--warm", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    cases = {"coordinate": coordinate, "slow": slow_worker}
    import uvloop

    raise_file_limit()
    logging.disable(logging.WARNING)
    print(json.dumps(uvloop.run(cases.get(options.case, throughput)(options))), flush=True)


if __name__ == "__main__":
    main()
