"""One action per item: how Academy's examples spread work over agents."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from academy.agent import Agent, action
from academy.manager import Manager
from tests.benchmarks._fleet_backends import ANSWER


class Answerer(Agent):
    """Answers every item at once with 200 characters."""

    @action
    async def answer(self, item: str) -> str:
        """Return the answer to an item."""
        return ANSWER

    @action
    async def process(self) -> int:
        """Return the process it runs in."""
        return os.getpid()


async def run_actions(
    factory: Any, workers: int, items: int, in_flight: int
) -> tuple[float, float, list[float]]:
    """Ask for every item by an action of its own, round robin over agents in processes.

    Args:
        factory: The exchange.
        workers: Agents, each in a process.
        items: How many.
        in_flight: Actions that may be awaited at once; without a bound the exchange drowns.

    Returns:
        Seconds, CPU seconds of this process, and of each worker's process.
    """
    import psutil

    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context)
    async with await Manager.from_exchange_factory(factory, executors=executor) as manager:
        agents = [await manager.launch(Answerer) for _ in range(workers)]
        processes = [psutil.Process(await agent.process()) for agent in agents]
        gate = asyncio.Semaphore(in_flight)

        async def ask(number: int) -> str:
            async with gate:
                answer: str = await agents[number % workers].answer(f"item {number} {'y' * 80}")
            return answer

        await asyncio.gather(*(ask(number) for number in range(100)))
        used = [sum(process.cpu_times()[:2]) for process in processes]
        began, cpu = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*(ask(number) for number in range(items)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        used = [sum(p.cpu_times()[:2]) - u for p, u in zip(processes, used, strict=True)]
        assert answers == [ANSWER] * items
    return took, cpu, used
