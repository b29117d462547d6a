"""All clusters of FIRST that have a model: found out from the gateway, and followed."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, ClassVar

from scaleinfer.backends._base import EndpointStatus
from scaleinfer.backends._first_listing import same
from scaleinfer.backends._membership import Address
from scaleinfer.backends._roster import Roster
from scaleinfer.backends._rostered import RosteredBackend
from scaleinfer.errors import ConfigError, EndpointError, Permanent, Starting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scaleinfer.backends._batch_base import BatchBackend
    from scaleinfer.backends._first_gateway import Gateway
    from scaleinfer.backends.first import FirstBackend
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["FirstClusters", "weighted"]


class FirstClusters(RosteredBackend):
    """A model on every cluster of FIRST that offers it; `FirstBackend.federated` makes one.

    The clusters are those that `/list-endpoints` names, and are looked for again every few
    minutes. Where it does not run, calls come as soon as it does.

    Args:
        gateway: The gateway.
        make: Returns the adapter to the model on a cluster, such as `sophia/vllm`.
        model: The model, under any cluster's name for it.
        weights: Shares of the clusters, by name; 1 for those left out.
        every: Seconds between two looks at the list.
    """

    kind: ClassVar[str] = "first"
    embeds = True
    adaptive = False

    def __init__(
        self,
        gateway: Gateway,
        make: Callable[[str], FirstBackend],
        *,
        model: str,
        weights: Mapping[str, float],
        every: float,
    ) -> None:
        super().__init__()
        self.endpoint = gateway.url
        self.model: str = model
        self.user_rate = gateway.user_rate
        self._gateway = gateway
        self._make = make
        self._weights = dict(weights)
        self._every = every

    @property
    def starting(self) -> bool:
        """True while calls wait on every cluster."""
        found = [member for roster in self._open.values() for member in roster.members()]
        return bool(found) and all(member.starting for member in found)

    @property
    def waits_for(self) -> str:
        """What calls wait for on every cluster; empty if they do not."""
        if not self.starting:
            return ""
        found = (member for roster in self._open.values() for member in roster.members())
        return "; ".join(dict.fromkeys(member.waits_for for member in found if member.waits_for))

    @property
    def model_known(self) -> bool:
        """True: no cluster has to be asked for its model."""
        return True

    def member(self, address: Address) -> FirstBackend:
        """Return a new adapter to the model on a cluster."""
        backend = self._make(address.url.removeprefix(f"{self._gateway.url}/"))
        backend.weight = address.weight
        return backend

    def _roster(self) -> Roster:
        return Roster(self.endpoint, self._listed, self._every, self)

    async def _first_opens(self) -> None:
        await self._gateway.open()

    async def _last_leaves(self) -> None:
        await self._gateway.aclose()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Ask one cluster after the other; a map chooses better, see `follow`."""
        ready = [member for member in self.members if not member.starting]
        if not ready:
            why = self.waits_for or "the adapter is not open"
            raise Starting(f"{self.model} runs nowhere now: {why}.", endpoint=self.endpoint)
        return await ready[next(self._turn) % len(ready)].complete(request, timeout=timeout)

    def use_share(self, holder: object, requests: int, *, until: float = math.inf) -> None:
        """Send no more than so many requests; see `Backend.use_share`."""
        self._gateway.share.hold(holder, requests, until)

    def share_of(self, holder: object) -> int:
        """Return the requests that a holder's share allows now."""
        return self._gateway.share.of(holder, time.monotonic())

    def batches(self) -> BatchBackend | None:
        """Return the adapter to the batch API of the first cluster that has one."""
        found = (member.batches() for roster in self._open.values() for member in roster.members())
        return next((one for one in found if one is not None), None)

    async def check(self) -> EndpointStatus:
        """Ask whether the model runs on any cluster; see `Backend.check`."""
        began = time.monotonic()
        try:
            await self._gateway.open()
            try:
                addresses = await self._listed()
                found = [await self.member(address).check() for address in addresses]
            finally:
                await self._gateway.aclose()
        except (EndpointError, ConfigError) as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        states = [
            f"{address.url.removeprefix(f'{self._gateway.url}/')}: {status.detail}"
            for address, status in zip(addresses, found, strict=True)
        ]
        models = tuple(dict.fromkeys(model for status in found for model in status.models))
        ok = any(status.ok for status in found)
        took = time.monotonic() - began
        return EndpointStatus(self.endpoint, ok, "; ".join(states), models, took)

    async def _listed(self) -> list[Address]:
        """Return the clusters that offer the model.

        Raises:
            EndpointError: The gateway did not tell, or none offers it.
        """
        routes = await self._gateway.routes(max_age_s=self._every / 2)
        found = [
            Address(
                f"{self._gateway.url}/{route.cluster}/{route.framework}",
                model=self.model,
                weight=self._weights.get(route.cluster, 1.0),
            )
            for route in routes
            if same(self.model, route.models) is not None
        ]
        strange = self._weights.keys() - {route.cluster for route in routes}
        if strange:
            self._weights = {name: self._weights[name] for name in self._weights.keys() - strange}
            logging.getLogger("scaleinfer").warning(
                "weights= names %s, which FIRST does not.", ", ".join(sorted(strange))
            )
        if found:
            return found
        offered = ", ".join(sorted({model for route in routes for model in route.models})[:10])
        raise Permanent(
            f"no cluster of FIRST offers {self.model}; they offer {offered or 'nothing'}.",
            hint="`scaleinfer endpoints --backend first:` lists them. Models that you may not use "
            "are not listed.",
            endpoint=self.endpoint,
            fatal=True,
        )


def weighted(
    backends: Sequence[FirstBackend], weights: Mapping[str, float]
) -> Sequence[FirstBackend]:
    """Return the adapters with the weights of their clusters.

    Raises:
        ConfigError: There is no adapter, or a weight is for none of them.
    """
    if not backends:
        raise ConfigError("clusters=[] names no cluster.")
    strange = weights.keys() - {backend.cluster for backend in backends}
    if strange:
        names = ", ".join(sorted(strange))
        raise ConfigError(f"weights= names {names}, which clusters= does not.")
    for backend in backends:
        backend.weight = weights.get(backend.cluster, 1.0)
    return backends
