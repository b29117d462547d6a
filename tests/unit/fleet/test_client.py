"""Maps that use a coordinator in another process, over a line that loses messages."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
from tests.unit.fleet.peers import Echo, asked, exchange, settled, station

from scaleinfer.errors import ConfigError, Permanent, WorkerLost
from scaleinfer.fleet import _client
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._client import RemoteBroker
from scaleinfer.fleet._link import LinkError
from scaleinfer.fleet._messages import pack, unpack

pytestmark = pytest.mark.anyio


class Line:
    """A link that loses requests and replies by chance."""

    def __init__(self, broker: Broker, *, loses: float = 0.0) -> None:
        self.broker = broker
        self.loses = loses
        self._chance = random.Random(7)

    async def send(self, message: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        text = pack(message)
        await asyncio.sleep(0)
        if self._chance.random() < self.loses:
            raise LinkError("lost on the way")
        reply: dict[str, Any] = unpack(self.broker.message(text))
        if self._chance.random() < self.loses:
            raise LinkError("the reply was lost")
        return reply


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "_PAUSE_S", 0.0)
    monkeypatch.setattr(_client, "_IDLE_S", 0.0)


def remote(line: Line, *, secret: str | None = None) -> tuple[RemoteBroker, asyncio.Task[None]]:
    broker = RemoteBroker(line, "fleet", secret)  # type: ignore[arg-type] # all it needs of a link
    return broker, asyncio.create_task(broker.run())


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_every_request_is_answered_once_whatever_the_line_loses() -> None:
    broker, worker = Broker("fleet"), station("w", Echo(places=8))
    far, running = remote(Line(broker, loses=0.3))
    words = [f"word {number}" for number in range(150)]
    answers = [far.ask(asked(word), job=far.job())[1] for word in words]
    for _ in range(1000):
        if all(answer.done() for answer in answers):
            break
        await exchange(broker, worker)
    assert [answer.result().text for answer in answers] == words
    assert {answer.result().worker for answer in answers} == {"w"}
    assert broker.table.statistics().answered == len(words)
    assert far.workers == 1
    await ended(running)
    await worker.aclose()


async def test_errors_travel_with_their_kind() -> None:
    def raises(_: str) -> None:
        raise Permanent("too long", endpoint="echo", status=400)

    broker, worker = Broker("fleet"), station("w", Echo(before=raises))
    far, running = remote(Line(broker))
    _, answer = far.ask(asked("x"))
    for _ in range(20):
        await exchange(broker, worker)
    with pytest.raises(Permanent, match="too long") as caught:
        await answer
    assert [attempt.status for attempt in caught.value.attempts] == ["Permanent"]
    await ended(running)
    await worker.aclose()


async def test_another_coordinator_is_asked_again() -> None:
    first, second, worker = Broker("fleet"), Broker("fleet"), station("w", Echo())
    line = Line(first)
    far, running = remote(line)
    _, answer = far.ask(asked("hello"))
    await settled(50)
    line.broker = second
    for _ in range(20):
        await exchange(second, worker)
        await settled(20)
    assert (await answer).text == "hello"
    await ended(running)
    await worker.aclose()


async def test_a_withdrawn_request_is_withdrawn_there() -> None:
    broker = Broker("fleet")
    far, running = remote(Line(broker))
    number, _ = far.ask(asked("hello"))
    await settled(50)
    assert broker.table.queued == 1
    far.withdraw(number)
    far.ask(asked("other"))
    await settled(50)
    assert broker.table.queued == 1
    await ended(running)


async def test_a_client_that_is_gone_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker("fleet")
    far, running = remote(Line(broker))
    far.ask(asked("hello"))
    await settled(50)
    await ended(running)
    now = time.monotonic()
    monkeypatch.setattr("scaleinfer.fleet._broker.time.monotonic", lambda: now + 61.0)
    broker.tick()
    assert broker.table.queued == 0


async def test_a_coordinator_that_stays_silent_fails_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_client, "_PATIENCE_S", -1.0)
    far, running = remote(Line(Broker("fleet"), loses=1.0))
    _, answer = far.ask(asked("hello"))
    with pytest.raises(WorkerLost, match="silent"):
        await answer
    with pytest.raises(WorkerLost):
        far.ask(asked("later"))
    await running


async def test_a_wrong_secret_is_said() -> None:
    far, running = remote(Line(Broker("fleet", secret="word")), secret="guess")
    _, answer = far.ask(asked("hello"))
    with pytest.raises(ConfigError, match="does not know the secret"):
        await answer
    await running


async def test_the_status_is_the_coordinators() -> None:
    broker, worker = Broker("fleet"), station("w", Echo())
    await exchange(broker, worker)
    far, running = remote(Line(broker))
    with pytest.raises(ConfigError, match="nothing is known"):
        far.status()
    await settled(50)
    assert [one.name for one in far.status().workers] == ["w"]
    await ended(running)
    await worker.aclose()
