"""The engine's state of simulated endpoints, made as a map makes it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from scaleinfer.backends import Backend
from scaleinfer.engine import pool_of
from scaleinfer.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer._simulate_settings import EndpointModel
    from scaleinfer.backends import EndpointStatus
    from scaleinfer.engine import Concurrency, Endpoint
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["capped", "engine_endpoints"]

_NEVER = "a simulated endpoint takes no calls"


class _StandIn(Backend):
    """What the engine makes an endpoint's state from; it is never asked."""

    kind = "simulated"

    def __init__(self, model: EndpointModel, number: int) -> None:
        self.endpoint = model.name or f"endpoint {number + 1}"
        self.weight = model.weight
        self.rate_limit = model.rate_limit

    async def complete(
        self,
        request: Request,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the contract's
    ) -> Completion:
        raise Permanent(_NEVER, endpoint=self.endpoint)

    async def check(self) -> EndpointStatus:
        raise Permanent(_NEVER, endpoint=self.endpoint)


def engine_endpoints(
    models: Sequence[EndpointModel], concurrency: int | Concurrency | None
) -> list[Endpoint]:
    """Return the engine's state of each endpoint, made as a map makes it."""
    backends = [_StandIn(model, number) for number, model in enumerate(models)]

    async def made() -> list[Endpoint]:
        return pool_of(backends, concurrency).endpoints

    # A pool needs a running loop, and this thread's own may be a notebook's.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, made()).result()


def capped(endpoint: Endpoint, concurrency: int | Concurrency | None) -> bool:
    """Return True if a fixed limit, or a bound, is why no more calls are in flight."""
    if concurrency is None:
        return endpoint.limiter.statistics().reason == "bounded by max"
    return isinstance(concurrency, int) or endpoint.limiter.limit >= concurrency.max
