"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, LiteLLM, OpenAI itself."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from urllib.parse import urlencode

import orjson

from scaleinfer.backends._address import checked_address, checked_key, shown
from scaleinfer.backends._base import Backend, EndpointStatus
from scaleinfer.backends._completion import parse_completion, parse_pack
from scaleinfer.backends._dialect import error_from_response, error_from_wire, refuses_schemas
from scaleinfer.backends._embeddings import Embedder
from scaleinfer.backends._keys import RotatingKey
from scaleinfer.backends._models import lists_deployments, offers, other_list, parse_models
from scaleinfer.backends._orca import ASK_FOR_LOAD
from scaleinfer.backends._packing import packs
from scaleinfer.backends._request_body import BodyWriter, in_words
from scaleinfer.backends._secrets import Secrets
from scaleinfer.backends._streamed import Streamed, asking_for_pieces
from scaleinfer.backends._wire import (
    AiohttpWire,
    WireError,
    is_loopback,
    max_connections,
    open_wire,
)
from scaleinfer.errors import ConfigError, EndpointError, Permanent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from scaleinfer.backends._batch_base import BatchBackend
    from scaleinfer.backends._wire import Wire, WireResponse
    from scaleinfer.backends._wire_base import OnBody
    from scaleinfer.engine import RateLimit
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["OpenAIBackend", "WireKind"]

WireKind = Literal["auto", "direct", "aiohttp", "http2"]

_OFFICIAL = "https://api.openai.com/v1"
_CHECK_TIMEOUT = 10.0
_PAGES_BEFORE_FATAL = 5
_OK, _UNAUTHORIZED, _NOT_FOUND = 200, 401, 404
_BAD_REQUEST = frozenset({400, 413, 422})


@dataclass(slots=True)
class _Opened:
    """What one event loop's calls share."""

    wire: Wire
    keys: RotatingKey | None
    users: int = 0


