"""Workers without processes and engines, which say to a coordinator what real ones do.

Each has a line of its own over a real exchange; several may share a mailbox. What a real worker
does besides (building requests, asking endpoints) is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.benchmarks._measure import cpu_seconds, raise_file_limit

from scaleinfer import __version__
from scaleinfer.fleet._link import Link, LinkError, find_coordinator
from scaleinfer.fleet._messages import PROTOCOL
from scaleinfer.fleet._pace import Pace
from scaleinfer.fleet._status import WorkerFacts
from scaleinfer.fleet.exchange import exchange_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLACES = 16
REPLY_S = 10.0
ALONE_S = 60.0
TEXT = (
    "the molecule is soluble in water because its hydroxyl groups form hydrogen bonds with solvent "
    "while long aliphatic chains reduce that effect and aromatic rings stack so we expect moderate "
    "values near minus two log units according to measurements reported for similar compounds"
)


def texts(characters: int, seed: int = 0) -> Iterator[str]:
    """Return texts of so many characters that compress as prose does, all different."""
    chosen = random.Random(seed)
    bodies = [" ".join(chosen.choices(TEXT.split(), k=characters // 4)) for _ in range(1_000)]
    number = 0
    while True:
        number += 1
        yield f"{number} {bodies[number % len(bodies)]}"[:characters]


@dataclass
class Tally:
    """What became of the messages of all peers."""

    fed: int = 0
    sent: int = 0
    failed: int = 0
    answered: int = 0
    longest_s: float = 0.0
    intervals: list[float] = field(default_factory=list)


class Peer:
    """One worker as its coordinator sees it: 16 places, so many answers a second."""

    def __init__(
        self,
        name: str,
        rate: float,
        answers: Iterator[str],
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.ended = False
        self.took = 0.0
        self.pace = Pace()
        self._rate = rate
        self._answers = answers
        self._tally = tally
        self._number = self._ack = -1
        self._epoch = ""
        self._held: list[int] = []
        self._done: list[Any] = []
        self._owed = 0.0
        self._clock = clock
        self._at = clock()
        self._fed = False

    def due(self) -> float:
        """Return when the next message goes: earlier if all work is done before."""
        idle_from = self._at + (len(self._held) - self._owed) / self._rate
        early = max(self.pace.due(starving=True), idle_from)
        return min(self.pace.due(starving=False), early)

    def message(self) -> dict[str, Any]:
        """Return what a worker says now."""
        now = self._clock()
        # What the places could work on; those that were idle have earned nothing.
        self._owed = min(self._owed + self._rate * (now - self._at), float(len(self._held)))
        self._at, count = now, int(self._owed)
        self._owed -= count
        for number in self._held[:count]:
            call = (1, "http://node-17:8000/v1", 1790000000.0, 0.51, "ok", None, 250, 50)
            answer = [0, next(self._answers), "stop", (250, 50, 0, 1), "model", [call]]
            self._done.append((number, answer))
        del self._held[:count]
        self.pace.sent(now, len(self._done))
        self._number += 1
        said = {
            "v": PROTOCOL,
            "version": __version__,
            "secret": None,
            "worker": self.name,
            "epoch": self._epoch,
            "n": self._number,
            "ack": self._ack,
            "took": self.took,
            "room": self.pace.room(PLACES),
            "unbegun": max(0, len(self._held) - PLACES),
            "in_flight": min(len(self._held), PLACES),
            "limit": PLACES,
            "done": self._done,
            "back": [],
            "leave": False,
            "leaving": False,
            "broken": None,
        }
        if self._ack < 0:
            said["facts"] = WorkerFacts(node=self.name, pid=1, version=__version__).to_dict()
        return said

    def taken(self, reply: dict[str, Any]) -> None:
        """Take the coordinator's reply."""
        self._tally.answered += len(self._done)
        self._done.clear()
        self._ack, self._epoch = reply["n"], reply["epoch"]
        self.pace.interval = reply["interval"]
        self.ended = reply["end"]
        given = reply.get("give", ())
        dropped = set(reply.get("drop", ()))
        if dropped:
            self._held = [number for number in self._held if number not in dropped]
        self._held += [number for number, _, _ in given]
        if given and not self._fed:
            self._fed = True
            self._tally.fed += 1


async def attend(peer: Peer, link: Link, tally: Tally) -> None:
    """Exchange messages until the coordinator says that it is over."""
    heard, failed = time.monotonic(), 0
    while not peer.ended:
        await asyncio.sleep(max(0.0, peer.due() - time.monotonic()))
        message, began = peer.message(), time.monotonic()
        tally.sent += 1
        try:
            reply = await link.send(message, timeout=REPLY_S)
        except LinkError:
            failed += 1
            peer.took = time.monotonic() - began
            peer.pace.lost()
            if time.monotonic() - heard > ALONE_S:
                return
            await asyncio.sleep(1.0)
            continue
        # What nobody answers once the fleet is closed is not lost.
        tally.failed, failed = tally.failed + failed, 0
        heard = time.monotonic()
        peer.took = heard - began
        tally.longest_s = max(tally.longest_s, peer.took)
        peer.taken(reply)


async def work(options: argparse.Namespace) -> dict[str, Any]:
    """Join with all peers over some seconds, and work until the fleet ends."""
    factory = exchange_factory(options.exchange, heartbeat_s=options.heartbeat)
    tally, answers = Tally(), texts(200)
    running: list[asyncio.Task[None]] = []
    joined: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        first = await factory.create_user_client()
        stack.push_async_callback(first.close)
        agent = None
        while agent is None:
            agent = await find_coordinator(first, options.fleet, None, "peers")
        clients = [first]
        began = time.monotonic()

        async def join(mailbox: int) -> None:
            if mailbox:
                await asyncio.sleep(options.over * mailbox / options.mailboxes)
                clients.append(await factory.create_user_client())
                stack.push_async_callback(clients[-1].close)
            client = clients[-1]
            for number in range(mailbox, options.workers, options.mailboxes):
                name = f"peer-{number}"
                peer = Peer(name, options.rate, answers, tally)
                running.append(asyncio.create_task(attend(peer, Link(agent, client, name), tally)))
            joined.append(time.monotonic() - began)

        await asyncio.gather(*(join(mailbox) for mailbox in range(options.mailboxes)))
        fed_at = 0.0
        while not fed_at and time.monotonic() - began < 120:
            await asyncio.sleep(0.1)
            if tally.fed == options.workers:
                fed_at = time.monotonic() - began
        cpu, since = cpu_seconds(), time.monotonic()
        await asyncio.gather(*running)
        return {
            "joined_s": max(joined),
            "fed": tally.fed,
            "fed_s": fed_at,
            "sent": tally.sent,
            "unanswered": tally.failed,
            "answered": tally.answered,
            "longest_s": tally.longest_s,
            "cores": (cpu_seconds() - cpu) / (time.monotonic() - since),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchange", required=True)
    parser.add_argument("--fleet", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--mailboxes", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--over", type=float, default=5.0)
    parser.add_argument("--heartbeat", type=float, default=2.0)
    options = parser.parse_args()
    import uvloop

    raise_file_limit()
    logging.disable(logging.WARNING)
    print(json.dumps(uvloop.run(work(options))), flush=True)


if __name__ == "__main__":
    main()
