"""A coordinator and workers under your own Academy `Manager`, and an agent that maps over them.

Run from the repository root; it needs no model, the server is simulated:

    python examples/fleet_manager.py --limit 40
"""

from __future__ import annotations

import argparse
import asyncio
import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from academy.agent import Agent, action
from academy.exchange import LocalExchangeFactory
from academy.manager import Manager
from academy.runtime import RuntimeConfig
from academy.serialize import SerializationStrategy

from scaleinfer import parallel_map
from scaleinfer.fleet import Coordinator, Fleet, FleetStatus, InferenceWorker
from scaleinfer.fleet.exchange import json_only
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from academy.handle import Handle

DATA = Path(__file__).parent / "data" / "molecules.csv"
FLEET = "screening"
WORKERS = 2
# The agents unpickle nothing that the exchange brings; `json_only` says so for the handles here.
JSON = SerializationStrategy.JSON
RUNTIME = RuntimeConfig(default_serializer=JSON, allowed_deserializers={JSON})


class Screener(Agent):
    """An agent of your own that sends work to the same coordinator.

    Args:
        coordinator: The coordinator's handle.
    """

    def __init__(self, coordinator: Handle[Coordinator]) -> None:
        super().__init__()
        self._coordinator = coordinator

    @action
    async def screen(self, names: list[str]) -> list[str | None]:
        """Return an answer for each name."""
        async with Fleet.of(self._coordinator, name=FLEET) as fleet:
            results = await parallel_map(
                names, "Is {} a liquid at 25 C?", fleet=fleet, progress=False
            )
        return results.texts


async def run(names: list[str], base_url: str) -> None:
    # For the nodes of a cluster: RedisExchangeFactory(...) and a Parsl or Globus Compute executor.
    with json_only():
        async with await Manager.from_exchange_factory(
            factory=LocalExchangeFactory(), executors=ThreadPoolExecutor(WORKERS + 2)
        ) as manager:
            coordinator = await manager.launch(Coordinator, args=(FLEET,), config=RUNTIME)
            for _ in range(WORKERS):
                await manager.launch(
                    InferenceWorker,
                    args=(coordinator,),
                    kwargs={"backend": base_url, "fleet": FLEET, "concurrency": 4},
                    config=RUNTIME,
                )
            screener = await manager.launch(Screener, args=(coordinator,), config=RUNTIME)

            # Two maps at once: one of this program, one inside the agent.
            async with Fleet.of(coordinator, name=FLEET) as fleet:
                results, screened = await asyncio.gather(
                    parallel_map(names, "What is {} used for?", fleet=fleet, progress=False),
                    screener.screen(names),
                )
            status = FleetStatus.from_dict(await coordinator.status())
    print(f"own map: {len(results.ok)} of {len(names)} answered")
    print(f"the agent's map: {sum(text is not None for text in screened)} of {len(names)} answered")
    print(f"workers: {len({result.worker for result in results})}")
    print(status)


def main() -> None:
    parser = argparse.ArgumentParser(description="A fleet under your own Academy Manager.")
    parser.add_argument("--limit", type=int, default=40, help="how many molecules (at most 300)")
    options = parser.parse_args()
    with DATA.open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)][: options.limit]
    with SimulatedServer(latency=0.05).in_process() as server:
        asyncio.run(run(names, server.base_url))


if __name__ == "__main__":
    main()
