"""The embedded model as an OpenAI-compatible server on loopback.

For other tools and for tests. Concurrent requests are batched by the engine. There is no
authentication, so it listens on 127.0.0.1 unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._local_text import TextStream
from scaleinfer.backends.local import completion_of, logprobs_of
from scaleinfer.errors import ConfigError, EndpointError, Permanent, ScaleInferError
from scaleinfer.requests import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from aiohttp import web

    from scaleinfer.backends._local_engine import Generated
    from scaleinfer.backends.local import LocalBackend, Started

__all__ = ["LocalServer", "run_server", "serve"]

_SAMPLING_FIELDS = (
    "temperature", "max_tokens", "top_p", "seed", "n", "stop", "logprobs", "top_logprobs",
)  # fmt: skip
_OWN_FIELDS = {"messages", "prompt", "model", "stream", "stream_options", "response_format"}
_CLOSE_SECONDS = 2.0
_LARGEST_BODY = 16 << 20


@dataclass(slots=True)
class _Call:
    """A request as HTTP brought it.

    Attributes:
        request: What to ask.
        chat: True for chat completions.
        id: The answer's id.
        created: Unix time.
        model: The model that answers.
        stream: True if the answer is wanted as server-sent events.
        include_usage: True if the stream ends with a usage chunk.
    """

    request: Request
    chat: bool
    id: str
    created: int
    model: str
    stream: bool
    include_usage: bool


class LocalServer:
    """Serves one `LocalBackend` over HTTP; `async with` starts and stops it.

    Endpoints: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health`.

    Args:
        backend: The embedded model.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Attributes:
        url: Base URL for clients, ending in `/v1`; set once it listens.
    """

    def __init__(self, backend: LocalBackend, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._backend = backend
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> LocalServer:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Load the model and listen.

        Raises:
            ConfigError: The model or its runtime is missing, or the port is taken.
        """
        from aiohttp import web

        await self._backend.engine()
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._model)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_CLOSE_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self.aclose()
            raise ConfigError(
                f"Cannot listen on {self._host}:{self._port}: {error.strerror or error}.",
                hint="Choose another port; 0 takes a free one.",
            ) from None
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    async def aclose(self) -> None:
        """Stop listening and end the calls in flight."""
        await self._backend.aclose()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _models(self, _request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._card()]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self._backend.model:
            return _error(f"There is no model {name}; there is {self._backend.model}.", 404)
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        return {"id": self._backend.model, "object": "model", "created": 0, "owned_by": "local"}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        from aiohttp import web

        try:
            call = _parse(await http.read(), chat=chat, model=str(self._backend.model))
            if call.stream:
                return await self._stream(http, call)
            engine = await self._backend.engine()
            started = self._backend.start(call.request, engine)
            generated = await self._backend.results(started)
        except web.HTTPRequestEntityTooLarge:
            return _error("The request's body is larger than 16 MB.", 413)
        except EndpointError as error:
            return _error(str(error), error.status or 503)
        except ScaleInferError as error:
            return _error(str(error), 500)
        return _json(_body(call, started, generated))

    async def _stream(self, http: web.Request, call: _Call) -> web.StreamResponse:
        from aiohttp import web

        tokens: asyncio.Queue[tuple[int, list[int]] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_tokens(choice: int, token_ids: list[int]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and so is the client
                loop.call_soon_threadsafe(tokens.put_nowait, (choice, token_ids))

        engine = await self._backend.engine()
        started = self._backend.start(call.request, engine, on_tokens)
        results = asyncio.create_task(self._backend.results(started))
        results.add_done_callback(lambda _task: tokens.put_nowait(None))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        try:
            await response.prepare(http)
            async for chunk in _chunks(call, started, tokens, results):
                await response.write(b"data: " + orjson.dumps(chunk) + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # the client went away; the engine is told below
        finally:
            results.cancel()
            await asyncio.gather(results, return_exceptions=True)
        return response


async def _chunks(
    call: _Call,
    started: Started,
    tokens: asyncio.Queue[tuple[int, list[int]] | None],
    results: asyncio.Task[list[Generated]],
) -> AsyncIterator[dict[str, Any]]:
    streams = [TextStream(started.engine.decode, started.plan.stop) for _ in range(started.plan.n)]
    if call.chat:
        for choice in range(started.plan.n):
            yield _chunk(call, choice, "", role=True)
    while (item := await tokens.get()) is not None:
        choice, token_ids = item
        if text := streams[choice].feed(token_ids):
            yield _chunk(call, choice, text)
    try:
        generated = await results
    except EndpointError as error:
        yield _error_body(str(error), error.status or 503)
        return
    for choice, one in enumerate(generated):
        if text := streams[choice].finish():
            yield _chunk(call, choice, text)
        logprobs = logprobs_of(started, one) if started.plan.logprobs else None
        yield _chunk(call, choice, None, finish=one.finish_reason, logprobs=logprobs)
    if call.include_usage:
        yield _envelope(call, chunk=True) | {"choices": [], "usage": _usage(started, generated)}


def _parse(raw: bytes, *, chat: bool, model: str) -> _Call:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Permanent("The request's body is not JSON.", status=400) from None
    if not isinstance(body, dict):
        raise Permanent("The request's body is not a JSON object.", status=400)
    field = "messages" if chat else "prompt"
    asked = body.get(field)
    if chat and not (isinstance(asked, list) and all(isinstance(m, dict) for m in asked)):
        raise Permanent("messages must be a list of objects.", status=400)
    if not chat and not isinstance(asked, str):
        raise Permanent("prompt must be one text.", status=400)
    options = body.get("stream_options")
    request = Request(
        messages=asked if chat else None,
        prompt=None if chat else asked,
        sampling=_sampling(body, chat=chat),
        model=body.get("model"),
    )
    return _Call(
        request=request,
        chat=chat,
        id=("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
        created=int(time.time()),
        model=model,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _sampling(body: dict[str, Any], *, chat: bool) -> Sampling:
    known = {name: body[name] for name in _SAMPLING_FIELDS if body.get(name) is not None}
    if not chat and "logprobs" in known:
        # Plain completions ask with a number, and 0 is yes.
        count = known["logprobs"]
        known["logprobs"] = count is not False
        if not isinstance(count, bool) and count > 1:
            known["top_logprobs"] = count
    extra = {k: v for k, v in body.items() if k not in _SAMPLING_FIELDS and k not in _OWN_FIELDS}
    if body.get("response_format") is not None:
        extra["response_format"] = body["response_format"]
    try:
        return Sampling(**known, extra=extra)
    except ConfigError as error:
        raise Permanent(error.message, status=400) from None
    except TypeError:
        raise Permanent("A sampling parameter is not a number.", status=400) from None


def _body(call: _Call, started: Started, generated: list[Generated]) -> dict[str, Any]:
    choices = []
    completion = completion_of(started, generated, call.model)
    texts = completion.choices or [completion.text]
    for index, (text, one) in enumerate(zip(texts, generated, strict=True)):
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if call.chat else {"text": text}
        )
        content["logprobs"] = logprobs_of(started, one) if started.plan.logprobs else None
        choices.append({"index": index, "finish_reason": one.finish_reason} | content)
    return _envelope(call, chunk=False) | {
        "choices": choices, "usage": _usage(started, generated),
    }  # fmt: skip


def _envelope(call: _Call, *, chunk: bool) -> dict[str, Any]:
    kind = "text_completion"
    if call.chat:
        kind = "chat.completion.chunk" if chunk else "chat.completion"
    return {"id": call.id, "object": kind, "created": call.created, "model": call.model}


def _chunk(
    call: _Call,
    choice: int,
    text: str | None,
    *,
    role: bool = False,
    finish: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"index": choice, "finish_reason": finish, "logprobs": logprobs}
    if call.chat:
        delta: dict[str, Any] = {} if text is None else {"content": text}
        entry["delta"] = delta | ({"role": "assistant"} if role else {})
    else:
        entry["text"] = text or ""
    body = _envelope(call, chunk=True) | {"choices": [entry]}
    return body | {"usage": None} if call.include_usage else body


def _usage(started: Started, generated: list[Generated]) -> dict[str, int]:
    written = sum(len(one.token_ids) for one in generated)
    return {
        "prompt_tokens": started.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": started.prompt_tokens + written,
    }


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    from aiohttp import web

    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def _error_body(message: str, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004 - HTTP's own
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _error(message: str, status: int) -> web.Response:
    return _json(_error_body(message, status), status)


def _announce(url: str) -> None:
    # Whoever started the server may be reading its output through a pipe.
    print(f"Serving on {url}", flush=True)


async def serve(
    backend: LocalBackend,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] = _announce,
) -> None:
    """Serve the embedded model until SIGTERM, SIGINT or cancellation.

    Args:
        backend: The embedded model.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        ready: Called with the base URL once requests are answered.

    Raises:
        ConfigError: See `LocalServer.open`.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    async with LocalServer(backend, host=host, port=port) as server:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            # Neither Windows nor a thread other than the main one has signal handlers here.
            for number in signals:
                loop.add_signal_handler(number, stopped.set)
        try:
            ready(server.url)
            await stopped.wait()
        finally:
            with contextlib.suppress(NotImplementedError, RuntimeError):
                for number in signals:
                    loop.remove_signal_handler(number)


def run_server(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    model_path: str | Path | None = None,
    ready: Callable[[str], None] = _announce,
) -> None:
    """Run `serve` in an event loop of its own; returns after SIGTERM or Ctrl-C.

    Args:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        model_path: A GGUF file in place of the installed model.
        ready: Called with the base URL once requests are answered.

    Raises:
        ConfigError: See `LocalServer.open`.
    """
    from scaleinfer.backends.local import LocalBackend

    with contextlib.suppress(KeyboardInterrupt):  # one that came while the model was loading
        asyncio.run(serve(LocalBackend(model_path), host=host, port=port, ready=ready))
