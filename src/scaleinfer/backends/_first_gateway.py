"""The gateway as all backends of a process share it: turns, tokens, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import orjson

from scaleinfer.backends._base import UserRate
from scaleinfer.backends._dialect import error_from_wire
from scaleinfer.backends._first_dialect import Condition, condition_of, error_of
from scaleinfer.backends._first_limits import FirstLimits, RequestShare, Turns
from scaleinfer.backends._first_listing import KNOWN, Route, jobs_of, limits_of, routes_of
from scaleinfer.backends._globus_tokens import GivenToken, GlobusTokens, TokenSource
from scaleinfer.backends._wire import WireError, open_wire
from scaleinfer.backends._wire_aiohttp import AiohttpWire
from scaleinfer.errors import EndpointError, Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from scaleinfer.backends._first_listing import Job, ModelLimits
    from scaleinfer.backends._wire import Wire, WireResponse

__all__ = ["Gateway", "gateway_of"]

_OK = 200
_GET_TIMEOUT = 30.0
_POST_TIMEOUT = 60.0
_JSON_BODY = {"Content-Type": "application/json"}
_TURNS_AGAIN = 3
_LISTING_FRESH_S = 300.0
_JOBS_FRESH_S = 5.0
_REFUSES_TO_LIST = frozenset({403, 404, 405, 501})


@dataclass(slots=True)
class _Here:
    """What one event loop's calls share."""

    turns: Turns
    wire: Wire | None = None
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    listing: tuple[float, list[Route]] | None = None
    jobs: dict[str, tuple[float, list[Job]]] = field(default_factory=dict)


