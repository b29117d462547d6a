"""A fleet at FIRST: the limit of one user, kept by workers that share nothing but a coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet
from scaleinfer.testing import FirstCluster, FirstModel, SimulatedFirst

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FIRST = "tests.integration.fleet.adapters:first"
QUIET: dict[str, Any] = {"progress": False}
_HELD_UP = 3


async def test_workers_on_different_machines_share_the_users_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FirstCluster(name="sophia", models=(FirstModel(name="openai/gpt-oss-120b"),))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with SimulatedFirst([cluster], latency=0.2) as gateway:
        monkeypatch.setenv("FIRST_BASE_URL", gateway.base_url)
        async with Fleet.local(2, backend=FIRST) as fleet:
            await fleet.ready(2, timeout=60)
            results = await parallel_map(range(50), "Is {} a prime?", fleet=fleet, **QUIET)
            shares = {worker.name: worker.answered for worker in fleet.status().workers}
        assert len(results.ok) == 50
        # Each of them alone would send ten a second.
        # Each share is kept; a request that was held up on its way may fall into the next second.
        assert gateway.refused["requests"] <= _HELD_UP
        assert min(shares.values()) > 10
        assert results.stats.elapsed_s > 3.5
