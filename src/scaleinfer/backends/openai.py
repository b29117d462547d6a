"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, LiteLLM, OpenAI itself."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import SplitResult, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

import orjson

from scaleinfer.backends._base import Backend, EndpointStatus
from scaleinfer.backends._dialect import (
    error_from_response,
    error_from_wire,
    parse_completion,
)
from scaleinfer.backends._wire import AiohttpWire, WireError, is_loopback
from scaleinfer.errors import ConfigError, EndpointError, Permanent
from scaleinfer.requests import plain
from scaleinfer.structured import instruct, is_strict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaleinfer.backends._wire import Wire, WireResponse
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["OpenAIBackend"]

_OFFICIAL = "https://api.openai.com/v1"
_CHECK_TIMEOUT = 10.0
_PAGES_BEFORE_FATAL = 5
_PUBLIC_HEADERS = frozenset({"content-type", "accept", "user-agent"})
_SHORTEST_SECRET = 8  # shorter values occur in texts by chance


class OpenAIBackend(Backend):
    """Adapter to one OpenAI-compatible server.

    Args:
        base_url: The server's address up to and including `/v1`; default `OPENAI_BASE_URL`,
            else OpenAI's own.
        api_key: Default `OPENAI_API_KEY`. Servers of your own usually need none.
        model: Model to ask; default `OPENAI_MODEL`, else the only one the server offers.
        headers: Further headers of every call.
        concurrency: Calls in flight that `concurrency="auto"` starts with.
        json_schema: False for a server that does not enforce JSON schemas; the schema then
            goes into the prompt. A server that refuses `response_format` is found out by
            itself.

    Raises:
        ConfigError: The address is no http(s) URL, or OpenAI's own server is meant and there
            is no key.
    """

    kind: ClassVar[str] = "openai"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        concurrency: int = 64,
        json_schema: bool = True,
    ) -> None:
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _OFFICIAL).rstrip("/")
        parts = _checked_address(url)
        key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY"))
        if parts.username is not None:
            # What the address names is sent as it is; one call cannot carry both.
            key = None
        elif key is None and url == _OFFICIAL:
            raise ConfigError(
                "OpenAI's own server needs a key.",
                hint="Set OPENAI_API_KEY, or name your server with base_url=.",
            )
        self._url = url
        self.endpoint = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self.model = model or os.environ.get("OPENAI_MODEL")
        self.concurrency = concurrency
        self.json_schema = json_schema
        self.priced = not is_loopback(url)
        self._headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {key}"} if key else {}),
            **(headers or {}),
        }
        self._secrets = [
            value.removeprefix("Bearer ").encode()
            for name, value in self._headers.items()
            if name.lower() not in _PUBLIC_HEADERS and len(value) >= _SHORTEST_SECRET
        ]
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Wire, int]]
        self._open = WeakKeyDictionary()
        self._pages: int | None = 0

    async def open(self) -> None:
        """Open connections on the running loop, and settle on a model if none was named.

        Raises:
            ConfigError: No model was named and the server offers none or several.
            EndpointError: The server was asked for its models and did not tell.
        """
        loop = asyncio.get_running_loop()
        wire, users = self._open.get(loop) or (AiohttpWire(self._url), 0)
        self._open[loop] = (wire, users + 1)
        if self.model is None:
            try:
                self.model = await self._only_model()
            except BaseException:
                await self.aclose()
                raise

    async def aclose(self) -> None:
        """Close this loop's connections when the last user leaves."""
        loop = asyncio.get_running_loop()
        opened = self._open.get(loop)
        if opened is None:
            return
        wire, users = opened
        if users > 1:
            self._open[loop] = (wire, users - 1)
            return
        del self._open[loop]
        await wire.aclose()

    async def complete(self, request: Request, *, timeout: float | None = None) -> Completion:
        """Make one call; see `Backend.complete`."""
        chat = request.prompt is None
        if request.schema is not None and not self.json_schema:
            request = replace(
                request, messages=instruct(request.messages or [], request.schema), schema=None
            )
        url = f"{self._url}/chat/completions" if chat else f"{self._url}/completions"
        body = orjson.dumps(self._body(request), option=orjson.OPT_NON_STR_KEYS, default=plain)
        try:
            response = await self._wire.post(url, body, self._headers, timeout)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        only_pages = self._note_pages(response)
        if response.status != 200:  # noqa: PLR2004 - OK
            if self._refuses_schemas(request, response):
                self.json_schema = False
                logging.getLogger("scaleinfer").warning(
                    "%s does not take JSON schemas; they go into the prompt from now on.",
                    self.endpoint,
                )
                return await self.complete(request, timeout=timeout)
            model = request.model or self.model or ""
            raise self._refusal(response, model)
        try:
            return parse_completion(response, endpoint=self.endpoint, chat=chat)
        except EndpointError:
            pass
        # Read once more without the key, which an error's excerpt of the body must not hold.
        # An answer is never touched: a header's value may well be a word of it.
        try:
            safe = self._without_secrets(response)
            return parse_completion(safe, endpoint=self.endpoint, chat=chat)
        except EndpointError as error:
            error.fatal = only_pages
            raise

    async def check(self) -> EndpointStatus:
        """Ask for the list of models; see `Backend.check`."""
        began = time.monotonic()
        wire = AiohttpWire(self._url)
        try:
            models = await self._models(wire)
        except EndpointError as error:
            return EndpointStatus(self.endpoint, ok=False, detail=str(error))
        finally:
            await wire.aclose()
        latency = time.monotonic() - began
        detail = f"answers; {len(models)} model{'s' * (len(models) != 1)}"
        ok = self.model is None or not models or self.model in models
        if not ok:
            detail = f"answers, but does not offer {self.model}"
        return EndpointStatus(self.endpoint, ok, detail, tuple(models), latency)

    @property
    def _wire(self) -> Wire:
        opened = self._open.get(asyncio.get_running_loop())
        if opened is None:
            raise ConfigError(
                "the backend is not open on this event loop.",
                hint="Use `async with backend:`, or pass it to parallel_map.",
            )
        return opened[0]

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": request.model or self.model}
        if request.prompt is None:
            body["messages"] = request.messages
        else:
            body["prompt"] = request.prompt
        body.update(request.sampling.to_body())
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.schema_name,
                    "schema": request.schema,
                    "strict": is_strict(request.schema),
                },
            }
        return body

    def _refuses_schemas(self, request: Request, response: WireResponse) -> bool:
        if request.schema is None or response.status not in {400, 422}:
            return False
        said = response.body.lower()
        return b"response_format" in said or b"json_schema" in said

    def _refusal(self, response: WireResponse, model: str) -> EndpointError:
        safe = self._without_secrets(response)
        return error_from_response(safe, endpoint=self.endpoint, model=model)

    def _without_secrets(self, response: WireResponse) -> WireResponse:
        """Return the response without the key, should the server repeat it in an error."""
        body = response.body
        for secret in self._secrets:
            if secret in body:
                body = body.replace(secret, b"[secret]")
        return response if body is response.body else replace(response, body=body)

    def _note_pages(self, response: WireResponse) -> bool:
        """Return True if this endpoint has sent nothing but web pages: no inference server."""
        if self._pages is not None:
            self._pages = self._pages + 1 if response.body.lstrip()[:1] == b"<" else None
        return self._pages is not None and self._pages >= _PAGES_BEFORE_FATAL

    async def _only_model(self) -> str:
        models = await self._models(self._wire)
        if len(models) == 1:
            return models[0]
        offered = ", ".join(models[:10]) or "none"
        raise ConfigError(
            f"no model was named, and {self.endpoint} offers {offered}.",
            hint="Pass model=, or set OPENAI_MODEL.",
        )

    async def _models(self, wire: Wire) -> list[str]:
        try:
            response = await wire.get(f"{self._url}/models", self._headers, _CHECK_TIMEOUT)
        except WireError as error:
            raise error_from_wire(error, endpoint=self.endpoint) from error
        if response.status != 200:  # noqa: PLR2004 - OK
            raise self._refusal(response, "")
        try:
            return [str(entry["id"]) for entry in orjson.loads(response.body)["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise Permanent(
                f"{self.endpoint}/models is no list of models.",
                hint="Check base_url, or name the model with model=.",
                endpoint=self.endpoint,
                fatal=True,
            ) from None


def _checked_address(url: str) -> SplitResult:
    # Nothing that may be a credential is repeated.
    shown = url.rpartition("@")[2].partition("?")[0]
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"base_url {shown!r} is no http(s) URL.", hint="For example: http://127.0.0.1:8000/v1"
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            f"base_url {shown!r} goes on after its path.",
            hint="Leave out what follows ? or #; a key belongs into api_key= or headers=.",
        )
    return parts


def _checked_key(key: str | None) -> str | None:
    # A key read from a file often ends in a newline.
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            "the API key holds characters that no header can carry.",
            hint="Look for a line break or a typographic character in it.",
        )
    return key or None
