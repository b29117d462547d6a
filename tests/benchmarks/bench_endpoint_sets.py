"""Sets of endpoints: `nox -s bench -- endpoint_sets`.

* 500 endpoints, 50 of them dead and 50 of them 20 times slower, in simulated time: the engine's
  own router, limiters, breakers and retries, and the set's own choice of what is checked when.
  Half of the dead ones refuse connections, the others say nothing until the connection times
  out. The ideal is all items over the sum of the living endpoints' rates.
* Four servers against one of the same capacity, real calls over sockets. A server's rate is
  slots / step time / mean tokens, low enough for two cores.
* What a set of 2,000 costs: seconds to open, and CPU to follow it while nothing is called.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks._load import MEAN_TOKENS, varied
from tests.benchmarks._measure import (
    alone,
    arguments,
    cpu_seconds,
    heading,
    median,
    raise_file_limit,
    rss_mb,
    say,
    served,
    table,
    verdict,
)

from scaleinfer import Retry, parallel_map
from scaleinfer._simulate_process import Process, _Call
from scaleinfer._simulate_settings import EndpointModel, Workload
from scaleinfer.backends import EndpointSet
from scaleinfer.backends._membership import Address, Membership
from scaleinfer.engine import Breaker
from scaleinfer.testing import Batching

if TYPE_CHECKING:
    from scaleinfer.engine import Endpoint

ENDPOINTS, DEAD, SLOW, SLOWER = 500, 50, 50, 20
SLOTS, STEP_S, TOKENS = 16, 0.02, 50.0
CLIENT_S, WAY_S, CONNECT_TIMEOUT_S, LOOK_S = 1e-4, 0.001, 10.0, 0.5
FOUR_SLOTS, FOUR_STEP_S = 8, 0.02
FILLER = "x" * 70


class SetProcess(Process):
    """A process that asks a set of endpoints, some of which are dead."""

    def __init__(self, models: list[EndpointModel], work: Workload, *, seed: str) -> None:
        super().__init__(models, work, seed=seed)
        self._membership = Membership()
        self._addresses = [Address(f"http://node{n}:8000/v1") for n in range(len(models))]
        self._membership.seen(self._addresses, 0.0, ready=True)
        for endpoint in self._endpoints:
            # As the pool gives it to the members of a set.
            endpoint.breaker = Breaker(first_pause=30.0, longest_pause=60.0)
        self.checks = 0
        self._push(LOOK_S, self._look_after_members, None)

    def _arrive(self, time: float, call: _Call) -> None:
        if call.place >= DEAD:
            super()._arrive(time, call)
            return
        call.failed = True
        self._push(time + (WAY_S if call.place % 2 else CONNECT_TIMEOUT_S), self._receive, call)

    def _look_after_members(self, time: float, _: None) -> None:
        if len(self._done) == self._items:
            return
        troubled = {
            self._addresses[number].url
            for number, endpoint in enumerate(self._endpoints)
            if endpoint.breaker.is_open
        }
        self._membership.trouble(troubled, time)
        calls = sum(endpoint.started_calls for endpoint in self._endpoints)
        for address in self._membership.due(time, calls=calls):
            self.checks += 1
            self._push(time + CONNECT_TIMEOUT_S, self._checked, address)
        self._push(time + LOOK_S, self._look_after_members, None)

    def _checked(self, time: float, address: Address) -> None:
        self._membership.checked(address, time, ok=False)


def simulated(items: int, concurrency: int | None) -> dict[str, float]:
    """Run items through a set with dead and slow endpoints, in simulated time."""
    fast = EndpointModel(server=Batching(slots=SLOTS, step_s=STEP_S), latency_s=WAY_S)
    slow = EndpointModel(server=Batching(slots=SLOTS, step_s=SLOWER * STEP_S), latency_s=WAY_S)
    models = [fast] * DEAD + [slow] * SLOW + [fast] * (ENDPOINTS - DEAD - SLOW)
    work = Workload(
        prompt_tokens=20.0,
        answer_tokens=(TOKENS, 0.5),
        concurrency=concurrency,
        client_s=CLIENT_S,
        retry=Retry(),
    )
    process = SetProcess(models, work, seed="set")
    began = time.perf_counter()
    trace = process.run(items)
    rate = SLOTS / STEP_S / TOKENS
    ideal = (ENDPOINTS - DEAD - SLOW) * rate + SLOW * rate / SLOWER
    steady = (trace.dry.done - trace.begin.done) / (trace.dry.at - trace.begin.at)
    dead: list[Endpoint] = process._endpoints[:DEAD]
    calls = sum(endpoint.started_calls for endpoint in process._endpoints)
    return {
        "makespan": items / ideal / trace.end.at,
        "most": 0.999 * items / ideal / trace.done[int(0.999 * items) - 1],
        "steady": steady / ideal,
        "wasted": sum(endpoint.started_calls for endpoint in dead) / calls,
        "checks": process.checks / calls,
        "failed": trace.failed,
        "took": time.perf_counter() - began,
    }


async def client(urls: list[str], items: int) -> dict[str, Any]:
    """Map over a set read from a host file; return the makespan and what went where."""
    with tempfile.NamedTemporaryFile("w", suffix=".hosts") as hosts:
        hosts.write("".join(f"{url}\n" for url in urls))
        hosts.flush()
        results = await parallel_map(
            range(items),
            lambda number: f"{number} {FILLER}",
            backend=EndpointSet.hosts(hosts.name, model="sim-model", api_key=""),
            progress="none",
        )
    assert len(results.ok) == items, results.failed[:1]
    return {
        "elapsed": results.stats.elapsed_s,
        "calls": [use.calls for use in results.stats.endpoints],
        "limits": [use.limit for use in results.stats.endpoints],
        "client": results.stats.time.client,
    }


async def followed(members: int) -> dict[str, float]:
    """Open a large set and follow it for some seconds, with a pool that asks nothing."""
    from scaleinfer.engine import pool_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hosts"
        path.write_text("".join(f"10.0.{n >> 8}.{n & 255}\t8000\n" for n in range(members)))
        before, began = rss_mb(), time.perf_counter()
        async with EndpointSet.hosts(path, model="m", api_key="") as backend:
            pool = pool_of([backend], None)
            opened = time.perf_counter() - began
            assert len(pool.endpoints) == members
            cpu, began = cpu_seconds(), time.perf_counter()
            await asyncio.sleep(5)
            share = (cpu_seconds() - cpu) / (time.perf_counter() - began)
            return {"open": opened, "cpu": share, "mb": rss_mb() - before}


def four_against_one(rounds: int, items: int) -> list[list[object]]:
    """Measure four servers against one, by turns."""
    rates: dict[int, list[float]] = {1: [], 4: []}
    batching = Batching(slots=FOUR_SLOTS, step_s=FOUR_STEP_S)
    for number in range(rounds):
        for servers, found in rates.items():
            say(f"{servers} servers, round {number + 1}")
            with ExitStack() as stack:
                urls = [
                    stack.enter_context(served(answer=varied, batching=batching)).base_url
                    for _ in range(servers)
                ]
                run = alone("bench_endpoint_sets", urls=",".join(urls), items=items * servers)
            say(f"  {run}")
            if "failed" in run:
                raise SystemExit(run["failed"])
            found.append(items * servers / run["elapsed"])
    one, four = median(rates[1]), median(rates[4])
    ideal = FOUR_SLOTS / FOUR_STEP_S / MEAN_TOKENS
    return [
        ["1", f"{one:.1f}", f"{one / ideal:.3f}", "", ""],
        ["4", f"{four:.1f}", f"{four / 4 / ideal:.3f}", f"{four / one:.2f}",
         verdict(four / one, least=3.8)],
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--urls")
    parser.add_argument("--only", choices=("simulated", "four", "large"))
    options = parser.parse_args()
    if options.urls:
        raise_file_limit()
        print(json.dumps(asyncio.run(client(options.urls.split(","), options.items))), flush=True)
        return
    items = 60_000 if options.quick else 200_000
    rounds = 1 if options.quick else options.rounds
    heading("Sets of endpoints")
    if options.only in {None, "simulated"}:
        print(f"{ENDPOINTS} endpoints, {DEAD} dead, {SLOW} {SLOWER} times slower; {items:,} items.")
        print("Steady: from 40 % of the items done until the last one is sent. The whole run also")
        print("waits for the few calls that slow endpoints were given before that was known.\n")
        rows = []
        for name, concurrency in (("auto", None), (f"{SLOTS}", SLOTS)):
            found = simulated(items, concurrency)
            say(f"{name}: {found}")
            rows.append(
                [name, f"{found['steady']:.3f}", ">= 0.95", verdict(found["steady"], least=0.95),
                 f"{found['most']:.3f}", f"{found['makespan']:.3f}", f"{found['wasted']:.4f}",
                 f"{found['checks']:.5f}", f"{found['failed']:.0f}"]
            )  # fmt: skip
        table(
            ["concurrency", "goodput over ideal, steady", "target", "reached",
             "until 99.9 % are done", "whole run", "calls to dead ones", "checks per call",
             "items failed"], rows
        )  # fmt: skip
    if options.only in {None, "four"}:
        table(
            ["servers", "items a second", "of their ideal", "times one", ">= 3.8"],
            four_against_one(rounds, options.items),
        )
    if options.only in {None, "large"}:
        found = asyncio.run(followed(2_000))
        table(
            ["members", "seconds to open", "CPU to follow", "MB"],
            [["2,000", f"{found['open']:.2f}", f"{found['cpu']:.1%}", f"{found['mb']:.0f}"]],
        )


if __name__ == "__main__":
    main()
