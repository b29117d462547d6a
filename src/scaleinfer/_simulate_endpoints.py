"""The engine's state of simulated endpoints, made as a map makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.backends import Backend
from scaleinfer.engine import endpoint_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaleinfer._simulate_settings import EndpointModel
    from scaleinfer.engine import Concurrency, Endpoint

__all__ = ["capped", "engine_endpoints"]


def engine_endpoints(
    models: Sequence[EndpointModel], concurrency: int | Concurrency | None
) -> list[Endpoint]:
    """Return the engine's state of each endpoint, made as a map makes it."""
    return [
        endpoint_of(
            model.name or f"endpoint {number + 1}",
            concurrency,
            start=Backend.concurrency,
            rate_limit=model.rate_limit,
            weight=model.weight,
        )
        for number, model in enumerate(models)
    ]


def capped(endpoint: Endpoint, concurrency: int | Concurrency | None) -> bool:
    """Return True if a fixed limit, or a bound, is why no more calls are in flight."""
    if concurrency is None:
        return endpoint.limiter.statistics().reason == "bounded by max"
    return isinstance(concurrency, int) or endpoint.limiter.limit >= concurrency.max
