"""The coordinator's inside against real stations, over a line that loses messages."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from tests.unit.fleet.peers import Echo, asked, exchange, settled, station

from scaleinfer.errors import (
    AuthError,
    ConfigError,
    EndpointError,
    Permanent,
    PromptError,
    Transient,
    WorkerLost,
)
from scaleinfer.fleet import _broker
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._messages import pack, unpack

pytestmark = pytest.mark.anyio


class Clock:
    """The broker's clock, in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_broker, "time", clock)
    return clock


async def test_a_request_goes_to_a_worker_and_its_answer_comes_back() -> None:
    broker, worker = Broker("fleet"), station("w", Echo())
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, worker)
    await exchange(broker, worker)
    completion = await answer
    assert completion.text == "hello"
    assert completion.worker == "w"
    [attempt] = completion.attempts
    assert (attempt.endpoint, attempt.status) == ("echo", "ok")
    assert broker.status().answered == 1
    await worker.aclose()


async def test_every_request_is_answered_once_whatever_the_line_loses() -> None:
    chance = random.Random(4)
    broker = Broker("fleet")
    workers = [station(f"w{number}", Echo(places=3)) for number in range(3)]
    words = [f"word {number}" for number in range(200)]
    answers = [broker.ask(asked(word))[1] for word in words]
    for _ in range(2000):
        if all(answer.done() for answer in answers):
            break
        await exchange(
            broker,
            chance.choice(workers),
            arrives=chance.random() > 0.3,
            replied=chance.random() > 0.3,
        )
    assert [answer.result().text for answer in answers] == words
    assert broker.table.statistics().answered == len(words)
    for worker in workers:
        await worker.aclose()


async def test_a_silent_workers_requests_go_to_another(clock: Clock) -> None:
    stuck = Echo()
    stuck.gate = asyncio.Event()
    broker, silent, other = Broker("fleet"), station("silent", stuck), station("other", Echo())
    told: list[str] = []
    broker.on_change = told.append
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, silent)
    await exchange(broker, other)
    for _ in range(12):
        clock.now += 1.0
        await exchange(broker, other)
        broker.tick()
    await exchange(broker, other)
    assert (await answer).worker == "other"
    assert any("silent on n1 was not heard of" in line for line in told)
    # It was only cut off: it comes back, and its late answer is no second one.
    stuck.gate.set()
    await settled()
    await exchange(broker, silent)
    assert broker.workers == 2
    assert broker.status().doubled == 1
    for worker in (silent, other):
        await worker.aclose()


async def test_what_was_given_to_a_lost_worker_again_and_again_fails(clock: Clock) -> None:
    broker = Broker("fleet")
    _, answer = broker.ask(asked("poison"))
    for life in range(10):
        if answer.done():
            break
        worker = station(f"w{life}", Echo())
        await exchange(broker, worker)
        broker.lost(f"w{life}", "was ended by SIGKILL")
        await worker.aclose()
    with pytest.raises(WorkerLost, match="w3 on n1, was ended by SIGKILL"):
        await answer


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (Permanent("too long", endpoint="echo", status=400), True),
        (Transient("HTTP 500", endpoint="echo", status=500), True),
        (AuthError("no key", endpoint="echo", fatal=True), False),
        (Transient("refused", endpoint="echo", reached=False), False),
    ],
)
async def test_what_is_the_nodes_fault_goes_to_another_node(
    error: EndpointError, final: bool
) -> None:
    def raises(_: str) -> None:
        raise error

    broker, bad, good = Broker("fleet"), station("bad", Echo(before=raises)), station("g", Echo())
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, bad)
    await exchange(broker, bad)
    if final:
        with pytest.raises(type(error), match=error.message):
            await answer
    else:
        assert broker.status().workers[0].state == "broken"
        assert error.message in broker.status().workers[0].problem
        await exchange(broker, good)
        await exchange(broker, good)
        assert (await answer).worker == "g"
    for worker in (bad, good):
        await worker.aclose()


async def test_if_no_worker_can_work_those_who_wait_learn_why(clock: Clock) -> None:
    def raises(_: str) -> None:
        raise AuthError("no key", endpoint="echo", fatal=True)

    broker, bad = Broker("fleet"), station("bad", Echo(before=raises))
    _, answer = broker.ask(asked("hello"))
    for _ in range(25):
        clock.now += 1.0
        await exchange(broker, bad)
        broker.tick()
    with pytest.raises(AuthError, match="no key"):
        await answer
    await bad.aclose()


