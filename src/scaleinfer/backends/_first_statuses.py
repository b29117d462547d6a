"""All models of all clusters of FIRST, for people to look at."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._first_listing import ModelLimits
from scaleinfer.backends._first_state import FirstState
from scaleinfer.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from scaleinfer.backends._first_gateway import Gateway
    from scaleinfer.backends._first_listing import Job

__all__ = ["STARTABLE", "FirstModelStatus", "state_of", "statuses_of"]

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
                now = time.monotonic()
                state = state_of(model, jobs, route.cluster, route.framework, now)
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


def state_of(
    model: str, jobs: Sequence[Job] | None, cluster: str, framework: str, now: float
) -> FirstState:
    """Return a model's state as a cluster's jobs tell it; unknown without them."""
    state = FirstState(cluster, model, startable=framework == STARTABLE, deadline_s=math.inf)
    if jobs is not None:
        state.told(jobs, framework, now)
    return state


async def _or_nothing(told: Awaitable[Any]) -> Any:
    try:
        return await told
    except EndpointError:
        return None
