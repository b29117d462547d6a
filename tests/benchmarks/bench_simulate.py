"""Forecasts against real runs of the same shape, and how long a forecast itself takes.

Each shape is run by `parallel_map` against simulated servers in processes of their own, and
forecast with the CPU that an item cost in that very run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from scaleinfer import OpenAIBackend, RateLimit, parallel_map
from scaleinfer.engine import Dispatch
from scaleinfer.fleet import Fleet, NodeServer
from scaleinfer.simulate import EndpointModel, simulate
from scaleinfer.testing import Batching, SimulatedServer

ECHO = "echo: "
CHARACTERS = 4  # of a token, at the simulated server
HALF_TICK_S = 0.0005


@dataclass(frozen=True)
class Shape:
    """One kind of run."""

    name: str
    items: int
    servers: tuple[Batching, ...]
    answer_tokens: tuple[float, float]
    concurrency: int | None = None
    requests_per_minute: float | None = None
    busy_s: float = 0.0


SMALL = Batching(slots=32, step_s=0.005)
SHAPES = (
    Shape("fixed 64 at 32 slots", 1_000, (SMALL,), (60, 0.5), 64),
    Shape("auto at 32 slots", 1_000, (SMALL,), (60, 0.5)),
    Shape("auto at 2 x 32 slots", 2_000, (SMALL, SMALL), (60, 0.5)),
    Shape(
        "auto, one of 3 endpoints 5x slower",
        1_500,
        (SMALL, SMALL, Batching(slots=32, step_s=0.025)),
        (60, 0.5),
    ),
    Shape(
        "auto, round knee and prefill",
        2_000,
        (Batching(slots=128, step_s=0.005, step_per_sequence_s=1e-4, prefill_tokens_per_s=10_000),),
        (40, 0.5),
    ),
    Shape("auto, KV cache", 800, (Batching(slots=128, step_s=0.005, kv_tokens=4_000),), (60, 0.5)),
    Shape("rate limit 3,000 a minute", 500, (SMALL,), (60, 0.5), None, 3_000),
    Shape(
        "client process, 5 ms an item in prompt_fn",
        1_500,
        (Batching(slots=256, step_s=0.005),),
        (60, 0.5),
        128,
        busy_s=0.005,
    ),
)


@dataclass(frozen=True)
class FleetShape:
    """A run over workers that each own a server."""

    name: str
    items: int
    workers: int
    server: Batching
    answer_tokens: tuple[float, float]
    concurrency: int | None = None


# Servers slow enough for two cores to hold the workers, the servers and the coordinator.
FLEETS = (
    FleetShape(
        "4 workers, fixed 24 at 16 slots", 2_000, 4, Batching(slots=16, step_s=0.02), (60, 0.5), 24
    ),
    FleetShape("4 workers, auto at 16 slots", 2_000, 4, Batching(slots=16, step_s=0.02), (60, 0.5)),
    FleetShape("8 workers, auto at 8 slots", 1_500, 8, Batching(slots=8, step_s=0.02), (60, 0.5)),
)


def prompts(shape: Shape | FleetShape) -> list[str]:
    """Return prompts whose echoes are as long as the shape's answers."""
    mean, cv = shape.answer_tokens
    sigma = math.sqrt(math.log1p(cv * cv))
    chance = random.Random(1)
    drawn = (
        chance.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma) for _ in range(shape.items)
    )
    return [f"{i} ".ljust(round(n) * CHARACTERS - len(ECHO), "x") for i, n in enumerate(drawn)]


async def real(shape: Shape, urls: list[str]) -> tuple[float, float]:
    """Return the seconds of a real run, and the CPU seconds of the process for an item."""
    limit = shape.requests_per_minute
    rate = None if limit is None else RateLimit(requests_per_minute=limit)
    backends = [OpenAIBackend(base_url=url, rate_limit=rate) for url in urls]

    def prompt_of(prompt: str) -> str:
        until = time.process_time() + shape.busy_s
        while time.process_time() < until:
            pass
        return prompt

    began, busy = time.perf_counter(), time.process_time()
    results = await parallel_map(
        prompts(shape),
        prompt_of,
        backend=backends,
        concurrency=shape.concurrency or "auto",
        progress="none",
        # Prompts that take long to make would otherwise all be made before the first call.
        dispatch=Dispatch(prefix_window=0),
    )
    took, busy = time.perf_counter() - began, time.process_time() - busy
    assert len(results.ok) == shape.items
    return took, busy / shape.items