class Gateway:
    """One gateway and one user.

    Args:
        url: Its URL, `/resource_server` included.
        tokens: Names the user's token.
        limits: What it allows.
        wire_kind: The HTTP client.

    Attributes:
        url: The same.
        limits: The same.
        poll_s: Seconds between two looks at a model's state, for errors.
        share: This process's part of the user's requests a second.
    """

    def __init__(
        self, url: str, tokens: TokenSource, limits: FirstLimits, wire_kind: str = "auto"
    ) -> None:
        self.url = url
        self.limits = limits
        self.poll_s = 20.0
        self.share = RequestShare(limits.requests_per_second)
        self._tokens = tokens
        self._wire_kind = wire_kind
        self._here: WeakKeyDictionary[asyncio.AbstractEventLoop, _Here] = WeakKeyDictionary()

    @property
    def endpoint(self) -> str:
        """Its name in results and journals."""
        return self.url

    @property
    def user_rate(self) -> UserRate:
        """Requests a second of the user's, from all machines together."""
        return UserRate(self.url, self.limits.requests_per_second)

    def _on_this_loop(self) -> _Here:
        loop = asyncio.get_running_loop()
        here = self._here.get(loop)
        if here is None:
            turns = Turns(self.url, self.limits.requests_per_second, self.share)
            here = self._here[loop] = _Here(turns)
        return here

    async def open(self) -> None:
        """Make sure there is a connection to ask for states."""
        here = self._on_this_loop()
        if here.wire is None:
            here.wire = open_wire(self.url, kind=self._wire_kind)
        here.users += 1

    async def aclose(self) -> None:
        """Close it when the last user leaves."""
        here = self._on_this_loop()
        here.users -= 1
        if here.users <= 0 and here.wire is not None:
            wire, here.wire = here.wire, None
            here.listing = None
            here.jobs.clear()
            await wire.aclose()

    async def send(
        self,
        headers: Mapping[str, str],
        post: Callable[[Mapping[str, str]], Awaitable[WireResponse]],
        told: Callable[[str], None] = lambda _: None,
    ) -> WireResponse:
        """Send a request in its turn, with a token; again if the token or the turn was wrong.

        Args:
            headers: The request's headers but for the token.
            post: Sends it with these headers.
            told: Given each token, so that nobody repeats it.

        Raises:
            EndpointError: There is no token.
            WireError: There was no response.
        """
        turns = self._on_this_loop().turns
        renewed, refusals = False, 0
        token = await self._tokens.token()
        while True:
            told(token)
            await turns.take()
            response = await post({**headers, "Authorization": f"Bearer {token}"})
            if response.status == _OK:
                return response
            condition = condition_of(response)
            if condition is Condition.STALE_TOKEN and not renewed:
                renewed = True
                token = await self._tokens.renewed(token)
            elif condition is Condition.TOO_MANY_REQUESTS:
                turns.refused()
                refusals += 1
                if refusals > _TURNS_AGAIN:
                    return response
            else:
                return response

    async def get(self, path: str) -> Any:
        """Return the JSON that the gateway has under a path.

        Raises:
            EndpointError: It did not give any.
        """
        wire = self._on_this_loop().wire
        assert wire is not None, "the gateway is not open"
        url = f"{self.url}{path}"
        return await self._json(url, lambda head: wire.get(url, head, _GET_TIMEOUT), {})

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post JSON to a path of the gateway; return the JSON that it answers with.

        Sent again only where the gateway has not looked at it: with a token that it refused, or
        out of turn.

        Raises:
            EndpointError: It refused, or there was no answer; what was sent may have been done.
        """
        url, data = f"{self.url}{path}", orjson.dumps(body)
        # A connection of its own: over one that is found closed, requests are sent again.
        wire = AiohttpWire(self.url)
        wire.resends = False
        try:
            return await self._json(
                url, lambda head: wire.post(url, data, head, _POST_TIMEOUT), _JSON_BODY
            )
        finally:
            await wire.aclose()

    async def _json(
        self,
        url: str,
        call: Callable[[Mapping[str, str]], Awaitable[WireResponse]],
        headers: Mapping[str, str],
    ) -> Any:
        try:
            response = await self.send(headers, call)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.url) from error
        if response.status != _OK:
            raise error_of(
                response,
                endpoint=url,
                model="",
                window_s=self.limits.window_s,
                poll_s=self.poll_s,
            )
        try:
            return orjson.loads(response.body)
        except orjson.JSONDecodeError:
            if headers:
                raise Transient(f"{url} did not answer with JSON.", endpoint=url) from None
            raise self._not_ours(url, "it is no JSON") from None

    async def routes(self, *, max_age_s: float = _LISTING_FRESH_S) -> list[Route]:
        """Return all clusters, frameworks and models that the user may ask.

        Where the gateway refuses to list them, those of its documentation are asked for theirs.

        Args:
            max_age_s: Seconds that what it told before may be old.

        Raises:
            EndpointError: The gateway did not tell.
        """
        here = self._on_this_loop()
        async with here.lock:
            known = here.listing
            if known is None or time.monotonic() - known[0] > max_age_s:
                known = here.listing = time.monotonic(), await self._routes()
            return known[1]

    async def _routes(self) -> list[Route]:
        try:
            body = await self.get("/list-endpoints")
        except EndpointError as error:
            if error.status not in _REFUSES_TO_LIST:
                raise
            found = await self._documented_routes()
            if not found:
                raise
            logging.getLogger("scaleinfer").warning(
                "%s does not list its clusters (HTTP %s); the documented ones are asked.",
                self.url, error.status,
            )  # fmt: skip
            return found
        try:
            return routes_of(body)
        except ValueError as error:
            raise self._not_ours(f"{self.url}/list-endpoints", str(error)) from None

    async def _documented_routes(self) -> list[Route]:
        found: list[Route] = []
        for cluster, framework in KNOWN.items():
            with contextlib.suppress(EndpointError):
                models = await self.model_limits(cluster, framework)
                found.append(Route(cluster, framework, tuple(models)))
        return found

    async def jobs(self, cluster: str) -> list[Job]:
        """Return what runs and queues on a cluster; backends that ask together ask once.

        Raises:
            EndpointError: The gateway did not tell.
        """
        here = self._on_this_loop()
        async with here.lock:
            known = here.jobs.get(cluster)
            if known is None or time.monotonic() - known[0] > min(_JOBS_FRESH_S, self.poll_s / 2):
                body = await self.get(f"/{cluster}/jobs")
                try:
                    jobs = jobs_of(body)
                except ValueError as error:
                    raise self._not_ours(f"{self.url}/{cluster}/jobs", str(error)) from None
                known = here.jobs[cluster] = time.monotonic(), jobs
            return known[1]

    async def model_limits(self, cluster: str, framework: str) -> dict[str, ModelLimits]:
        """Return the limits of a cluster's models.

        Raises:
            EndpointError: The gateway did not tell.
        """
        return limits_of(await self.get(f"/{cluster}/models"), framework)

    def _not_ours(self, url: str, why: str) -> EndpointError:
        return Permanent(
            f"{url} is not what FIRST sends: {why}.",
            hint="Check base_url; it ends in /resource_server.",
            endpoint=self.url,
            fatal=True,
        )


_GATEWAYS: WeakValueDictionary[tuple[Any, ...], Gateway] = WeakValueDictionary()
_LOGIN_TOKENS: dict[None, GlobusTokens] = {}


def gateway_of(
    url: str,
    token: str | Callable[[], str | Awaitable[str]] | None,
    limits: FirstLimits,
    wire_kind: str,
) -> Gateway:
    """Return the gateway of these settings; the same for all backends of the process."""
    key = (url, token, limits, wire_kind)
    known = _GATEWAYS.get(key)
    if known is None:
        source: TokenSource
        if token is None:
            source = _LOGIN_TOKENS.setdefault(None, GlobusTokens())
        else:
            source = GivenToken(token)
        known = _GATEWAYS[key] = Gateway(url, source, limits, wire_kind)
    return known
