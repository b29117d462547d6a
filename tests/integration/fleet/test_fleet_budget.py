"""A budget holds over a fleet, also when workers are lost."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from tests.integration.fleet.test_fleet import of, until

from scaleinfer import Retry, parallel_map
from scaleinfer.engine import Budget
from scaleinfer.errors import BudgetExceeded
from scaleinfer.fleet import Fleet
from scaleinfer.prices import Prices
from scaleinfer.testing import SimulatedServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ITEMS = [f"item {number}" for number in range(400)]
OPTIONS: dict[str, Any] = {"progress": False, "sampling": {"max_tokens": 20}}


async def test_a_budget_holds_over_a_fleet() -> None:
    async with (
        SimulatedServer(latency=0.01) as server,
        Fleet.local(2, backend=server.base_url) as fleet,
    ):
        await fleet.ready(2, timeout=60)
        results = await parallel_map(
            ITEMS,
            "{}",
            fleet=fleet,
            budget=Budget(tokens=1_000, node_hours=1.0),
            prices=Prices(units_per_node_hour=2.0),
            **OPTIONS,
        )
        used = server.ledger.prompt_tokens + server.ledger.completion_tokens
        assert 950 <= used <= 1_000
        assert results.usage.total_tokens == used
    stats = results.stats
    assert all(isinstance(result.error, BudgetExceeded) for result in results.failed)
    [line] = stats.costs
    assert line.calls == len(results.ok)
    assert stats.node_hours is not None
    assert stats.node_hours > 0
    assert stats.allocation_units == 2 * stats.node_hours


async def test_what_a_lost_worker_had_is_paid_for_before_it_is_asked_again() -> None:
    cap = 2_000  # all of them would take 2,390
    async with (
        SimulatedServer(latency=0.3) as server,
        Fleet.local(2, backend=server.base_url, concurrency=8) as fleet,
    ):
        await fleet.ready(2, timeout=60)
        victim = of(fleet)[0]
        mapping = asyncio.ensure_future(
            parallel_map(
                ITEMS,
                "{}",
                fleet=fleet,
                budget=Budget(tokens=cap),
                retry=Retry(initial=0.01, maximum=0.1),
                **OPTIONS,
            )
        )
        # More than one worker's: both have some.
        await until(lambda: server.ledger.in_flight > 8)
        os.kill(victim, signal.SIGKILL)
        results = await mapping
        # At the most that every call that arrived may have used, answered to somebody or not.
        lost = server.ledger.arrived - server.ledger.answered
        used = server.ledger.prompt_tokens + server.ledger.completion_tokens
        assert used + lost * (2 + 20) <= cap
    assert results.stopped
    assert sum(line.unsure_tokens for line in results.stats.costs) > 0
    assert len(results.ok) > 50
