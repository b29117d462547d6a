"""An endpoint that only the `openai` SDK can reach: Azure, or a client with its own transport."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import orjson

from scaleinfer.backends._address import shown
from scaleinfer.backends._base import Backend, EndpointStatus
from scaleinfer.backends._completion import parse_completion
from scaleinfer.backends._dialect import error_from_response, error_from_wire, refuses_schemas
from scaleinfer.backends._orca import ASK_FOR_LOAD
from scaleinfer.backends._request_body import in_words, request_body
from scaleinfer.backends._secrets import Secrets
from scaleinfer.backends._wire import Failure, WireError, WireResponse, is_loopback, max_connections
from scaleinfer.errors import ConfigError, EndpointError, Permanent

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import openai

    from scaleinfer.engine import RateLimit
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["SDKBackend"]

_CHECK_TIMEOUT = 10.0
_OK = 200
_OWN_TRANSPORT = "AsyncHttpxClientWrapper"


@dataclass(slots=True)
class _Opened:
    """What one event loop's calls share: a client, and its transport if it is ours."""

    client: openai.AsyncOpenAI
    transport: Any
    users: int = 0


class SDKBackend(Backend):
    """Adapter that asks an `openai` client itself; the client's own retries are off.

    Slower than `OpenAIBackend` by milliseconds of CPU per call, for what only the SDK does:
    Azure's addresses and tokens, a custom `http_client`. The client stays its owner's: it is
    not closed.

    Args:
        client: An `openai.AsyncOpenAI` or `openai.AsyncAzureOpenAI`.
        model: Model to ask, on Azure the deployment; default `OPENAI_MODEL`, the client's
            deployment, else the only model the endpoint offers.
        concurrency: Calls in flight that `concurrency="auto"` starts with.
        json_schema: False for an endpoint that does not enforce JSON schemas.
        weight: This endpoint's share of the calls, relative to others of the same speed.
        rate_limit: Requests and tokens a minute that the endpoint allows.

    Raises:
        ConfigError: It is no asynchronous client.
    """

    kind: ClassVar[str] = "openai-sdk"

    def __init__(
        self,
        client: Any,
        *,
        model: str | None = None,
        concurrency: int = 64,
        json_schema: bool = True,
        weight: float = 1.0,
        rate_limit: RateLimit | None = None,
    ) -> None:
        import openai

        if not isinstance(client, openai.AsyncOpenAI):
            raise ConfigError(
                f"{type(client).__name__} is no openai.AsyncOpenAI.",
                hint="Calls run side by side, which takes an asynchronous client.",
            )
        self._client: openai.AsyncOpenAI = client.with_options(max_retries=0)
        self._own_transport = type(client._client).__name__ == _OWN_TRANSPORT
        self._open: dict[asyncio.AbstractEventLoop, _Opened] = {}
        url = str(client.base_url).rstrip("/")
        self.endpoint = shown(urlsplit(url)._replace(query="", fragment=""))
        self.model = (
            model or os.environ.get("OPENAI_MODEL") or getattr(client, "_azure_deployment", None)
        )
        self.concurrency = concurrency
        self.json_schema = json_schema
        self.weight = weight
        self.rate_limit = rate_limit
        self.priced = not is_loopback(url)
        given = {k: v for k, v in client.default_headers.items() if isinstance(v, str)}
        self._secrets = Secrets(given, (client.api_key, *map(str, client.default_query.values())))

    async def open(self) -> None:
        """Settle on a model if none was named.

        Raises:
            ConfigError: No model was named and the endpoint offers none or several.
            EndpointError: The endpoint was asked for its models and did not tell.
        """
        loop = asyncio.get_running_loop()
        for other in [other for other in self._open if other.is_closed()]:
            del self._open[other]  # it ended without closing us
        opened = self._open.get(loop)
        if opened is None:
            opened = self._open[loop] = self._opened()
        opened.users += 1
        self.most_in_flight = _pool_size(opened.client)
        if self.model is None:
            try:
                self.model = await self._only_model(opened.client)
            except BaseException:
                await self.aclose()
                raise

    async def aclose(self) -> None:
        """Close this loop's connections when the last user leaves; the client stays open."""
        opened = self._open.get(asyncio.get_running_loop())
        if opened is None:
            return
        opened.users -= 1
        if opened.users == 0:
            del self._open[asyncio.get_running_loop()]
            await self._release(opened)

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Make one call; see `Backend.complete`."""
        opened = self._open.get(asyncio.get_running_loop())
        if opened is None:
            raise ConfigError(
                "the backend is not open on this event loop.",
                hint="Use `async with backend:`, or pass it to parallel_map.",
            )
        if not self.json_schema:
            request = in_words(request)
        chat = request.prompt is None
        response = await self._ask(opened.client, request, timeout)
        if response.status == _OK:
            try:
                return parse_completion(response, endpoint=self.endpoint, chat=chat)
            except EndpointError:
                safe = self._secrets.taken_out(response)
            return parse_completion(safe, endpoint=self.endpoint, chat=chat)
        if request.schema is not None and refuses_schemas(response):
            self.json_schema = False
            logging.getLogger("scaleinfer").warning(
                "%s takes no JSON schemas; they go into the prompt from now on.",
                self.endpoint,
            )
            return await self.complete(request, timeout=timeout)
        raise self._refusal(response, request.model or self.model or "")

    async def _ask(
        self, client: openai.AsyncOpenAI, request: Request, timeout: float | None
    ) -> WireResponse:
        body = request_body(request, self.model)
        model = body.pop("model")
        options: dict[str, Any] = {"extra_headers": ASK_FOR_LOAD, "timeout": timeout}
        call: Awaitable[Any]
        if request.prompt is None:
            messages = body.pop("messages")
            call = client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=body, **options
            )
        else:
            prompt = body.pop("prompt")
            call = client.completions.with_raw_response.create(
                model=model, prompt=prompt, extra_body=body, **options
            )
        return await self._answer(call, timeout)

    async def check(self) -> EndpointStatus:
        """Ask for the list of models; see `Backend.check`."""
        began = time.monotonic()
        opened = self._opened()
        try:
            models = await self._models(opened.client)
        except EndpointError as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        finally:
            await self._release(opened)
        latency = time.monotonic() - began
        detail = f"answers; {len(models)} model{'s' * (len(models) != 1)}"
        # No verdict on a model that is not in the list: on Azure it names a deployment.
        return EndpointStatus(self.endpoint, True, detail, tuple(models), latency)

    def _opened(self) -> _Opened:
        """Return what one event loop's calls share.

        The SDK's own transport serves one loop and 1,000 calls, so each loop gets another.
        """
        if not self._own_transport:
            return _Opened(self._client, None)
        import openai

        limits = type(openai.DEFAULT_CONNECTION_LIMITS)
        transport = openai.DefaultAsyncHttpxClient(
            base_url=self._client.base_url,
            limits=limits(max_connections=max_connections(), max_keepalive_connections=None),
        )
        return _Opened(self._client.with_options(http_client=transport), transport)

    async def _release(self, opened: _Opened) -> None:
        if opened.transport is not None:
            await opened.transport.aclose()

    async def _only_model(self, client: openai.AsyncOpenAI) -> str:
        models = await self._models(client)
        if len(models) == 1:
            return models[0]
        offered = ", ".join(models[:10]) or "none"
        raise ConfigError(
            f"no model was named, and {self.endpoint} offers {offered}.",
            hint="Pass model= (on Azure: the deployment), or set OPENAI_MODEL.",
        )

    def _refusal(self, response: WireResponse, model: str) -> EndpointError:
        safe = self._secrets.taken_out(response)
        return error_from_response(safe, endpoint=self.endpoint, model=model)

    async def _models(self, client: openai.AsyncOpenAI) -> list[str]:
        answer = client.models.with_raw_response.list(timeout=_CHECK_TIMEOUT)
        response = await self._answer(answer, _CHECK_TIMEOUT)
        if response.status != _OK:
            raise self._refusal(response, "")
        try:
            return [str(entry["id"]) for entry in orjson.loads(response.body)["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise Permanent(
                f"{self.endpoint}/models is no list of models.",
                hint="Check the client's base_url, or name the model with model=.",
                endpoint=self.endpoint,
                fatal=True,
            ) from None

    async def _answer(self, call: Awaitable[Any], timeout: float | None) -> WireResponse:
        """Await a call of the SDK; whatever HTTP said comes back as a response.

        Raises:
            EndpointError: There was no response.
        """
        import openai

        try:
            # The SDK's own timeout is one of each phase.
            async with asyncio.timeout(timeout):
                raw = await call
                answer = raw.http_response
                return WireResponse(answer.status_code, answer.headers, answer.content)
        except openai.APIStatusError as error:
            answer = error.response
            # Tokens that a provider made are nowhere else to be seen.
            for name in ("authorization", "api-key"):
                self._secrets.add(answer.request.headers.get(name, "").removeprefix("Bearer "))
            return WireResponse(answer.status_code, answer.headers, answer.content)
        except TimeoutError as error:
            wire = WireError(Failure.TIMEOUT, f"no answer within {timeout:.3g} s")
            raise error_from_wire(wire, endpoint=self.endpoint) from error
        except openai.APIConnectionError as error:
            raise error_from_wire(_wire_error(error, timeout), endpoint=self.endpoint) from error
        except openai.OpenAIError as error:
            raise Permanent(
                f"the openai SDK refused the call to {self.endpoint}: {error}",
                endpoint=self.endpoint,
            ) from error


def _wire_error(error: openai.APIConnectionError, timeout: float | None) -> WireError:
    """Return what a failed connection is; the SDK's own words are "Connection error."."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    # httpx and httpx2 name their errors alike.
    names = {type(one).__name__ for one in chain}
    said = next((str(one) for one in chain[1:] if str(one)), str(error))
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return WireError(Failure.TLS, str(one))
    if names & {"ConnectError", "ConnectTimeout"}:
        return WireError(Failure.CONNECT, said)
    if names & {"APITimeoutError", "ReadTimeout", "WriteTimeout", "PoolTimeout"}:
        within = "" if timeout is None else f" within {timeout:g} s"
        return WireError(Failure.TIMEOUT, f"no answer{within}")
    return WireError(Failure.BROKEN, said)


def _pool_size(client: Any) -> int | None:
    """Return how many connections a client's transport holds, as far as it shows."""
    pool = getattr(getattr(client._client, "_transport", None), "_pool", None)
    most = getattr(pool, "_max_connections", None)
    return most if isinstance(most, int) and most < 1 << 31 else None
