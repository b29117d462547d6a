"""Budgets against a server whose ledger knows what was really used."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import ConfigError, Retry, parallel_embed, parallel_map, stream_map
from scaleinfer.batch import Batch
from scaleinfer.engine import Budget, Dispatch
from scaleinfer.errors import BudgetExceeded
from scaleinfer.journal import verify
from scaleinfer.prices import Price
from scaleinfer.testing import BatchApi, Fault, RequestView, SimulatedServer

if TYPE_CHECKING:
    from pathlib import Path

    from scaleinfer.mapping import MapResult
    from scaleinfer.program import LLM

pytestmark = pytest.mark.anyio

ITEMS = [f"sample {number}" for number in range(600)]
PROMPT = "Is {} soluble in water? Say why, in one sentence."
PRICES = {"*": Price(prompt=1.0, completion=4.0)}
SHORT = {"max_tokens": 64}


def lengthy(view: RequestView) -> str:
    """Answer in lognormal lengths, the same for the same prompt."""
    return "word " * max(1, int(random.Random(view.text).lognormvariate(2.5, 0.7)))


async def mapped(server: SimulatedServer, items: Any = ITEMS, **options: Any) -> MapResult:
    given: dict[str, Any] = {"sampling": SHORT, "prices": PRICES, "progress": "none"} | options
    return await parallel_map(items, PROMPT, base_url=server.base_url, **given)


def tokens(server: SimulatedServer) -> int:
    return server.ledger.prompt_tokens + server.ledger.completion_tokens


def dollars(server: SimulatedServer) -> float:
    return (server.ledger.prompt_tokens + 4 * server.ledger.completion_tokens) / 1e6


async def test_tokens_are_capped_and_used_up() -> None:
    cap = 8_000
    async with SimulatedServer(latency=0.005, answer=lengthy) as server:
        results = await mapped(server, budget=Budget(tokens=cap))
        assert 0.95 * cap <= tokens(server) <= cap
        assert results.usage.total_tokens == tokens(server)
    stats = results.stats
    assert len(results.ok) == stats.ok == stats.items < len(ITEMS)
    assert stats.not_asked == len(ITEMS) - stats.ok
    assert "8,000 tokens is reached" in results.stopped
    error = results.failed[-1].error
    assert isinstance(error, BudgetExceeded)
    assert (error.cap, error.limit, error.index) == ("tokens", cap, len(ITEMS) - 1)
    # Those in flight landed: nothing was cut off.
    assert server.ledger.aborted == 0


async def test_dollars_are_capped_and_used_up() -> None:
    cap = 0.02
    async with SimulatedServer(latency=0.005, answer=lengthy) as server:
        results = await mapped(server, budget=Budget(usd=cap))
        assert 0.95 * cap <= dollars(server) <= cap
        assert results.stats.cost_usd == pytest.approx(dollars(server))
    [line] = results.stats.costs
    assert (line.model, line.calls, line.failed) == ("sim-model", results.stats.ok, 0)
    assert line.cost_usd == results.stats.cost_usd == pytest.approx(results.cost_usd)


async def test_without_max_tokens_the_first_answer_shows_how_long_they_are() -> None:
    cap = 8_000
    async with SimulatedServer(latency=0.005, answer=lengthy) as server:
        await mapped(server, budget=Budget(tokens=cap), sampling=None)
        assert 0.95 * cap <= tokens(server) <= cap


async def test_calls_are_capped_whatever_becomes_of_them() -> None:
    faults = [Fault.status(500, rate=0.2), Fault.status(503, rate=0.2)]
    async with SimulatedServer(faults=faults) as server:
        results = await mapped(
            server,
            budget=Budget(requests=100),
            retry=Retry(initial=0.01, maximum=0.02),
            dispatch=Dispatch(hedging=True, hedging_share=0.5),
        )
        assert 95 <= server.ledger.arrived <= 100
        assert results.stats.ok == len(results.ok) > 40


async def test_what_is_cut_off_counts_as_the_most_it_may_have_used() -> None:
    async with SimulatedServer(faults=[Fault.reset(rate=0.3)], answer=lengthy) as server:
        results = await mapped(
            server,
            budget=Budget(tokens=20_000),
            retry=Retry(initial=0.01, maximum=0.02),
        )
        assert tokens(server) <= 20_000
    [line] = results.stats.costs
    assert line.failed > 0
    assert line.unsure_tokens > 0
    assert line.usage.total_tokens + line.unsure_tokens <= 20_000


async def test_a_larger_budget_goes_on_where_the_smaller_one_ended(journal: Path) -> None:
    async with SimulatedServer(answer=lengthy) as server:
        first = await mapped(server, budget=Budget(tokens=5_000), journal=journal)
        # What the journal has used counts: the same budget has nothing left.
        again = await mapped(server, budget=Budget(tokens=5_000), journal=journal)
        assert again.stats.resumed == first.stats.ok
        assert 0.9 * 5_000 <= tokens(server) <= 5_000
        more = await mapped(server, budget=Budget(tokens=10_000), journal=journal)
        assert more.stats.resumed == again.stats.ok
        assert 9_500 <= tokens(server) <= 10_000
        rest = await mapped(server, journal=journal)
        assert rest.stats.resumed == more.stats.ok
        assert len(rest.ok) == len(ITEMS)
        assert server.ledger.arrived == len(ITEMS)


KILLED = """
import asyncio, os, sys
from scaleinfer import parallel_map
from scaleinfer.engine import Budget

async def main():
    await parallel_map([f"sample {n}" for n in range(600)], sys.argv[3], base_url=sys.argv[1],
        budget=Budget(tokens=6_000), sampling={"max_tokens": 64}, journal=sys.argv[2],
        progress="none")