def forecast(shape: Shape, cpu_s: float, seed: int = 0) -> float:
    """Return the seconds that the same run should take."""
    limit = shape.requests_per_minute
    rate = None if limit is None else RateLimit(requests_per_minute=limit)
    made = simulate(
        shape.items,
        prompt_tokens=shape.answer_tokens,
        answer_tokens=shape.answer_tokens,
        endpoints=[
            EndpointModel(server=server, latency_s=HALF_TICK_S, rate_limit=rate)
            for server in shape.servers
        ],
        concurrency=shape.concurrency or "auto",
        client_us_per_item=cpu_s * 1e6,
        seed=seed,
    )
    return made.makespan_s


async def real_fleet(shape: FleetShape) -> float:
    """Return the seconds of a real run over workers that are ready."""
    server = shape.server
    batching = {"--slots": server.slots, "--step": server.step_s}
    command = [sys.executable, "-m", "scaleinfer.testing", "--port", "{port}", "--ledger=counts"]
    command += [f"{name}={value}" for name, value in batching.items()]
    async with Fleet.local(
        shape.workers, server=NodeServer(command), concurrency=shape.concurrency or "auto"
    ) as fleet:
        await fleet.ready(shape.workers, timeout=120)
        began = time.perf_counter()
        results = await parallel_map(prompts(shape), "{}", fleet=fleet, progress="none")
        took = time.perf_counter() - began
    assert len(results.ok) == shape.items
    return took


def forecast_fleet(shape: FleetShape, seed: int = 0) -> float:
    """Return the seconds that the same run should take."""
    made = simulate(
        shape.items,
        prompt_tokens=shape.answer_tokens,
        answer_tokens=shape.answer_tokens,
        server=shape.server,
        workers=shape.workers,
        concurrency=shape.concurrency or "auto",
        seed=seed,
    )
    return made.makespan_s


def compare_fleets(rounds: int) -> None:
    """Print real runs over fleets beside their forecasts."""
    print("\n| fleet | items | real s | forecast s | error | other seeds s |")
    print("|---|---|---|---|---|---|")
    for shape in FLEETS:
        for _ in range(rounds):
            took = asyncio.run(real_fleet(shape))
            said = forecast_fleet(shape)
            others = [forecast_fleet(shape, seed) for seed in range(1, 6)]
            print(
                f"| {shape.name} | {shape.items:,} | {took:.2f} | {said:.2f} "
                f"| {said / took - 1:+.1%} | {min(others):.2f} to {max(others):.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print("| shape | items | real s | forecast s | error | other seeds s | client us/item |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for _ in range(options.rounds):
            with ExitStack() as stack:
                urls = [
                    stack.enter_context(
                        SimulatedServer(batching=server, ledger="counts").in_process()
                    ).base_url
                    for server in shape.servers
                ]
                took, cpu_s = asyncio.run(real(shape, urls))
            said = forecast(shape, cpu_s)
            others = [forecast(shape, cpu_s, seed) for seed in range(1, 6)]
            print(
                f"| {shape.name} | {shape.items:,} | {took:.2f} | {said:.2f} "
                f"| {said / took - 1:+.1%} | {min(others):.2f} to {max(others):.2f} "
                f"| {cpu_s * 1e6:.0f} |",
                flush=True,
            )
    compare_fleets(options.rounds)
    began, busy = time.perf_counter(), time.process_time()
    made = simulate(
        10_000_000,
        answer_tokens=(150, 0.5),
        workers=2_000,
        server=Batching(slots=256, step_s=0.02, prefill_tokens_per_s=40_000),
        worker_start_s=(60, 0.2),
    )
    took, busy = time.perf_counter() - began, time.process_time() - busy
    print(f"\n10,000,000 items over 2,000 workers: forecast in {took:.1f} s ({busy:.1f} s of CPU)")
    print(made)


if __name__ == "__main__":
    main()
