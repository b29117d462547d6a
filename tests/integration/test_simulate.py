"""A forecast against a real run of the same shape."""

from __future__ import annotations

import math
import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from scaleinfer import OpenAIBackend, parallel_map
from scaleinfer.simulate import EndpointModel, simulate
from scaleinfer.testing import Batching, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

ECHO = "echo: "
CHARACTERS = 4  # of a token, at the simulated server
MEAN, CV = 60, 0.5
SERVER = Batching(slots=32, step_s=0.005)


def prompts(number: int) -> list[str]:
    """Return prompts whose echoes have log-normal lengths."""
    sigma = math.sqrt(math.log1p(CV * CV))
    chance = random.Random(1)
    tokens = (chance.lognormvariate(math.log(MEAN) - sigma**2 / 2, sigma) for _ in range(number))
    return [f"{i} ".ljust(round(n) * CHARACTERS - len(ECHO), "x") for i, n in enumerate(tokens)]


@pytest.fixture
def urls() -> Iterator[list[str]]:
    with ExitStack() as stack:
        servers = [SimulatedServer(batching=SERVER, ledger="counts") for _ in range(2)]
        yield [stack.enter_context(server.in_process()).base_url for server in servers]


# 100 to 200 items a second: the machine's own speed hardly matters.
@pytest.mark.parametrize(
    ("endpoints", "concurrency", "items"),
    [(1, 64, 800), (1, "auto", 800), (2, "auto", 1_600)],
    ids=["fixed", "auto", "two endpoints"],
)
async def test_a_real_run_takes_what_was_forecast(
    urls: list[str], endpoints: int, concurrency: int, items: int
) -> None:
    backends = [OpenAIBackend(base_url=url) for url in urls[:endpoints]]
    asked = prompts(items)
    began = time.monotonic()
    results = await parallel_map(
        asked, lambda prompt: prompt, backend=backends, concurrency=concurrency, progress="none"
    )
    took = time.monotonic() - began
    assert len(results.ok) == items
    forecast = simulate(
        items,
        prompt_tokens=(MEAN, CV),
        answer_tokens=(MEAN, CV),
        endpoints=[EndpointModel(server=SERVER, latency_s=0.0005)] * endpoints,
        concurrency=concurrency,
    )
    assert forecast.bottleneck == "endpoint slots"
    assert forecast.makespan_s == pytest.approx(took, rel=0.15)
