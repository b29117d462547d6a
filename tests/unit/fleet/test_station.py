"""A worker's inside, without its agent."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from tests.unit.fleet.peers import Echo, asked, exchange, settled, station

from scaleinfer.backends._base import UserRate
from scaleinfer.errors import Transient
from scaleinfer.fleet import _station
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._messages import pack

pytestmark = pytest.mark.anyio


async def test_without_endpoints_it_wants_nothing() -> None:
    broker, worker = Broker("f"), station("w")
    broker.ask(asked("hello"))
    assert worker.message()["room"] == 0
    worker.lost()
    reply = await exchange(broker, worker)
    assert reply["give"] == []
    await worker.aclose()


async def test_as_many_calls_as_there_are_places() -> None:
    backend = Echo(places=3)
    backend.gate = asyncio.Event()
    broker, worker = Broker("f"), station("w", backend)
    for number in range(20):
        broker.ask(asked(str(number)))
    worker._pace._rate = 1000.0
    await exchange(broker, worker)
    assert backend.calls == 3
    assert worker.pending == 20
    assert worker.message()["in_flight"] == 3
    worker.lost()
    backend.gate.set()
    await settled(80)
    assert backend.calls == 20
    await worker.aclose()


async def test_answers_are_told_until_a_reply_comes() -> None:
    broker, worker = Broker("f"), station("w", Echo())
    number, _ = broker.ask(asked("hello"))
    await exchange(broker, worker)
    for _ in range(3):
        assert [entry[0] for entry in worker.message()["done"]] == [number]
        worker.lost()
    await exchange(broker, worker)
    assert worker.message()["done"] == []
    worker.lost()
    await worker.aclose()


async def test_many_answers_ride_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_station, "_MOST_DONE", 2)
    broker, worker = Broker("f"), station("w", Echo(places=5))
    answers = [broker.ask(asked(str(number)))[1] for number in range(5)]
    await exchange(broker, worker)
    assert worker.due() == 0.0
    for _ in range(3):
        await exchange(broker, worker)
    assert all(answer.done() for answer in answers)
    await worker.aclose()


async def test_an_endpoint_that_is_back_is_asked_again() -> None:
    broken = [True]

    def fails(_: str) -> None:
        if broken:
            raise Transient("refused", endpoint="echo", reached=False)

    backend = Echo(before=fails)
    broker, worker = Broker("f"), station("w", backend)
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, worker)
    assert worker.stopped.is_set()
    assert worker.broken is not None
    reply = await exchange(broker, worker)
    assert reply["give"] == []
    assert broker.table.queued == 1
    broken.clear()
    worker.serve([backend])
    await exchange(broker, worker)
    await exchange(broker, worker)
    assert (await answer).text == "hello"
    assert broker.status().workers[0].state == "working"
    await worker.aclose()


async def test_what_is_abandoned_goes_back() -> None:
    backend = Echo()
    backend.gate = asyncio.Event()
    broker, worker = Broker("f"), station("w", backend)
    broker.ask(asked("hello"))
    await exchange(broker, worker)
    worker.leave()
    worker.abandon()
    await settled()
    assert worker.pending == 0
    await exchange(broker, worker)
    assert broker.table.queued == 1
    assert broker.workers == 0
    await worker.aclose()


async def test_a_refusal_is_kept() -> None:
    broker, worker = Broker("f", secret="word"), station("w", Echo(), secret="guess")
    await exchange(broker, worker)
    assert "does not know the secret" in worker.refused
    await worker.aclose()


async def test_facts_are_told_once_and_again_when_they_change() -> None:
    broker, worker = Broker("f"), station("w", Echo())
    assert "facts" in worker.message()
    worker.lost()
    await exchange(broker, worker)
    said = worker.message()
    assert "facts" not in said
    broker.message(pack(said))
    worker.lost()
    assert "facts" in worker.message()
    worker.lost()
    await worker.aclose()


class Limited(Echo):
    """An endpoint that counts a user's requests over all machines."""

    def __init__(self) -> None:
        super().__init__()
        self.user_rate = UserRate("gateway", 10.0)
        self.share: int | None = None
        self.until = 0.0

    def use_share(self, holder: object, requests: int, *, until: float = math.inf) -> None:
        self.share, self.until = requests, until

    def share_of(self, holder: object) -> int:
        return self.share or 0


async def test_workers_share_what_a_user_may_send() -> None:
    broker, backends = Broker("f"), [Limited(), Limited()]
    workers = [station("one"), station("two")]
    for worker, backend in zip(workers, backends, strict=True):
        worker.limit([backend])
        assert backend.share == 0, "nothing is sent before the coordinator allows it"
        worker.serve([backend])
    broker.ask(asked("a"))
    reply = await exchange(broker, workers[0])
    assert (backends[0].share, reply["give"]) == (10, [])
    await exchange(broker, workers[1])
    assert backends[1].share == 0
    message = workers[1].message()
    assert message["room"] == 0, "it could not ask anything"
    workers[1].lost()
    assert (await exchange(broker, workers[0]))["shares"] == {"gateway": 5}
    assert backends[0].until - time.monotonic() > 5
    assert backends[0].calls == 1
    for worker in workers:
        await worker.aclose()
