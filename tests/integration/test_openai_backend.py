"""The adapters to OpenAI-compatible servers over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai
import pytest
import trustme

from scaleinfer import parallel_map
from scaleinfer.backends import OpenAIBackend, SDKBackend
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Transient,
)
from scaleinfer.requests import Request, Sampling
from scaleinfer.results import Completion, Load, RateState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scaleinfer.backends import Backend
    from scaleinfer.testing import SimulatedServer

pytestmark = pytest.mark.anyio

CHAT = [{"role": "user", "content": "Is it?"}]
ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "model": "m"}
REFUSED = {"error": {"message": "come back", "code": "rate_limit_exceeded"}}
WIRES = ["direct", "aiohttp"]


@dataclass
class Seen:
    """One request as the raw server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class RawServer:
    """Says one thing to everyone; `None` for a status is silence until the client leaves."""

    status: int | None = 200
    body: Any = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.left.set()
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.seen.append(Seen(method, path, headers, json.loads(body) if body else None))
        self.asked.set()
        if self.status is None:
            await reader.read()
            return
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        fields = {"content-type": "application/json", "content-length": len(data)} | self.headers
        text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {self.status} X\r\n{text}\r\n".encode() + data)

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()


@asynccontextmanager
async def raw_server(
    *, context: ssl.SSLContext | None = None, path: Path | None = None, **says: Any
) -> AsyncIterator[RawServer]:
    server = RawServer(**says)
    if path is not None:
        listener = await asyncio.start_unix_server(server.serve, path)
    else:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
        server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        server.close()
        await listener.wait_closed()


def azure(server: RawServer, **options: Any) -> openai.AsyncAzureOpenAI:
    options = {"api_key": "azure-secret-key"} | options
    return openai.AsyncAzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{server.port}", api_version="2024-10-21", **options
    )


async def failed(backend: Backend, **options: Any) -> EndpointError:
    async with backend:
        with pytest.raises(EndpointError) as caught:
            await backend.complete(Request(CHAT), **options)
    return caught.value


# A configured client, and Azure.


async def test_a_clients_configuration_reaches_the_server(server: SimulatedServer) -> None:
    client = openai.AsyncOpenAI(base_url=server.base_url, api_key="a-key", organization="org")
    async with OpenAIBackend.from_client(client, model="sim-model") as backend:
        assert isinstance(backend, OpenAIBackend)
        completion = await backend.complete(Request(CHAT))
    assert completion.text
    assert len(server.ledger.requests) == 1


async def test_a_map_over_a_client(server: SimulatedServer) -> None:
    client = openai.AsyncOpenAI(base_url=server.base_url, api_key="a-key")
    backend: Any = client
    results = await parallel_map(
        range(50), "item {item}", backend=backend, model="sim-model", progress=False
    )
    assert all(result.ok for result in results)
    assert len(server.ledger.requests) == 50


async def test_azure_is_asked_as_the_sdk_asks_it() -> None:
    report = {
        "endpoint-load-metrics": "TEXT num_requests_waiting=1",
        "x-ratelimit-remaining-tokens": "7",
    }
    async with (
        raw_server(headers=report) as server,
        OpenAIBackend.from_client(azure(server), model="my-deployment") as backend,
    ):
        assert isinstance(backend, SDKBackend)
        sampling = Sampling(temperature=0.5, n=1, extra={"top_k": 3})
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        completion = await backend.complete(Request(CHAT, sampling=sampling, schema=schema))
        server.body = {"choices": [{"text": "upon a time", "finish_reason": "stop"}]}
        plain = await backend.complete(Request(prompt="Once"))
    assert completion.text == "yes"
    assert completion.load == Load(waiting=1)
    assert completion.rate == RateState(remaining_tokens=7)
    assert plain.text == "upon a time"
    chat, text = server.seen
    base = "/openai/deployments/my-deployment"
    assert chat.path == f"{base}/chat/completions?api-version=2024-10-21"
    assert text.path == f"{base}/completions?api-version=2024-10-21"
    assert chat.headers["api-key"] == "azure-secret-key"
    assert chat.headers["endpoint-load-metrics-format"] == "JSON"
    assert chat.body.pop("response_format")["json_schema"]["schema"] == schema
    assert chat.body == {
        "model": "my-deployment",
        "messages": CHAT,
        "temperature": 0.5,
        "n": 1,
        "top_k": 3,
    }