async def test_a_withdrawn_request_is_dropped_by_its_worker() -> None:
    backend = Echo()
    backend.gate = asyncio.Event()
    broker, worker = Broker("fleet"), station("w", backend)
    number, answer = broker.ask(asked("hello"))
    await exchange(broker, worker)
    assert worker.pending == 1
    answer.cancel()
    broker.withdraw(number)
    await exchange(broker, worker)
    assert worker.pending == 0
    await worker.aclose()


async def test_a_worker_that_leaves_hands_back_what_it_has_not_begun() -> None:
    backend = Echo(places=1)
    backend.gate = asyncio.Event()
    broker, worker, other = Broker("fleet"), station("w", backend), station("o", Echo())
    answers = [broker.ask(asked(f"{n}"))[1] for n in range(3)]
    worker._pace._rate = 100.0
    await exchange(broker, worker)
    assert worker.pending == 3
    worker.leave()
    await exchange(broker, worker)
    await exchange(broker, other)
    await exchange(broker, other)
    assert [answer.done() for answer in answers] == [False, True, True]
    backend.gate.set()
    await settled()
    reply = await exchange(broker, worker)
    assert "give" not in reply
    assert all(answer.done() for answer in answers)
    assert broker.workers == 1
    for one in (worker, other):
        await one.aclose()


async def test_a_dismissed_worker_finishes_and_leaves() -> None:
    broker, worker = Broker("fleet"), station("w", Echo())
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, worker)
    broker.dismiss(1)
    await exchange(broker, worker)
    assert worker.leaving
    await exchange(broker, worker)
    assert (await answer).text == "hello"
    assert broker.workers == 0
    await worker.aclose()


async def test_a_new_coordinator_does_not_know_its_predecessors_tasks() -> None:
    backend = Echo()
    backend.gate = asyncio.Event()
    first, second, worker = Broker("fleet"), Broker("fleet"), station("w", backend)
    first.ask(asked("old"))
    await exchange(first, worker)
    _, answer = second.ask(asked("new"))
    await exchange(second, worker)
    await settled()
    backend.gate.set()
    await settled()
    await exchange(second, worker)
    assert (await answer).text == "new"
    assert second.status().doubled == 0
    await worker.aclose()


async def test_the_end_is_told_to_workers_and_to_those_who_wait() -> None:
    broker, worker = Broker("fleet"), station("w", Echo())
    await exchange(broker, worker)
    _, answer = broker.ask(asked("hello"))
    broker.end(ConfigError("the fleet was closed."))
    with pytest.raises(ConfigError, match="closed"):
        await answer
    with pytest.raises(ConfigError, match="closed"):
        broker.ask(asked("late"))
    await exchange(broker, worker)
    assert worker.ended
    assert broker.workers == 0
    await worker.aclose()


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ({"v": 99, "version": "9.0"}, "install the same version on both sides"),
        ({"v": 1, "secret": "wrong"}, "does not know the secret"),
        ({"v": 1}, "does not know the secret"),
        ({"v": 1, "secret": "word"}, "cannot read the message"),
        (["v"], "cannot read the message"),
    ],
)
async def test_who_is_not_let_in_learns_why(said: Any, refusal: str) -> None:
    broker = Broker("fleet", secret="word")
    assert refusal in unpack(broker.message(pack(said)))["refuse"]
    assert broker.workers == 0


@pytest.mark.parametrize("text", ["", "no base64!", "aGVsbG8="])
async def test_garbage_is_refused(text: str) -> None:
    assert "cannot read" in unpack(Broker("fleet").message(text))["refuse"]


async def test_a_prompt_that_is_no_json_fails_alone() -> None:
    broker = Broker("fleet")
    request = asked("x")
    assert request.messages is not None
    request.messages[0]["content"] = object()
    with pytest.raises(PromptError):
        broker.ask(request)
    assert broker.table.queued == 0


async def test_a_workers_nonsense_fails_the_request_and_names_the_worker() -> None:
    broker, worker = Broker("fleet"), station("w", Echo())
    number, answer = broker.ask(asked("hello"))
    await exchange(broker, worker)
    said = worker.message()
    said["done"] = [[number, ["nonsense"]]]
    broker.message(pack(said))
    with pytest.raises(Permanent, match="w sent"):
        await answer
    await worker.aclose()


async def test_jobs_have_numbers_of_their_own() -> None:
    broker = Broker("fleet")
    assert broker.job() != broker.job()
