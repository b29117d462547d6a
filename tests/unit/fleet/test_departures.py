"""Workers that go, endpoints that come back: what others do about it."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.fleet.peers import Echo, asked, exchange, settled, station
from tests.unit.fleet.test_keeper import Shelf, ended, kept

from scaleinfer.errors import ConfigError, Permanent, WorkerLost
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._leases import LeaseTable
from scaleinfer.fleet._messages import pack, unpack

pytestmark = pytest.mark.anyio


async def test_a_worker_that_has_left_is_replaced_before_its_launcher_knows() -> None:
    told: list[str] = []
    shelf, broker = Shelf(), Broker("f")
    keeper = kept(shelf, broker, said=told.append)
    running = asyncio.create_task(keeper.run())
    await settled()
    first = station("f-1", Echo())
    await exchange(broker, first)
    first.leave()
    await exchange(broker, first)
    keeper.look_again()
    await settled()
    assert len(shelf.futures) == 3
    # A minute later Parsl reports the job that was cancelled: nothing is wrong, nobody is told.
    shelf.futures[0].set_exception(WorkerLost("its job has ended"))
    await settled()
    assert told == []
    assert len(shelf.futures) == 3
    await ended(running)
    await first.aclose()


async def test_a_worker_that_leaves_because_it_is_broken_is_replaced_once_it_has_ended() -> None:
    shelf, broker = Shelf(), Broker("f")
    keeper = kept(shelf, broker, 1)
    running = asyncio.create_task(keeper.run())
    await settled()
    first = station("f-1", Echo())
    first.broke(Permanent("no such model", fatal=True))
    first.leave()
    await exchange(broker, first)
    keeper.look_again()
    await settled()
    # Its replacements wait longer and longer, which the launcher's error begins.
    assert len(shelf.futures) == 1
    await ended(running)
    await first.aclose()


@pytest.mark.parametrize("worked", [True, False])
async def test_one_that_cannot_start_is_a_reason_to_give_up_only_where_nothing_was_answered(
    worked: bool,
) -> None:
    shelf, broker = Shelf(), Broker("f")
    running = asyncio.create_task(kept(shelf, broker).run())
    await settled()
    first = station("f-1", Echo())
    if worked:
        _, answer = broker.ask(asked("hello"))
        await exchange(broker, first)
        await exchange(broker, first)
        assert answer.done()
    shelf.futures[1].set_exception(ConfigError("the exchange cannot be used"))
    shelf.futures[0].set_exception(WorkerLost("was ended by SIGKILL"))
    await settled()
    assert (broker.problem is None) == worked
    await ended(running)
    await first.aclose()


async def test_only_workers_that_were_sent_home_are_waited_for() -> None:
    shelf, broker = Shelf(), Broker("f")
    keeper = kept(shelf, broker)
    running = asyncio.create_task(keeper.run())
    await settled()
    first = station("f-1", Echo())
    await exchange(broker, first)
    broker.end(WorkerLost("closed"))
    await exchange(broker, first)
    assert first.ended
    assert (keeper.running, keeper.closing) == (2, 1)
    shelf.futures[0].set_result("{}")
    assert keeper.closing == 0
    await ended(running)
    await first.aclose()


async def test_a_worker_with_fewer_places_than_before_uses_them() -> None:
    many, few = Echo(places=10), Echo(places=4)
    many.gate = asyncio.Event()
    broker, worker = Broker("f"), station("w", many)
    answers = [broker.ask(asked(str(number)))[1] for number in range(10)]
    worker._pace._rate = 1000.0
    await exchange(broker, worker)
    assert many.calls == 10
    worker.serve([])
    worker.abandon()
    await settled()
    await exchange(broker, worker)
    worker.serve([few])
    for _ in range(6):
        await exchange(broker, worker)
        await settled(40)
    assert [answer.done() for answer in answers] == [True] * 10
    await worker.aclose()


async def test_what_is_granted_to_a_worker_whose_endpoint_has_just_gone_goes_back() -> None:
    broker, worker = Broker("f"), station("w", Echo())
    broker.ask(asked("hello"))
    message = worker.message()
    reply = unpack(broker.message(pack(message)))
    worker.serve([])
    worker.taken(reply)
    assert worker.pending == 0
    await exchange(broker, worker)
    assert broker.table.queued == 1
    await worker.aclose()


def test_what_all_workers_lost_together_is_nobodys_fault() -> None:
    table = LeaseTable(most_losses=1)
    number = table.add(0)
    table.message("a", 0.0, number=0, ack=-1, room=1, unbegun=0)
    table.grant("a", 0.0, most_bytes=100)
    assert table.lost("a", blame=False) == []
    table.message("b", 0.0, number=0, ack=-1, room=1, unbegun=0)
    table.grant("b", 0.0, most_bytes=100)
    assert table.lost("b") == [number]