async def test_azure_tokens_are_asked_for_and_stay_out_of_errors() -> None:
    tokens = iter(["first-token", "second-token"])
    async with raw_server() as server:
        client = azure(server, api_key=None, azure_ad_token_provider=lambda: next(tokens))
        async with OpenAIBackend.from_client(client, model="d") as backend:
            await backend.complete(Request(CHAT))
            server.status, server.body = 401, {"error": {"message": "second-token is no good"}}
            with pytest.raises(AuthError) as caught:
                await backend.complete(Request(CHAT))
    sent = [one.headers["authorization"] for one in server.seen]
    assert sent == ["Bearer first-token", "Bearer second-token"]
    assert "second-token" not in str(caught.value) + caught.value.body
    assert caught.value.fatal


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "bad"}}, Permanent),
        (404, {"error": {"message": "no such deployment"}}, Permanent),
        (429, REFUSED, RateLimited),
        (500, b"", Transient),
        (503, b"", Overloaded),
        (200, b"<html><title>Sign in</title></html>", Transient),
        (200, b"{}", Transient),
    ],
)
async def test_errors_of_the_sdk_are_our_errors(
    status: int, body: Any, kind: type[EndpointError]
) -> None:
    headers = {"retry-after": "7", "x-ratelimit-remaining-requests": "0"}
    async with raw_server(status=status, body=body, headers=headers) as server:
        error = await failed(SDKBackend(azure(server), model="d"))
    assert type(error) is kind
    assert error.status == status
    assert len(server.seen) == 1, "the SDK's own retries are to be off"
    if status != 200:
        assert error.retry_after == 7.0
        assert error.rate == RateState(None, 0)


async def test_the_sdk_waits_no_longer_than_told() -> None:
    async with raw_server(status=None) as server:
        error = await failed(SDKBackend(azure(server), model="d"), timeout=0.05)
    assert isinstance(error, Transient)
    assert "no answer within 0.05 s" in error.message
    assert len(server.seen) == 1


async def test_a_cancelled_call_is_closed_at_the_server_too() -> None:
    async with (
        raw_server(status=None) as server,
        SDKBackend(azure(server), model="d") as backend,
    ):
        call = asyncio.create_task(backend.complete(Request(CHAT)))
        await asyncio.wait_for(server.asked.wait(), 5)
        assert not server.left.is_set()
        call.cancel()
        await asyncio.wait_for(server.left.wait(), 5)
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_client_with_its_own_transport_is_asked_and_stays_open() -> None:
    async with raw_server(body={"data": [{"id": "only"}]}) as server:
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=77)
        transport = openai.DefaultAsyncHttpxClient(limits=limits, headers={"X-Own": "yes"})
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="a-key", http_client=transport
        )
        async with client, OpenAIBackend.from_client(client) as backend:
            assert backend.model == "only"
            assert backend.most_in_flight == 77
            status = await backend.check()
            assert status.ok
            assert status.models == ("only",)
            server.body = ANSWER
            assert (await backend.complete(Request(CHAT))).text == "yes"
            await backend.aclose()
            assert not transport.is_closed
    assert [one.headers["x-own"] for one in server.seen] == ["yes"] * 3


async def test_a_schema_that_azure_refuses_is_told_in_words() -> None:
    refusal = {"error": {"message": "response_format json_schema is not supported"}}
    schema = {"type": "object", "properties": {}}
    async with (
        raw_server(status=400, body=refusal) as server,
        SDKBackend(azure(server), model="d") as backend,
    ):
        with pytest.raises(Permanent):
            await backend.complete(Request(CHAT, schema=schema))
    assert not backend.json_schema
    asked, told = (one.body for one in server.seen)
    assert "response_format" in asked
    assert "response_format" not in told
    assert json.dumps(schema) in told["messages"][0]["content"]


# Packing.


async def test_prompts_packed_for_the_simulated_server(server: SimulatedServer) -> None:
    requests = [Request(prompt=f"item {i}", sampling=Sampling(max_tokens=8)) for i in range(10)]
    async with OpenAIBackend(server.base_url, model="sim-model", packing=4) as backend:
        outcomes = await backend.complete_many(requests)
        alone = await asyncio.gather(*(backend.complete(request) for request in requests))
    assert len(server.ledger.requests) == 3 + 10
    together = [one for one in outcomes if isinstance(one, Completion)]
    for request, one, other in zip(requests, together, alone, strict=True):
        assert one.text.endswith(str(request.prompt))
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.usage.completion_tokens > 0
    assert sum(one.usage.requests for one in together) == 3