class OpenAIBackend(Backend):
    """Adapter to one OpenAI-compatible server.

    Args:
        base_url: The server's address up to and including `/v1`; default `OPENAI_BASE_URL`,
            else OpenAI's own.
        api_key: Default `OPENAI_API_KEY`; an empty string for none. Servers of your own
            usually need none. A function that returns the key of the moment, or is a
            coroutine function that does, is asked at most once a second.
        model: Model to ask; default `OPENAI_MODEL`, else the only one the server offers.
        headers: Further headers of every call.
        query: Query parameters of every call.
        timeout: Seconds for one call, if fewer than the run's `Retry.timeout`.
        concurrency: Calls in flight that `concurrency="auto"` starts with.
        json_schema: False for a server that does not enforce JSON schemas; the schema then
            goes into the prompt. A server that refuses `response_format` is found out by
            itself.
        packing: Plain-completion prompts that go into one call, for servers that take a list
            of them (vLLM and OpenAI do).
        load_reports: Ask for an ORCA load report with every answer; servers that know none
            ignore it.
        wire: The HTTP client: `auto` takes the fastest that fits the address.
        weight: This endpoint's share of the calls, relative to others of the same speed.
        rate_limit: Requests and tokens a minute that the server allows.

    Raises:
        ConfigError: The address is no URL, the key cannot be sent, or OpenAI's own server is
            meant and there is no key.
    """

    kind: ClassVar[str] = "openai"
    embeds = True

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | Callable[[], str | Awaitable[str]] | None = None,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float | None = None,
        concurrency: int = 64,
        json_schema: bool = True,
        packing: int = 1,
        load_reports: bool = True,
        wire: WireKind = "auto",
        weight: float = 1.0,
        rate_limit: RateLimit | None = None,
    ) -> None:
        if wire not in get_args(WireKind):
            raise ConfigError(
                f"wire={wire!r} is unknown.", hint=f"Known: {', '.join(get_args(WireKind))}."
            )
        if not weight > 0:
            raise ConfigError(f"weight must be positive, not {weight}.")
        if packing < 1:
            raise ConfigError(f"packing must be at least 1, not {packing}.")
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OFFICIAL).rstrip("/")
        parts = checked_address(url)
        self.endpoint = shown(parts)
        self.model = model or os.environ.get("OPENAI_MODEL")
        self.timeout = timeout
        self.concurrency = concurrency
        self.json_schema = json_schema
        self.packing = packing
        self.weight = weight
        self.rate_limit = rate_limit
        self.priced = not is_loopback(url)
        self._url, self._wire_kind = url, wire
        self._query = f"?{urlencode(query)}" if query else ""
        self._chat_url = self._url_of("chat/completions")
        self._completions_url = self._url_of("completions")
        self._embedder = Embedder()
        self._provider = api_key if callable(api_key) else None
        self._headers = {
            "Content-Type": "application/json",
            **(ASK_FOR_LOAD if load_reports else {}),
            **self._authorization(api_key, headers or {}, in_address=parts.username is not None),
            **(headers or {}),
        }
        self._secrets = Secrets(self._headers, (query or {}).values())
        self._secrets.add_userinfo(parts)
        if isinstance(api_key, str):
            self._secrets.add(api_key.strip())
        self._bodies = BodyWriter()
        self._open: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self._pages: int | None = 0

    @property
    def connection_wait_s(self) -> float:
        """Seconds that calls have waited for a connection so far, summed."""
        return sum(opened.wire.statistics().waited_s for opened in self._open.values())

    @classmethod
    def from_client(cls, client: Any, *, model: str | None = None, **options: Any) -> Backend:
        """Return an adapter with the configuration of an `openai` client.

        Base URL, key (or the function that returns it), organisation, project, default
        headers, default query and timeout are taken over; the calls do not go through the
        client. Where its configuration cannot be taken over (a custom `http_client`, Azure,
        workload identity), the adapter is an `SDKBackend`, which asks the client itself, and
        one logged line says so.

        Args:
            client: An `openai.AsyncOpenAI`, `openai.OpenAI` or `openai.AsyncAzureOpenAI`.
            model: Model to ask.
            options: Further arguments of this class.

        Raises:
            ConfigError: It is no such client, or a synchronous one that cannot be taken over.
        """
        from scaleinfer.backends._openai_client import adapter_of

        return adapter_of(client, model=model, **options)

    async def open(self) -> None:
        """Open connections on the running loop, and settle on a model if none was named.

        Raises:
            ConfigError: No model was named and the server offers none or several.
            EndpointError: The server was asked for its models and did not tell.
        """
        loop = asyncio.get_running_loop()
        for other in [other for other in self._open if other.is_closed()]:
            del self._open[other]  # it ended without closing us
        opened = self._open.get(loop)
        if opened is None:
            # Over HTTP/2 one connection carries many calls.
            self.most_in_flight = None if self._wire_kind == "http2" else max_connections()
            opened = self._open[loop] = self._opened()
        opened.users += 1
        if self.model is None:
            try:
                self.model = await self._only_model(opened)
            except BaseException:
                await self.aclose()
                raise

    async def aclose(self) -> None:
        """Close this loop's connections when the last user leaves."""
        loop = asyncio.get_running_loop()
        opened = self._open.get(loop)
        if opened is None:
            return
        opened.users -= 1
        if opened.users == 0:
            del self._open[loop]
            await opened.wire.aclose()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Make one call; see `Backend.complete`."""
        if request.input is not None:
            (outcome,) = await self._embedder.ask(self, [request], timeout)
            if isinstance(outcome, EndpointError):
                raise outcome
            return outcome
        chat = request.prompt is None
        if not self.json_schema:
            request = in_words(request)
        if request.on_text is not None and chat and self.kind == OpenAIBackend.kind:
            return await self._streamed(request, request.on_text, timeout)
        body = self._bodies.write(request, self.model)
        url = self._chat_url if chat else self._completions_url
        try:
            response = await self._post(url, body, timeout)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        if response.status == _OK:
            completion = self._read(response, chat=chat)
            self._pages = None
            return completion
        if request.schema is not None and refuses_schemas(response):
            if self.json_schema:  # the first of those in flight says it
                self.json_schema = False
                _log(f"{self.endpoint} takes no JSON schemas; they go into the prompt from now on.")
            return await self.complete(request, timeout=timeout)
        raise self._refusal(response, request.model or self.model or "")

    async def _streamed(
        self, request: Request, on_text: Callable[[str], None], timeout: float | None
    ) -> Completion:
        """Make a call whose answer comes in pieces."""
        streamed = Streamed(on_text)
        body = asking_for_pieces(self._bodies.write(request, self.model))
        try:
            response = await self._post(self._chat_url, body, timeout, streamed.feed)
        except WireError as error:
            failed = error_from_wire(error, endpoint=self.endpoint)
            raise streamed.broken(failed) from error
        if response.status != _OK:
            raise self._refusal(response, request.model or self.model or "")
        whole = streamed.whole(response, endpoint=self.endpoint)
        try:
            completion = self._read(whole, chat=True)
        except EndpointError as error:
            raise streamed.broken(error) from None
        self._pages = None
        return completion

    async def complete_many(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[Completion | EndpointError]:
        """Ask several requests; see `Backend.complete_many`.

        Plain completions with equal sampling go `packing` to a call. A pack that the server
        refuses as a bad request is asked one by one, so that only the culprit fails. Texts to
        be embedded with equal settings all go into one call, as long as the server takes it.
        """
        if requests[0].input is not None:
            return await self._embedder.ask(self, requests, timeout)
        found = packs(requests, self.packing)
        together = [[requests[position] for position in pack] for pack in found]
        if len(together) == 1:
            outcomes = [await self._pack(together[0], timeout)]
        else:
            outcomes = await asyncio.gather(*(self._pack(pack, timeout) for pack in together))
        ordered: dict[int, Completion | EndpointError] = {}
        for positions, pack_outcomes in zip(found, outcomes, strict=True):
            ordered.update(zip(positions, pack_outcomes, strict=True))
        return [ordered[position] for position in range(len(requests))]

    async def _pack(
        self, requests: list[Request], timeout: float | None
    ) -> list[Completion | EndpointError]:
        if len(requests) == 1:
            return [await self._outcome(requests[0], timeout)]
        first, prompts = requests[0], [request.prompt or "" for request in requests]
        try:
            body = self._bodies.write_pack(first, prompts, self.model)
        except orjson.JSONEncodeError:
            return await self._one_by_one(requests, timeout)
        try:
            response = await self._post(self._completions_url, body, timeout)
            if response.status in _BAD_REQUEST:
                return await self._one_by_one(requests, timeout)
            if response.status != _OK:
                raise self._refusal(response, first.model or self.model or "")
            outcomes = self._read_pack(response, prompts, first.sampling.n or 1)
        except (EndpointError, WireError) as caught:
            error = self._as_endpoint_error(caught)
            # One for each: an error carries the item that it belongs to.
            return [copy.copy(error) for _ in requests]
        self._pages = None
        return outcomes

    async def _one_by_one(
        self, requests: list[Request], timeout: float | None
    ) -> list[Completion | EndpointError]:
        outcomes = list(
            await asyncio.gather(*(self._outcome(request, timeout) for request in requests))
        )
        if self.packing > 1 and not any(isinstance(one, EndpointError) for one in outcomes):
            self.packing = 1
            _log(f"{self.endpoint} takes one prompt to a call only; packing is off from now on.")
        return outcomes

    def batches(self) -> BatchBackend | None:
        """Return the adapter to the server's batch API; whether it has one, the server tells."""
        if self.kind != OpenAIBackend.kind:
            return None  # a gateway that speaks OpenAI's protocol to models, not for files
        from scaleinfer.backends._batch_openai import OpenAIBatches

        return OpenAIBatches(self)

    async def request(
        self,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        timeout: float = _CHECK_TIMEOUT,
        apart: bool = False,
    ) -> WireResponse:
        """Get what is at a path below the base URL, or post to it, and return the 200 answer.

        Args:
            path: Relative to the base URL, with a query if need be.
            body: What to post; `None` gets.
            content_type: Of the body.
            timeout: Seconds.
            apart: Over a connection of its own: what is posted arrives once at most, and the
                answer may be of any size.

        Raises:
            EndpointError: There was no answer, or one that is an error.
        """
        opened = self._now_open()
        url = f"{self._url}/{path}"
        if self._query:
            url += self._query.replace("?", "&") if "?" in path else self._query
        headers = self._headers if opened.keys is None else await opened.keys.headers()
        wire = _apart(self._url) if apart else opened.wire
        try:
            kind = {"Content-Type": content_type}
            response = await _ask(wire, url, body, {**headers, **kind}, timeout)
            if response.status == _UNAUTHORIZED and opened.keys is not None:
                renewed = await opened.keys.renewed(headers)
                if renewed is not None:
                    response = await _ask(wire, url, body, {**renewed, **kind}, timeout)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        finally:
            if apart:
                await wire.aclose()
        if response.status != _OK:
            raise self._refusal(response, "")
        return response

    async def embed(self, body: bytes, timeout: float | None) -> WireResponse:
        """Post to `/embeddings` and return the response, whatever it says.

        Raises:
            EndpointError: There was none.
        """
        try:
            response = await self._post(self._url_of("embeddings"), body, timeout)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        if response.status == _OK:
            self._pages = None
        return response

    def refusal(self, response: WireResponse, model: str) -> EndpointError:
        """Return what a response other than 200 means; the error holds no key."""
        return self._refusal(response, model)

    def without_secrets(self, response: WireResponse) -> WireResponse:
        """Return the response without our key, should it be in there."""
        return self._secrets.taken_out(response)

    async def check(self) -> EndpointStatus:
        """Ask for the list of models; see `Backend.check`."""
        began = time.monotonic()
        try:
            opened = self._opened()
            try:
                models = await self._models(opened)
            finally:
                await opened.wire.aclose()
        except (EndpointError, ConfigError) as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        latency = time.monotonic() - began
        detail = f"answers; {len(models)} model{'s' * (len(models) != 1)}"
        ok = self.model is None or not models or offers(models, self.model)
        ok = ok or not lists_deployments(self._url)
        if not ok:
            detail = f"answers, but does not offer {self.model}"
        return EndpointStatus(self.endpoint, ok, detail, tuple(models), latency)

    def _authorization(
        self, key: object, headers: Mapping[str, str], *, in_address: bool
    ) -> dict[str, str]:
        if callable(key):
            return {}
        checked = checked_key(os.environ.get("OPENAI_API_KEY") if key is None else key)
        if in_address or any(name.lower() == "authorization" for name in headers):
            # What the address or the headers name is sent as it is; a call carries one only.
            return {}
        if checked is not None:
            return {"Authorization": f"Bearer {checked}"}
        if self._url == _OFFICIAL:
            raise ConfigError(
                "OpenAI's own server needs a key.",
                hint="Set OPENAI_API_KEY, or name your server with base_url=.",
            )
        return {}

    def _url_of(self, path: str) -> str:
        return f"{self._url}/{path}{self._query}"

    def _opened(self) -> _Opened:
        keys = None
        if self._provider is not None:
            keys = RotatingKey(
                self._provider, self._headers, endpoint=self.endpoint, told=self._secrets.add
            )
        return _Opened(open_wire(self._url, kind=self._wire_kind), keys)

    def _post(
        self, url: str, body: bytes, timeout: float | None, on_body: OnBody | None = None
    ) -> Coroutine[Any, Any, WireResponse]:
        opened = self._now_open()
        own = self.timeout
        if own is not None and (timeout is None or own < timeout):
            timeout = own
        if opened.keys is None:
            return opened.wire.post(url, body, self._headers, timeout, on_body)
        return _post_with(opened.keys, opened.wire, url, body, timeout, on_body)

    def _now_open(self) -> _Opened:
        opened = self._open.get(asyncio.get_running_loop())
        if opened is None:
            raise ConfigError(
                "the backend is not open on this event loop.",
                hint="Use `async with backend:`, or pass it to parallel_map.",
            )
        return opened

    def _as_endpoint_error(self, error: EndpointError | WireError) -> EndpointError:
        if isinstance(error, WireError):
            return error_from_wire(error, endpoint=self.endpoint)
        return error

    def _read(self, response: WireResponse, *, chat: bool) -> Completion:
        try:
            return parse_completion(response, endpoint=self.endpoint, chat=chat)
        except EndpointError:
            pass
        # Read once more without the key, which an error's excerpt of the body must not hold.
        # An answer is never touched: a header's value may well be a word of it.
        only_pages = self._note_pages(response)
        safe = self._secrets.taken_out(response)
        try:
            return parse_completion(safe, endpoint=self.endpoint, chat=chat)
        except EndpointError as error:
            error.fatal = error.fatal or only_pages
            raise

    def _read_pack(
        self, response: WireResponse, prompts: list[str], n: int
    ) -> list[Completion | EndpointError]:
        try:
            return parse_pack(response, endpoint=self.endpoint, prompts=prompts, n=n)
        except EndpointError:
            pass
        only_pages = self._note_pages(response)
        safe = self._secrets.taken_out(response)
        try:
            return parse_pack(safe, endpoint=self.endpoint, prompts=prompts, n=n)
        except EndpointError as error:
            error.fatal = only_pages
            raise

    def _refusal(self, response: WireResponse, model: str) -> EndpointError:
        self._note_pages(response)
        safe = self._secrets.taken_out(response)
        return error_from_response(safe, endpoint=self.endpoint, model=model)

    def _note_pages(self, response: WireResponse) -> bool:
        """Return True if this endpoint has sent nothing but web pages: no inference server."""
        if self._pages is not None:
            self._pages = self._pages + 1 if response.body.lstrip()[:1] == b"<" else None
        return self._pages is not None and self._pages >= _PAGES_BEFORE_FATAL

    async def _only_model(self, opened: _Opened) -> str:
        models = await self._models(opened)
        if len(models) == 1:
            return models[0]
        offered = ", ".join(models[:10]) or "none"
        raise ConfigError(
            f"no model was named, and {self.endpoint} offers {offered}.",
            hint="Pass model=, or set OPENAI_MODEL.",
        )

    async def _models(self, opened: _Opened) -> list[str]:
        headers = self._headers if opened.keys is None else await opened.keys.headers()
        try:
            response = await opened.wire.get(self._url_of("models"), headers, _CHECK_TIMEOUT)
            elsewhere = other_list(self._url) if response.status == _NOT_FOUND else None
            if elsewhere is not None:
                response = await opened.wire.get(elsewhere, headers, _CHECK_TIMEOUT)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        if response.status != _OK:
            raise self._refusal(response, "")
        try:
            return parse_models(response.body)
        except ValueError:
            raise Permanent(
                f"{self.endpoint}/models is no list of models.",
                hint="Check base_url, or name the model with model=.",
                endpoint=self.endpoint,
                fatal=True,
            ) from None


def _log(line: str) -> None:
    logging.getLogger("scaleinfer").warning(line)


def _apart(url: str) -> Wire:
    if url.startswith("http"):
        wire = AiohttpWire(url)
        wire.resends = False
        return wire
    # A new connection that is closed at once is not taken for one that had gone stale.
    return open_wire(url, kind="direct")


def _ask(
    wire: Wire, url: str, body: bytes | None, headers: Mapping[str, str], timeout: float
) -> Coroutine[Any, Any, WireResponse]:
    if body is None:
        return wire.get(url, headers, timeout)
    return wire.post(url, body, headers, timeout)


async def _post_with(  # noqa: PLR0917 - as `Wire.post`, and the keys
    keys: RotatingKey,
    wire: Wire,
    url: str,
    body: bytes,
    timeout: float | None,
    on_body: OnBody | None,
) -> WireResponse:
    """Post with the key of the moment; once more if it is refused and there is a new one."""
    headers = await keys.headers()
    response = await wire.post(url, body, headers, timeout, on_body)
    if response.status == _UNAUTHORIZED:
        renewed = await keys.renewed(headers)
        if renewed is not None:
            response = await wire.post(url, body, renewed, timeout, on_body)
    return response