asyncio.run(main())
"""


async def test_a_killed_run_has_used_what_was_in_flight(journal: Path) -> None:
    cap = 6_000
    async with SimulatedServer(latency=0.05, answer=lengthy) as server:
        arguments = [sys.executable, "-c", KILLED, server.base_url, str(journal), PROMPT]
        process = await asyncio.create_subprocess_exec(*arguments)
        while server.ledger.answered < 30:  # noqa: ASYNC110 - the server counts in another task
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        # What was in flight then is paid for, at worst, and answered to nobody.
        lost = server.ledger.arrived - server.ledger.answered
        results = await mapped(server, budget=Budget(tokens=cap), journal=journal)
        assert results.stats.resumed > 0
        assert results.stopped
        assert tokens(server) + lost * SHORT["max_tokens"] <= cap


async def test_maps_with_the_same_budget_share_it() -> None:
    budget = Budget(tokens=6_000)
    async with SimulatedServer(latency=0.005, answer=lengthy) as server:
        halves = await asyncio.gather(
            mapped(server, ITEMS[:300], budget=budget), mapped(server, ITEMS[300:], budget=budget)
        )
        assert all(half.stopped for half in halves)
        assert 0.95 * 6_000 <= tokens(server) <= 6_000
        later = await mapped(server, budget=budget)
        assert tokens(server) <= 6_000
        assert len(later.ok) < 5


async def test_seconds_end_a_run_and_what_is_in_flight_lands() -> None:
    async with SimulatedServer(latency=0.1) as server:
        results = await mapped(server, budget=Budget(seconds=0.6), concurrency=8)
        assert results.stopped.startswith("the budget of 0.6 seconds is reached")
        assert 8 <= len(results.ok) == server.ledger.answered == server.ledger.arrived < 100


async def test_an_item_that_costs_too_much_fails_alone(journal: Path) -> None:
    def questions(item: str) -> dict[str, str]:
        names = "abc" if item.endswith("7") else "ab"
        return {name: f"Is {item} soluble? {name}" for name in names}

    async with SimulatedServer() as server:
        results = await parallel_map(
            ITEMS[:20],
            questions,
            base_url=server.base_url,
            prices={"*": Price(request=1.0)},
            budget=Budget(per_item_usd=2.5),
            sampling=SHORT,
            journal=journal,
            progress="none",
        )
    assert [result.index for result in results.failed] == [7, 17]
    error = results[7].error
    assert isinstance(error, BudgetExceeded)
    assert error.cap == "per_item_usd"
    assert not results.stopped
    assert verify(journal).ok


async def test_a_programs_calls_are_capped_too() -> None:
    async def twice(item: str, llm: LLM) -> str | None:
        first = await llm(f"About {item}")
        return (await llm(f"More on {first.text}")).text

    async with SimulatedServer(latency=0.005) as server:
        results = await parallel_map(
            ITEMS[:200],
            twice,
            base_url=server.base_url,
            budget=Budget(requests=101),
            progress="none",
        )
        assert server.ledger.arrived == 101
    assert 30 <= len(results.ok) <= 50
    assert all(isinstance(result.error, BudgetExceeded) for result in results.failed)
    assert results.stopped


async def test_a_stream_raises_once_what_had_landed_is_out() -> None:
    landed: Counter[bool] = Counter()

    async def stream(server: SimulatedServer) -> None:
        budget = Budget(requests=50)
        async for result in stream_map(
            ITEMS, PROMPT, base_url=server.base_url, budget=budget, progress="none"
        ):
            landed[result.ok] += 1

    async with SimulatedServer() as server:
        with pytest.raises(BudgetExceeded, match="50 requests"):
            await stream(server)
        assert landed == {True: 50}
        assert server.ledger.arrived == 50


async def test_embeddings_are_capped() -> None:
    async with SimulatedServer() as server:
        results = await parallel_embed(
            ITEMS, base_url=server.base_url, batch=16, budget=Budget(requests=10), progress="none"
        )
        assert server.ledger.arrived == 10
        assert len(results.ok) == 160
        capped = await parallel_embed(
            ITEMS, base_url=server.base_url, batch=16, budget=Budget(tokens=900), progress="none"
        )
        used = sum(result.usage.prompt_tokens for result in capped.ok)
        assert 0.95 * 900 <= used <= 900


async def test_a_batch_is_reserved_before_it_is_submitted() -> None:
    api = BatchApi(seconds=0.1)
    async with SimulatedServer(batches=api, answer=lengthy) as server:
        results = await mapped(
            server,
            budget=Budget(tokens=8_000),
            mode=Batch(poll_s=(0.02, 0.05), max_rows=50),
        )
        assert 0.9 * 8_000 <= results.usage.total_tokens <= 8_000
        assert results.stats.batches >= 2
        assert {result.batch is None for result in results.ok} == {False}
    assert all(isinstance(result.error, BudgetExceeded) for result in results.failed)


async def test_a_budget_in_dollars_needs_a_price() -> None:
    async with SimulatedServer() as server:
        with pytest.raises(ConfigError, match="none is known for sim-model"):
            await mapped(server, budget=Budget(usd=1.0), prices=None)
        assert server.ledger.arrived == 0


async def test_node_hours_need_a_fleet() -> None:
    async with SimulatedServer() as server:
        with pytest.raises(ConfigError, match="over a fleet"):
            await mapped(server, budget=Budget(node_hours=1.0))


async def test_a_budget_is_none_of_a_number() -> None:
    async with SimulatedServer() as server:
        with pytest.raises(ConfigError, match="budget must be a Budget"):
            await mapped(server, budget=5.0)