# What cannot be reached, or is no inference server.


@pytest.mark.parametrize("wire", WIRES)
async def test_an_endpoint_that_is_not_there(wire: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        error = await failed(OpenAIBackend(url, model="m", wire=wire))
        sdk = await failed(SDKBackend(openai.AsyncOpenAI(base_url=url, api_key="k"), model="m"))
        status = await OpenAIBackend(url, model="m", wire=wire).check()
    assert error.endpoint == url
    for said in (str(error), str(sdk), status.detail):
        assert f"cannot connect to {url}" in said
        assert "base_url" in said
    assert "refused" in error.message
    assert [error.reached, sdk.reached, status.ok] == [False] * 3


@pytest.mark.parametrize("wire", WIRES)
async def test_a_certificate_that_does_not_verify(
    wire: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with raw_server(context=context) as server:
        url = f"https://127.0.0.1:{server.port}/v1"
        error = await failed(OpenAIBackend(url, model="m", wire=wire))
        assert type(error) is Permanent
        assert error.fatal
        assert f"{url} has a certificate that is not trusted" in error.message
        assert "SSL_CERT_FILE" in error.hint
        client = openai.AsyncOpenAI(base_url=url, api_key="k")
        sdk = await failed(SDKBackend(client, model="m"))
        assert type(sdk) is Permanent
        assert "SSL_CERT_FILE" in sdk.hint
        # What the hint says helps.
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with OpenAIBackend(url, model="m", wire=wire) as backend:
            assert (await backend.complete(Request(CHAT))).text == "yes"


@pytest.mark.parametrize("wire", WIRES)
async def test_a_redirect_is_not_followed_and_named(wire: Any) -> None:
    headers = {"location": "https://elsewhere.test/v1/chat/completions"}
    async with raw_server(status=308, body=b"", headers=headers) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        error = await failed(OpenAIBackend(url, model="m", wire=wire))
    assert f"{url} redirects to https://elsewhere.test/v1/chat/completions" in error.message
    assert "base_url" in error.hint
    assert error.fatal


LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Campus sign-in</title></head></html>"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (200, {}, "a web page titled 'Campus sign-in'"),
        (302, {"location": "https://sso.campus.test/login?state=CANARY"}, "is a login page"),
        (407, {"proxy-authenticate": "Basic"}, "HTTPS_PROXY"),
        (403, {}, "a web page titled 'Campus sign-in'"),
    ],
)
async def test_a_proxys_login_page(
    wire: Any, status: int, headers: dict[str, str], said: str
) -> None:
    page = {"content-type": "text/html", **headers}
    async with raw_server(status=status, body=LOGIN_PAGE, headers=page) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        error = await failed(OpenAIBackend(url, model="m", wire=wire))
    assert said in str(error)
    assert url in str(error)
    assert "CANARY" not in str(error)


async def test_a_socket_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "llm.sock"
    async with raw_server(path=path, body={"data": [{"id": "only"}]}) as server:
        backend = OpenAIBackend(f"uds://{path}:/v1")
        async with backend:
            server.body = ANSWER
            assert (await backend.complete(Request(CHAT))).text == "yes"
        server.body = {"data": [{"id": "only"}]}
        assert (await backend.check()).ok
    assert [one.path for one in server.seen] == ["/v1/models", "/v1/chat/completions", "/v1/models"]
    error = await failed(OpenAIBackend(f"uds://{tmp_path}/none.sock:/v1", model="m"))
    assert f"cannot connect to uds://{tmp_path}/none.sock:/v1" in error.message


async def test_faults_of_the_simulated_server_through_the_sdk(server: SimulatedServer) -> None:
    client = openai.AsyncOpenAI(base_url=server.base_url, api_key="k")
    async with SDKBackend(client, model="sim-model") as backend:
        assert (await backend.complete(Request(CHAT))).text
        with pytest.raises(Permanent, match="none-such"):
            await backend.complete(Request(CHAT, model="none-such"))
