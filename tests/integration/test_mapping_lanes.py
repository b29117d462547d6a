"""The number of lanes follows the limit, and no item is lost on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from scaleinfer import Concurrency, parallel_map, stream_map
from scaleinfer.backends import Backend, EndpointStatus
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from scaleinfer.requests import Request

pytestmark = pytest.mark.anyio


class InStep(Backend):
    """Answers all calls of one turn of the loop together, and narrows the bounds meanwhile."""

    kind: ClassVar[str] = "in step"

    def __init__(self, bounds: Concurrency, to: list[int]) -> None:
        self.endpoint = "memory"
        self.model = "m"
        self.bounds = bounds
        self.to = to
        self.asked = self.running = self.peak = 0

    async def complete(
        self,
        request: Request,
        *,
        timeout: float | None = None,
    ) -> Completion:
        self.asked += 1
        if self.asked % 500 == 0 and self.to:
            self.bounds.max = self.to.pop(0)
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return Completion("yes", usage=Usage(1, 1, 0, 1))

    async def check(self) -> EndpointStatus:
        return EndpointStatus(self.endpoint, ok=True, detail="")


@pytest.mark.parametrize("to", [[1], [2, 300, 1, 40], [1, 400]], ids=str)
@pytest.mark.parametrize("length", [2_500, None])
async def test_bounds_that_change_lose_no_item(to: list[int], length: int | None) -> None:
    bounds = Concurrency(start=300, max=400)
    backend = InStep(bounds, list(to))

    async def endless() -> Any:
        for number in range(2_500):
            yield number

    items = range(length) if length else endless()
    options: dict[str, Any] = {"backend": backend, "concurrency": bounds, "progress": "none"}
    results = await parallel_map(items, lambda item: f"{item}", **options)
    assert [result.index for result in results] == list(range(2_500))
    assert len(results.ok) == backend.asked == 2_500
    assert backend.peak >= 300


async def test_a_bound_of_one_is_kept_once_it_is_set() -> None:
    bounds = Concurrency(start=64, max=64)
    backend = InStep(bounds, [1])
    options: dict[str, Any] = {"backend": backend, "concurrency": bounds, "progress": "none"}
    seen = [
        backend.running
        async for result in stream_map(range(1_500), lambda item: f"{item}", **options)
        if result.index > 700
    ]
    assert backend.asked == 1_500
    assert max(seen) <= 1
