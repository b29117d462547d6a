"""Workers are started, replaced and given up as the scaling says."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.fleet.peers import Echo, asked, exchange, settled, station

from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet import WorkerSpec
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._keeper import Keeper
from scaleinfer.fleet._scaling import Scaling

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


class Shelf:
    """A launcher whose workers the test plays."""

    name = "shelf"
    max_workers: int | None = None

    def __init__(self) -> None:
        self.futures: list[Future[str]] = []
        self.specs: list[WorkerSpec] = []

    def start(self, spec: str) -> Future[str]:
        self.specs.append(WorkerSpec.from_json(spec))
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        raise AssertionError("the fleet closes its launcher")


def kept(
    shelf: Shelf, broker: Broker, workers: int = 2, said: Callable[[str], None] = lambda _: None
) -> Keeper:
    scaling = Scaling(least=workers, most=workers, first=workers, idle_s=1.0)
    spec = WorkerSpec("redis://x", fleet="f")
    return Keeper(shelf, broker, scaling, spec, Path("/logs"), said)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_workers_get_names_of_their_own() -> None:
    shelf, broker = Shelf(), Broker("f")
    keeper = kept(shelf, broker)
    running = asyncio.create_task(keeper.run())
    await settled()
    assert [spec.name for spec in shelf.specs] == ["f-1", "f-2"]
    assert keeper.running == 2
    await ended(running)


async def test_a_worker_whose_process_ended_loses_its_work_at_once() -> None:
    told: list[str] = []
    shelf, broker = Shelf(), Broker("f")
    running = asyncio.create_task(kept(shelf, broker, said=told.append).run())
    await settled()
    first, second = station("f-1", Echo()), station("f-2", Echo())
    _, answer = broker.ask(asked("hello"))
    await exchange(broker, first)
    shelf.futures[0].set_exception(WorkerLost("was ended by SIGKILL"))
    await settled()
    assert told == ["f-1 has ended: was ended by SIGKILL"]
    await exchange(broker, second)
    await exchange(broker, second)
    assert (await answer).worker == "f-2"
    await ended(running)
    for one in (first, second):
        await one.aclose()


async def test_a_wrong_setting_fails_those_who_wait() -> None:
    shelf, broker = Shelf(), Broker("f")
    running = asyncio.create_task(kept(shelf, broker, 1).run())
    await settled()
    _, answer = broker.ask(asked("hello"))
    shelf.futures[0].set_exception(ConfigError("no such partition"))
    with pytest.raises(ConfigError, match="no such partition"):
        await answer
    await ended(running)


async def test_workers_that_never_come_fail_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scaleinfer.fleet._scaling._FIRST_HOLD", 0.0)
    shelf, broker = Shelf(), Broker("f")
    keeper = kept(shelf, broker, 1)
    running = asyncio.create_task(keeper.run())
    _, answer = broker.ask(asked("hello"))
    while not answer.done():
        await settled()
        if shelf.futures and not shelf.futures[-1].done():
            shelf.futures[-1].set_exception(RuntimeError("segmentation fault"))
        keeper.look_again()
    with pytest.raises(WorkerLost, match="segmentation fault") as caught:
        await answer
    assert "/logs" in caught.value.hint
    assert len(shelf.futures) == 5
    await ended(running)
