"""Outages, poison, deadlines and mixed faults: one result per item, and the ledger agrees."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import (
    Concurrency,
    OpenAIBackend,
    Permanent,
    Prompt,
    RateLimit,
    Retry,
    Transient,
    parallel_map,
    stream_map,
)
from scaleinfer.errors import RunStopped
from scaleinfer.journal import read_attempts, read_results, verify
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}
FAST = Retry(attempts=20, initial=0.01, maximum=0.02, timeout=0.3)
ITEMS = [f"item {number};" for number in range(40)]

FAULTS = [
    Fault.status(429, rate=0.5, retry_after=0.02, retry_after_form="ms"),
    Fault.status(500, rate=0.5),
    Fault.status(503, rate=0.5),
    Fault.drop(rate=0.5),
    Fault.reset(rate=0.5),
    Fault.stall(first=1, rate=0.3),
    Fault.stall(at=0.5, first=1, rate=0.3),
    Fault.truncate(rate=0.5),
    Fault.malformed(rate=0.5),
    Fault.html(rate=0.5),
    Fault.empty_choices(rate=0.5),
    Fault.slow_drip(size=64, seconds=0.001),
    Fault.keepalive_close(rate=0.5),
    Fault.keepalive_close(on="response", rate=0.5),
]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a server has no event for it
            await asyncio.sleep(0.005)


def one_row_each(journal: Path, items: list[str]) -> None:
    """Assert that the journal holds a good answer for each item, and only one."""
    assert verify(journal).ok
    rows = list(read_results(journal))
    assert [row.ok for row in rows] == [True] * len(items)
    texts = [row.payload["text"] for row in rows]
    assert sorted(texts) == sorted(f"echo: {item}" for item in items)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name} {fault.on[0]}{fault.at}")
async def test_each_fault_with_a_journal(fault: Fault, journal: Path) -> None:
    async with SimulatedServer(faults=[fault]) as server:
        options: dict[str, Any] = {"base_url": server.base_url, "journal": journal, **QUIET}
        results = await parallel_map(ITEMS, "{}", concurrency=16, retry=FAST, **options)
        assert results.texts == [f"echo: {item}" for item in ITEMS]
        one_row_each(journal, ITEMS)
        told = Counter(attempt.key for attempt in read_attempts(journal))
        assert told == {result.key: result.attempts for result in results}
        before = server.ledger.arrived
        again = await parallel_map(ITEMS, "{}", concurrency=16, retry=FAST, **options)
        assert again.stats.resumed == len(ITEMS)
        assert server.ledger.arrived == before
    assert server.ledger.in_flight == 0


@pytest.mark.parametrize("with_journal", [False, True], ids=["", "journal"])
async def test_faults_mixed_at_twenty_percent_in_a_stream(
    with_journal: bool, journal: Path
) -> None:
    share = 0.02
    faults = [
        *(Fault.status(code, rate=share) for code in (408, 500, 502, 503)),
        Fault.status(429, rate=share, retry_after=0.05, retry_after_form="ms"),
        Fault.drop(rate=share),
        Fault.reset(rate=share),
        Fault.stall(rate=share / 2),
        Fault.truncate(rate=share),
        Fault.malformed(rate=share),
        Fault.empty_choices(rate=share),
    ]
    items = [f"item {number};" for number in range(600)]
    async with SimulatedServer(faults=faults, latency=(0.004, 0.003)) as server:
        seen = [
            result
            async for result in stream_map(
                iter(items),
                "{}",
                base_url=server.base_url,
                retry=FAST,
                concurrency=48,
                journal=journal if with_journal else None,
                **QUIET,
            )
        ]
        assert server.ledger.in_flight == 0
        assert set(server.ledger.counts()) == set(items)
        assert set(server.ledger.counts().values()) == {1}
    assert sorted(result.index for result in seen) == list(range(600))
    assert all(result.text == f"echo: {result.item}" for result in seen)
    if with_journal:
        one_row_each(journal, items)


@pytest.mark.parametrize("down", [True, "503", "hang"])
async def test_an_outage_costs_few_calls_and_every_item_survives_it(
    down: Any, journal: Path
) -> None:
    items = [f"item {number};" for number in range(1000)]
    async with SimulatedServer(latency=0.02) as server:
        running = asyncio.create_task(
            parallel_map(
                items,
                "{}",
                base_url=server.base_url,
                concurrency=16,
                retry=Retry(initial=0.1, maximum=0.5, timeout=0.4),
                journal=journal,
                **QUIET,
            )
        )
        await until(lambda: server.ledger.answered >= 200)
        server.change(down=down)
        before = server.ledger.arrived
        await asyncio.sleep(1.0)
        during = server.ledger.arrived - before
        server.change(down=False)
        results = await running
    assert [result.error for result in results.failed] == []
    assert results.stats.calls <= 1.1 * len(items)
    assert during <= 80  # the lanes there are, and a probe now and then
    # An answer that was written as the connection was cut counts for the server only.
    assert sum(server.ledger.counts().values()) <= len(items) + 16
    one_row_each(journal, items)


async def test_an_outage_before_the_first_answer_is_survived_too() -> None:
    async with SimulatedServer() as server:
        backend = OpenAIBackend(server.base_url, model="sim-model")
        server.change(down="503")
        running = asyncio.create_task(parallel_map(ITEMS, "{}", backend=backend, **QUIET))
        await until(lambda: server.ledger.arrived)
        await asyncio.sleep(0.5)
        server.change(down=False)
        assert (await running).stats.ok == len(ITEMS)


def broken_after(answered: int) -> Fault:
    """A server that refuses every request once so many have arrived."""
    numbers = itertools.count()
    return Fault.status(400, match=lambda view: next(numbers) >= answered)


async def test_bad_items_side_by_side_stop_nothing_while_more_were_answered() -> None:
    too_long = Fault.status(400, match=lambda view: int(view.prompt) >= 200)
    async with SimulatedServer(faults=[too_long]) as server:
        results = await parallel_map(
            range(300), "{}", base_url=server.base_url, concurrency=4, **QUIET
        )
    assert results.stopped == ""
    assert [result.ok for result in results] == [number < 200 for number in range(300)]


async def test_as_many_in_a_row_as_were_answered_stop_the_run_and_name_the_cause(
    journal: Path,
) -> None:
    async with SimulatedServer(faults=[broken_after(100)]) as server:
        results = await parallel_map(
            range(1000),
            "{}",
            base_url=server.base_url,
            concurrency=4,
            journal=journal,
            **QUIET,
        )
        assert results.stats.ok == 100
        assert 100 <= results.stats.failed < 110
        assert len(results) == 1000
        assert "100 requests in a row were given up" in results.stopped
        assert "HTTP 400" in results.stopped
        assert isinstance(results[999].error, RunStopped)
        assert "not answered" in str(results[999].error)
        # Those in flight as it stopped have no result; some of them had not even arrived.
        assert server.ledger.arrived <= results.stats.calls < 100 + 100 + 2 * 4
    assert verify(journal).ok
    assert sum(row.ok for row in read_results(journal)) == 100


async def test_one_success_in_between_keeps_a_run_of_failures_going() -> None:
    async with SimulatedServer(
        faults=[Fault.status(400, match=lambda view: int(view.prompt) % 45 != 0)]
    ) as server:
        results = await parallel_map(
            range(400), "{}", base_url=server.base_url, concurrency=1, **QUIET
        )
        assert results.stopped == ""
        assert results.stats.ok == 9
        assert results.stats.failed == 391


async def test_poison_blocks_nobody() -> None:
    faults = [
        Fault.status(500, match="poison"),
        Fault.status(400, match="bad"),
        Fault.stall(match="silent"),
    ]
    words = ["fine", "poison", "fine", "bad", "fine", "silent", "fine", "fine"]
    items = [f"{word} {number};" for number, word in enumerate(itertools.islice(
        itertools.cycle(words), 160
    ))]  # fmt: skip
    async with SimulatedServer(faults=faults) as server:
        results = await parallel_map(
            items,
            "{}",
            base_url=server.base_url,
            concurrency=4,
            retry=Retry(attempts=3, initial=0.02, maximum=0.05, timeout=0.05),
            **QUIET,
        )
    assert [result.ok for result in results] == [item.startswith("fine") for item in items]
    asked = server.ledger.asked()
    for result in results:
        kind = result.item.split()[0]
        assert result.attempts == asked[result.item] == {"fine": 1, "bad": 1}.get(kind, 3)
        if kind == "bad":
            assert isinstance(result.error, Permanent)
        elif kind != "fine":
            assert isinstance(result.error, Transient)


async def test_a_deadline_bounds_an_item_whatever_happens_to_it() -> None:
    faults = [Fault.stall(match="silent"), Fault.status(503, match="full", retry_after=60)]
    items = ["fine 1", "silent 2", "fine 3", "full 4"]
    async with SimulatedServer(faults=faults) as server, asyncio.timeout(10):
        results = await parallel_map(
            items,
            "{}",
            base_url=server.base_url,
            concurrency=1,
            retry=Retry(initial=0.02, maximum=0.1, deadline=0.4),
            **QUIET,
        )
        assert [result.ok for result in results] == [True, False, True, False]
        for result in results.failed:
            assert "Retry.deadline (0.4 s)" in str(result.error)
        assert results[3].attempts == 1
        assert server.ledger.in_flight == 0


async def test_retries_hold_no_place_and_no_lane() -> None:
    fault = Fault.status(500, first=1, match="late")
    items = [f"{'prompt' if number % 4 else 'late'} {number}" for number in range(200)]
    async with SimulatedServer(faults=[fault], latency=0.002) as server:
        results = await parallel_map(
            iter(items),
            "{}",
            base_url=server.base_url,
            concurrency=8,
            retry=Retry(initial=0.3),
            **QUIET,
        )
        assert results.stats.ok == 200
        assert server.ledger.peak_in_flight <= 8
        assert results.stats.calls == server.ledger.arrived


@pytest.mark.parametrize("waiting_for", ["answers", "retries", "a rate limit", "a breaker"])
async def test_cancelling_leaves_nothing_whatever_is_waited_for(
    waiting_for: str, journal: Path
) -> None:
    faults = {"retries": [Fault.status(503, retry_after=30)], "answers": [Fault.stall()]}
    rate = RateLimit(requests_per_minute=60) if waiting_for == "a rate limit" else None
    async with SimulatedServer(faults=faults.get(waiting_for, [])) as server:
        backend = OpenAIBackend(server.base_url, model="sim-model")
        if waiting_for == "a breaker":
            server.change(down="503")
        running = asyncio.create_task(
            parallel_map(
                range(200),
                "{}",
                backend=backend,
                concurrency=8,
                rate_limit=rate,
                journal=journal,
                **QUIET,
            )
        )
        await until(lambda: server.ledger.arrived)
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: server.ledger.in_flight == 0)
        arrived = server.ledger.arrived
        await asyncio.sleep(0.1)
        assert server.ledger.arrived == arrived
        server.change(down=False)
    assert verify(journal).ok


async def test_leaving_a_stream_ends_its_calls_and_keeps_what_landed(journal: Path) -> None:
    def never_after(view: RequestView) -> float:
        return 0.0 if int(view.prompt) < 30 else 60.0

    async with SimulatedServer(latency=never_after) as server:
        landed = []
        stream = stream_map(
            itertools.count(),
            "{}",
            base_url=server.base_url,
            concurrency=8,
            journal=journal,
            **QUIET,
        )
        async with aclosing(stream):
            async for result in stream:
                landed.append(result.item)
                if len(landed) == 30:
                    break
        await until(lambda: server.ledger.in_flight == 0)
        assert sorted(landed) == list(range(30))
        assert server.ledger.aborted == server.ledger.arrived - server.ledger.answered
    assert verify(journal).ok
    assert sum(row.ok for row in read_results(journal)) == 30


async def test_lanes_that_are_too_many_do_not_all_end_at_once() -> None:
    seconds = {**dict.fromkeys(range(15), 0.01), 15: 0.2, **dict.fromkeys(range(16, 31), 0.4)}
    async with SimulatedServer(latency=lambda view: seconds.get(int(view.prompt), 0.0)) as server:
        bounds = Concurrency(min=1, start=16, max=16)
        running = asyncio.create_task(
            parallel_map(range(40), "{}", base_url=server.base_url, concurrency=bounds, **QUIET)
        )
        await until(lambda: server.ledger.answered == 15)
        bounds.max = 1
        # With the 16th answer the run sees that it has too many lanes.
        await until(lambda: server.ledger.answered == 16)
        await asyncio.sleep(0.05)
        time.sleep(0.4)  # noqa: ASYNC251 - the other answers come in the same turn of the loop
        results = await running
    assert [result.index for result in results] == list(range(40))


async def test_packing_that_is_refused_loses_nothing_and_keeps_to_the_limit() -> None:
    fault = Fault.status(400, match=lambda view: len(view.prompts) > 1)
    async with SimulatedServer(latency=0.02, faults=[fault]) as server:
        items = [f"item {number};" for number in range(200)]
        results = await parallel_map(
            items,
            lambda item: Prompt(item, completion=True),
            backend=OpenAIBackend(server.base_url, packing=8),
            concurrency=4,
            **QUIET,
        )
        assert [result.index for result in results] == list(range(200))
        assert results.texts == [f"echo: {item}" for item in items]
        # Those that were under way in packs are asked one by one; then one to a place.
        assert max(server.ledger.per_second()["peak"]) <= 32
