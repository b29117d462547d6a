"""All models of all clusters of FIRST, for people to look at."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._first_listing import ModelLimits
from scaleinfer.backends._first_state import FirstState
from scaleinfer.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from scaleinfer.backends._first_gateway import Gateway

__all__ = ["STARTABLE", "FirstModelStatus", "statuses_of"]

STARTABLE = "vllm"
"""The framework whose models are started by a request."""


@dataclass(frozen=True, slots=True)
class FirstModelStatus:
    """A model on a cluster, as `scaleinfer endpoints --backend first:` lists it.

    Attributes:
        cluster: The cluster.
        framework: The framework.
        model: The model.
        state: `hot`, `starting`, `queued`, `stopped` or `offline`; `unknown` if the cluster
            does not tell.
        start: When a queued one will probably start, as hours and minutes.
        limits: Its tokens a minute.
    """

    cluster: str
    framework: str
    model: str
    state: str
    start: str = ""
    limits: ModelLimits = field(default_factory=ModelLimits)

    @property
    def tokens_per_minute(self) -> float | None:
        """Its tokens a minute for one user; `None` if that is not told."""
        return self.limits.least


async def statuses_of(gateway: Gateway) -> list[FirstModelStatus]:
    """Return every model of every cluster, its state and its limits.

    Raises:
        EndpointError: The gateway did not tell.
    """
    await gateway.open()
    try:
        found: list[FirstModelStatus] = []
        for route in await gateway.routes():
            limits = await _or_nothing(gateway.model_limits(route.cluster, route.framework))
            jobs = await _or_nothing(gateway.jobs(route.cluster))
            for model in route.models:
                state = FirstState(
                    route.cluster, model, startable=route.framework == STARTABLE, deadline_s=1.0
                )
                if jobs is not None:
                    state.told(jobs, route.framework, time.monotonic())
                found.append(
                    FirstModelStatus(
                        route.cluster,
                        route.framework,
                        model,
                        state.state,
                        state.start,
                        (limits or {}).get(model, ModelLimits()),
                    )
                )
        return found
    finally:
        await gateway.aclose()


async def _or_nothing(told: Awaitable[Any]) -> Any:
    try:
        return await told
    except EndpointError:
        return None
