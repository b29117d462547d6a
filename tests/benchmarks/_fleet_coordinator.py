"""What a coordinator costs: its inside in simulated time, and Academy's part over a real exchange.

`broker`: a `Broker` with simulated workers that send what real ones send, as often as it tells
them to. Time is simulated, the CPU time is real; that of the workers is not counted.

`academy`: an agent that answers messages of a given length with texts of a given length and does
nothing else, which is what each message costs the coordinator's process before and after it.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import time
from typing import Any

from academy.agent import Agent, action
from tests.benchmarks._fleet_peers import Peer, Tally, texts
from tests.benchmarks._measure import finished, started

from scaleinfer.fleet import _broker
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._hosting import AgentHost
from scaleinfer.fleet._link import Link
from scaleinfer.fleet._messages import pack, unpack
from scaleinfer.fleet.exchange import exchange_factory
from scaleinfer.requests import Request, Sampling

LINES = 16


class Clock:
    """Stands in for the module `time` within the broker."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the simulated time."""
        return self.now


async def run_broker(options: argparse.Namespace) -> dict[str, Any]:
    """Simulate a fleet at work; return the coordinator's CPU seconds a simulated second."""
    clock = Clock()
    setattr(_broker, "time", clock)  # noqa: B010 - mypy knows no such attribute
    broker, tally, answers = Broker("bench"), Tally(), texts(200)
    prompts, sampling, job = texts(1000, seed=1), Sampling(), broker.job()
    peers = [
        Peer(f"peer-{number}", options.rate, answers, tally, clock.monotonic)
        for number in range(options.workers)
    ]
    end = clock.now + options.warm + options.seconds
    # They join over the first seconds.
    events = [(clock.now + 5 * n / len(peers), n) for n in range(len(peers))]
    tick, open_, cpu, count, sizes = clock.now, 0, 0.0, [0, 0], [0, 0]
    settled_at = (0, 0)

    def settled(future: asyncio.Future[Any]) -> None:
        nonlocal open_
        open_ -= 1
        assert len(future.result().text) == 200

    while events[0][0] < end:
        at, number = heapq.heappop(events)
        clock.now = max(clock.now, at)
        if clock.now > end - options.seconds and settled_at == (0, 0):
            cpu, count, sizes, settled_at = 0.0, [0, 0], [0, 0], (tally.answered, 1)
        wanted = [
            Request([{"role": "user", "content": next(prompts)}], None, sampling)
            for _ in range(max(broker.places, 1_000) - open_)
        ]
        text = pack(peers[number].message())
        began = time.process_time()
        for request in wanted:
            broker.ask(request, job=job)[1].add_done_callback(settled)
        while tick <= clock.now:
            broker.tick()
            tick += 1.0
        reply = broker.message(text)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cpu += time.process_time() - began
        open_ += len(wanted)
        count[0] += 1
        sizes[0] += len(text)
        sizes[1] += len(reply)
        peers[number].took = 0.01
        peers[number].taken(unpack(reply))
        heapq.heappush(events, (peers[number].due(), number))
    items = tally.answered - settled_at[0]
    leases = broker.table.statistics()
    return {
        "cores": cpu / options.seconds,
        "us": 1e6 * cpu / items,
        "items_per_s": items / options.seconds,
        "messages_per_s": count[0] / options.seconds,
        "message_bytes": sizes[0] // count[0],
        "reply_bytes": sizes[1] // count[0],
        "requeued": leases.requeued,
        "lost_workers": leases.lost_workers,
    }


class Echo(Agent):
    """Takes a coordinator's messages and replies with a text of a given length."""

    def __init__(self, reply: str) -> None:
        super().__init__()
        self._reply = reply

    @action
    async def lease(self, sender: str, text: str, piece: int = 0, pieces: int = 1) -> list[Any]:
        """Take a message and reply to it."""
        return [self._reply, 1]


async def run_academy(options: argparse.Namespace) -> dict[str, Any]:
    """Return the CPU seconds that a message costs the agent's process."""
    factory = exchange_factory(options.exchange)
    async with AgentHost(lambda: Echo("x" * options.reply_bytes), Echo, factory, "echo") as host:
        asking: Any = {"exchange": options.exchange, "case": "ask", "agent": host.agent_id}
        asking |= {"message_bytes": options.message_bytes, "messages": options.messages}
        process = started("_fleet_coordinator", **asking)
        cpu, began = time.process_time(), time.perf_counter()
        found = await asyncio.to_thread(finished, process)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    if "failed" in found:
        return found
    return {"message_us": 1e6 * cpu / options.messages, "messages_per_s": options.messages / took}


async def ask(options: argparse.Namespace) -> dict[str, Any]:
    """Send messages over a few lines at once."""
    from uuid import UUID

    from academy.identifier import AgentId

    agent: AgentId[Any] = AgentId(uid=UUID(options.agent), name=None, role="agent")
    client = await exchange_factory(options.exchange).create_user_client()
    try:
        text = "x" * options.message_bytes

        async def line(number: int) -> None:
            link = Link(agent, client, f"line-{number}")
            for _ in range(options.messages // LINES):
                await link.call("lease", f"line-{number}", text, timeout=30.0)

        await asyncio.gather(*(line(number) for number in range(LINES)))
    finally:
        await client.close()
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--warm", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--exchange", default="")
    parser.add_argument("--agent", default="")
    parser.add_argument("--messages", type=int, default=1_600)
    parser.add_argument("--message-bytes", type=int, default=0)
    parser.add_argument("--reply-bytes", type=int, default=0)
    options = parser.parse_args()
    import uvloop

    cases = {"broker": run_broker, "academy": run_academy, "ask": ask}
    print(json.dumps(uvloop.run(cases[options.case](options))), flush=True)


if __name__ == "__main__":
    main()
