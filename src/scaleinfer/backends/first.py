"""FIRST, ALCF's inference gateway: one model on one of its clusters, or on all of them."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, overload

from scaleinfer.backends._base import EndpointStatus
from scaleinfer.backends._first_calls import ModelCalls
from scaleinfer.backends._first_clusters import FirstClusters, weighted
from scaleinfer.backends._first_dialect import error_of
from scaleinfer.backends._first_gateway import gateway_of
from scaleinfer.backends._first_late import LateTries
from scaleinfer.backends._first_limits import FirstLimits
from scaleinfer.backends._first_listing import alias, same
from scaleinfer.backends._first_login import FirstLogin
from scaleinfer.backends._first_session import SESSION_HEADER as _SESSION_HEADER
from scaleinfer.backends._first_session import session_of
from scaleinfer.backends._first_statuses import STARTABLE, FirstModelStatus, state_of, statuses_of
from scaleinfer.backends._first_where import cluster_and_framework, gateway_url
from scaleinfer.backends.openai import OpenAIBackend, WireKind
from scaleinfer.errors import (
    ConfigError,
    EndpointError,
    Permanent,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from scaleinfer.backends._base import Backend
    from scaleinfer.backends._batch_base import BatchBackend
    from scaleinfer.backends._wire import WireResponse
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["FirstBackend", "FirstLimits", "FirstLogin", "FirstModelStatus", "alias", "first_models"]

_LOOK_EVERY_S = 300.0
_SESSION: ContextVar[str | None] = ContextVar("scaleinfer_first_session", default=None)
_LATE = 408


class FirstBackend(OpenAIBackend):
    """Adapter to one model on one cluster behind FIRST.

    It keeps the gateway's limits by itself, together with the user's other processes on this
    host; refreshes the token; starts a cold model with one request and holds back the others
    until it runs, looking at `/{cluster}/jobs` meanwhile.

    Args:
        where: Cluster and framework: `"sophia/vllm"`. The framework of a cluster that is
            documented may be left out.
        model: Model to ask, with or without its owner (`openai/gpt-oss-120b` is
            `gpt-oss-120b`); default `FIRST_MODEL`, else the only one there.
        base_url: The gateway, `/resource_server` included; default `FIRST_BASE_URL`, else
            ALCF's.
        token: An access token, or a function that returns the one of the moment. By default
            the variable `FIRST_ACCESS_TOKEN`, a service account (`FIRST_CLIENT_ID`,
            `FIRST_CLIENT_SECRET`) or the login of `scaleinfer login first`.
        limits: What the gateway allows.
        poll_s: Seconds between two looks at a model that does not run.
        deadline_s: Seconds that it may take to come until calls to it fail.
        concurrency: Most calls in flight.
        headers: Further headers of every call.
        timeout: Seconds for one call, if fewer than the run's `Retry.timeout`.
        json_schema: False if the model's server enforces no JSON schemas.
        sessions: Keep each conversation on one replica, where the gateway offers that: its turns,
            told by what they begin with, carry the same `X-ALCF-Session-ID`.
        wire: The HTTP client.
        weight: This cluster's share of the calls, relative to others of the same speed.

    Raises:
        ConfigError: An argument cannot be used.
    """

    kind: ClassVar[str] = "first"

    def __init__(
        self,
        where: str,
        *,
        model: str | None = None,
        base_url: str | None = None,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        limits: FirstLimits | None = None,
        poll_s: float = 20.0,
        deadline_s: float = 1200.0,
        concurrency: int = 256,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        json_schema: bool = True,
        sessions: bool = True,
        wire: WireKind = "auto",
        weight: float = 1.0,
    ) -> None:
        self.cluster, self.framework = cluster_and_framework(where)
        url = gateway_url(base_url)
        super().__init__(
            f"{url}/{self.cluster}/{self.framework}/v1",
            api_key="",
            headers=headers,
            timeout=timeout,
            concurrency=concurrency,
            json_schema=json_schema,
            load_reports=False,
            wire=wire,
            weight=weight,
        )
        for name, value in (("poll_s", poll_s), ("deadline_s", deadline_s)):
            if not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}.")
        self.model = model or os.environ.get("FIRST_MODEL")
        self.priced = False
        self.adaptive = False
        self.least_places = 0
        self._gateway = gateway_of(url, token, limits or FirstLimits(), wire)
        self._gateway.poll_s = self._poll_s = poll_s
        self.user_rate = self._gateway.user_rate
        self._calls = ModelCalls(
            self._gateway,
            self.cluster,
            self.framework,
            endpoint=self.endpoint,
            poll_s=poll_s,
            deadline_s=deadline_s,
            most=concurrency,
            told=self._secrets.add,
        )
        self.places = self._calls.places
        self._late = LateTries()
        # Sophia's requests go through Globus Compute, which knows no sessions.
        named = any(name.lower() == _SESSION_HEADER for name in headers or {})
        self._sessions = sessions and not named and self.framework != STARTABLE

    @overload
    @classmethod
    def federated(
        cls,
        *,
        model: str | None = None,
        clusters: Iterable[str],
        weights: Mapping[str, float] | None = None,
        every: float = _LOOK_EVERY_S,
        **options: Any,
    ) -> list[FirstBackend]: ...

    @overload
    @classmethod
    def federated(
        cls,
        *,
        model: str | None = None,
        clusters: None = None,
        weights: Mapping[str, float] | None = None,
        every: float = _LOOK_EVERY_S,
        **options: Any,
    ) -> list[Backend]: ...

    @classmethod
    def federated(
        cls,
        *,
        model: str | None = None,
        clusters: Iterable[str] | None = None,
        weights: Mapping[str, float] | None = None,
        every: float = _LOOK_EVERY_S,
        **options: Any,
    ) -> Any:
        """Return what asks the model on several clusters, to be given to a map as `backend=`.

        Where the model does not run, calls come as soon as it does.

        Args:
            model: The model, under any cluster's name for it; default `FIRST_MODEL`.
            clusters: Cluster and framework of each: then there is an adapter for each, and those
                that do not have the model are left out with a word when the map begins. By
                default there is one set of all clusters that the gateway lists with the model.
            weights: Shares of the clusters, by name; 1 for those left out.
            every: Seconds between two looks at the gateway's list.
            options: Further arguments of `FirstBackend`.

        Raises:
            ConfigError: No model or no cluster is named, or an argument cannot be used.
        """
        model = model or os.environ.get("FIRST_MODEL")
        if not model:
            raise ConfigError(
                "no model was named, and a set of clusters needs one.",
                hint="Pass model=, or set FIRST_MODEL.",
            )
        if not every > 0:
            raise ConfigError(f"every must be positive, not {every}.")
        weights = weights or {}

        def make(where: str) -> FirstBackend:
            return cls(where, model=model, **options)

        if clusters is None:
            # A wrong option is named now, and so is the gateway.
            gateway = make("sophia")._gateway
            return [FirstClusters(gateway, make, model=model, weights=weights, every=every)]
        return weighted([make(name) for name in clusters], weights)

    @property
    def starting(self) -> bool:
        """True while calls wait for the model to run."""
        return self._calls.watched and not self._calls.state.hot

    @property
    def waits_for(self) -> str:
        """What calls wait for, as in `sophia: queued, estimated start 14:10`; empty if nothing."""
        return self._calls.state.phase if self.starting else ""

    async def open(self) -> None:
        """See whether the cluster has the model, and begin to watch its state.

        Raises:
            ConfigError: No model was named and the cluster has none or several.
            EndpointError: The gateway did not tell, or the model is not there.
        """
        await self._gateway.open()
        try:
            self._calls.state.model = await self._served()
            await super().open()
        except BaseException:
            await self._gateway.aclose()
            raise
        self._calls.watch(self._now_open().wire, self._chat_url, self._headers)

    async def aclose(self) -> None:
        """Close this loop's connections when the last user leaves."""
        loop = asyncio.get_running_loop()
        opened = self._open.get(loop)
        if opened is None:
            return
        if opened.users == 1:
            await self._calls.unwatch()
        await super().aclose()
        await self._gateway.aclose()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Make one call; see `Backend.complete`."""
        now = time.monotonic()
        if not self._calls.state.hot and self._calls.state.overdue(now):
            raise self._calls.overdue(now)
        session = _SESSION.set(session_of(request) if self._sessions else None)
        try:
            return await super().complete(self._translated(request), timeout=timeout)
        except EndpointError as error:
            if error.status == _LATE and self._calls.state.hot:
                raise self._late.tried(request, error) from error
            raise
        finally:
            _SESSION.reset(session)

    async def complete_many(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[Completion | EndpointError]:
        """Ask several requests; see `Backend.complete_many`."""
        return await super().complete_many(
            [self._translated(request) for request in requests], timeout=timeout
        )

    def use_share(self, holder: object, requests: int, *, until: float = math.inf) -> None:
        """Send no more than so many requests; see `Backend.use_share`."""
        self._gateway.share.hold(holder, requests, until)

    def share_of(self, holder: object) -> int:
        """Return the requests that a holder's share allows now."""
        return self._gateway.share.of(holder, time.monotonic())

    def batches(self) -> BatchBackend | None:
        """Return the adapter to the cluster's batch API, where the framework has one."""
        if self.framework != STARTABLE or self.model is None:
            return None
        from scaleinfer.backends._batch_first import FirstBatches

        return FirstBatches(
            self._gateway,
            model=self._calls.served or self.model,
            cluster=self.cluster,
            framework=self.framework,
        )

    async def check(self) -> EndpointStatus:
        """Ask whether the model is there and runs, without starting it; see `Backend.check`."""
        began = time.monotonic()
        try:
            await self._gateway.open()
            try:
                models = tuple(await self._offered())
                served = await self._served()
                jobs = await self._gateway.jobs(self.cluster)
            finally:
                await self._gateway.aclose()
        except (EndpointError, ConfigError) as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        now = time.monotonic()
        state = state_of(served, jobs, self.cluster, self.framework, now)
        detail = state.phase.partition(": ")[2] or "hot"
        return EndpointStatus(
            self.endpoint, ok=True, detail=detail, models=models, latency_s=now - began
        )

    # What is asked, and under which name.

    async def _offered(self) -> list[str]:
        routes = await self._gateway.routes()
        here = [route for route in routes if route.cluster == self.cluster]
        if not here:
            raise Permanent(
                f"FIRST has no cluster {self.cluster}; it has "
                f"{', '.join(sorted({route.cluster for route in routes})) or 'none'}.",
                endpoint=self.endpoint,
                fatal=True,
            )
        for route in here:
            if route.framework == self.framework:
                return list(route.models)
        raise Permanent(
            f"{self.cluster} has no framework {self.framework}; it has "
            f"{', '.join(route.framework for route in here)}.",
            endpoint=self.endpoint,
            fatal=True,
        )

    async def _served(self) -> str:
        """Return the name that this cluster has for the model; settle on one if none was named."""
        offered = await self._offered()
        names = ", ".join(offered[:10]) or "nothing"
        if self.model is None:
            if len(offered) != 1:
                raise ConfigError(
                    f"no model was named, and {self.cluster}/{self.framework} offers {names}.",
                    hint="Pass model=, or set FIRST_MODEL.",
                )
            self.model = offered[0]
        served = same(self.model, offered)
        if served is None:
            raise Permanent(
                f"{self.cluster}/{self.framework} does not offer {self.model}; it offers {names}.",
                hint="Models that you may not use are not listed.",
                endpoint=self.endpoint,
                fatal=True,
            )
        return served

    def _translated(self, request: Request) -> Request:
        """Return the request under the name that this cluster has for the model."""
        if request.model is not None and request.model != self.model:
            return request
        return replace(request, model=self._calls.served or self.model)

    # Sending.

    async def _post(
        self, url: str, body: bytes, timeout: float | None, _on_body: object = None
    ) -> WireResponse:
        own = self.timeout
        if own is not None and (timeout is None or own < timeout):
            timeout = own
        wire, headers, session = self._now_open().wire, self._headers, _SESSION.get()
        if session is not None:
            headers = {**headers, _SESSION_HEADER: session}
        return await self._calls.post(wire, url, body, headers, timeout)

    def _refusal(self, response: WireResponse, model: str) -> EndpointError:
        return error_of(
            self._secrets.taken_out(response),
            endpoint=self.endpoint,
            model=model,
            window_s=self._gateway.limits.window_s,
            poll_s=self._poll_s,
        )


async def first_models(
    *,
    base_url: str | None = None,
    token: str | Callable[[], str | Awaitable[str]] | None = None,
    limits: FirstLimits | None = None,
) -> list[FirstModelStatus]:
    """Return every model of every cluster that the user may ask, its state and its limits.

    Args:
        base_url: The gateway; see `FirstBackend`.
        token: See `FirstBackend`.
        limits: See `FirstBackend`.

    Raises:
        ConfigError: The address is no URL.
        EndpointError: The gateway did not tell.
    """
    return await statuses_of(
        gateway_of(gateway_url(base_url), token, limits or FirstLimits(), "auto")
    )
