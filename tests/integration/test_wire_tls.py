"""TLS, HTTP/2 and proxies, against servers with certificates of an authority of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.settings import SettingCodes, Settings

from scaleinfer.backends._wire import AiohttpWire, Failure, WireError, open_wire
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from scaleinfer.backends._wire import Wire, WireResponse
    from scaleinfer.testing import SimulatedServer

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
TRUST = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
BIG = 3 << 20


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run everything on both event loops."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TRUST, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The file with the authority's certificate."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def server_context(authority: trustme.CA, *names: str, alpn: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


class Http2Server(asyncio.Protocol):
    """Answers each request with its body, but for some paths."""

    made: list[Http2Server]

    def __init__(self, made: list[Http2Server], streams: int) -> None:
        made.append(self)
        self.most = self.open = 0
        self.resets: list[int] = []
        self.requests: list[dict[str, str]] = []
        self._streams = streams
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._paths: dict[int, str] = {}
        self._bodies: dict[int, bytearray] = {}
        self._unsent: dict[int, bytes] = {}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._h2.local_settings = Settings(
            client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: self._streams}
        )
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                headers: Any = dict(event.headers)
                self.requests.append(headers)
                self._paths[event.stream_id] = headers[":path"]
                self._bodies[event.stream_id] = bytearray()
                self.open += 1
                self.most = max(self.most, self.open)
            elif isinstance(event, DataReceived):
                self._bodies[event.stream_id] += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self._asked(event.stream_id)
            elif isinstance(event, StreamReset):
                self.open -= 1
                self.resets.append(int(event.error_code))
            elif isinstance(event, WindowUpdated):
                for number in tuple(self._unsent):
                    self._send(number)
        self._flush()

    def _asked(self, number: int) -> None:
        path = self._paths[number]
        if path == "/slow":
            return
        if path == "/bye" and number == 1:
            self._h2.close_connection(last_stream_id=0)
        elif path == "/refuse" and number == 1:
            self._h2.reset_stream(number, 7)
        elif path == "/break":
            self._transport.abort()
        elif path == "/garbage":
            self._transport.write(bytes(9))  # data for no stream
        else:
            self._h2.send_headers(number, [(":status", "200"), ("x-path", path)])
            self._unsent[number] = bytes(self._bodies[number])
            # Some at a time are answered, so that calls overlap.
            asyncio.get_running_loop().call_later(0.005, self._send, number)

    def _send(self, number: int) -> None:
        if number not in self._unsent:
            return
        body = self._unsent[number]
        while True:
            window = self._h2.local_flow_control_window(number)
            size = min(window, self._h2.max_outbound_frame_size)
            if size <= 0 and body:
                self._unsent[number] = body
                break
            piece, body = body[:size], body[size:]
            self._h2.send_data(number, piece, end_stream=not body)
            if not body:
                del self._unsent[number]
                self.open -= 1
                break
        self._flush()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)


@contextlib.asynccontextmanager
async def tls_server(
    factory: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext
) -> AsyncIterator[int]:
    transports: list[asyncio.BaseTransport] = []

    def make() -> asyncio.BaseProtocol:
        protocol = factory()
        made = protocol.connection_made

        def note(transport: asyncio.BaseTransport) -> None:
            transports.append(transport)
            made(transport)

        protocol.connection_made = note  # type: ignore[method-assign] # to close them later
        return protocol

    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for transport in transports:
            if not transport.is_closing():
                transport.abort()  # type: ignore[attr-defined] # a stream's transport
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def http2_server(
    authority: trustme.CA, streams: int = 100
) -> AsyncIterator[tuple[str, list[Http2Server]]]:
    made: list[Http2Server] = []
    context = server_context(authority, alpn="h2")
    async with tls_server(lambda: Http2Server(made, streams), context) as port:
        yield f"https://localhost:{port}", made


class Http1Server(asyncio.Protocol):
    """Says `ok` to every request that comes in one piece."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@contextlib.asynccontextmanager
async def wire_to(url: str, kind: str, **options: Any) -> AsyncIterator[Wire]:
    wire = open_wire(url, kind=kind, **options)
    try:
        yield wire
    finally:
        await wire.aclose()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - a server of protocols has no events
        await asyncio.sleep(0.002)


async def failure(call: Awaitable[WireResponse]) -> WireError:
    with pytest.raises(WireError) as caught:
        await call
    return caught.value


# TLS.


@pytest.mark.parametrize("kind", ["direct", "aiohttp", "http2"])
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
async def test_an_authority_of_ones_own(
    kind: str, name: str, authority: trustme.CA, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, bundle)
    async with tls_server(Http1Server, server_context(authority)) as port:
        url = f"https://localhost:{port}/v1"
        async with wire_to(url, kind) as wire:
            for _ in range(3):
                assert (await wire.post(url, b"{}", JSON, 10)).body == b"ok"
            assert (await wire.get(url, {}, 10)).body == b"ok"
            assert wire.statistics().open == 1


@pytest.mark.parametrize("kind", ["direct", "aiohttp", "http2"])
async def test_a_certificate_that_does_not_verify(
    kind: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    async with tls_server(Http1Server, server_context(authority)) as port:
        async with wire_to(f"https://localhost:{port}", kind) as wire:
            error = await failure(wire.post(f"https://localhost:{port}", b"{}", JSON, 10))
        assert error.failure is Failure.TLS
        assert "unable to get local issuer certificate" in str(error)
        assert f"SSL_CERT_FILE={other}" in str(error)


@pytest.mark.parametrize("kind", ["direct", "http2"])
async def test_a_certificate_of_another_host(
    kind: str, authority: trustme.CA, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    async with tls_server(Http1Server, server_context(authority, "elsewhere.example")) as port:
        async with wire_to(f"https://localhost:{port}", kind) as wire:
            error = await failure(wire.post(f"https://localhost:{port}", b"{}", JSON, 10))
        assert error.failure is Failure.TLS
        assert "localhost" in str(error)


async def test_https_to_a_server_without_tls(server: SimulatedServer) -> None:
    url = server.base_url.replace("http:", "https:")
    async with wire_to(url, "direct") as wire:
        error = await failure(wire.post(url, b"{}", JSON, 10))
        assert error.failure in {Failure.TLS, Failure.CONNECT}
        assert "https" in str(error) or "TLS" in str(error)


async def test_http_to_a_server_with_tls(authority: trustme.CA) -> None:
    async with tls_server(Http1Server, server_context(authority)) as port:
        async with wire_to(f"http://localhost:{port}", "direct") as wire:
            error = await failure(wire.post(f"http://localhost:{port}", b"{}", JSON, 10))
        assert error.failure is Failure.BROKEN


@pytest.mark.parametrize("name", TRUST)
async def test_a_bundle_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/nowhere/at-all.pem")
    with pytest.raises(ConfigError, match=name):
        open_wire("https://h.example/v1")


async def test_large_bodies_over_tls(
    authority: trustme.CA, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport, self._got = transport, 0

        def data_received(self, data: bytes) -> None:
            self._got += len(data)
            if self._got > BIG:
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
                self._transport.write(bytes(BIG))

    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    async with tls_server(Echo, server_context(authority)) as port:
        url = f"https://localhost:{port}"
        async with wire_to(url, "direct") as wire:
            assert len((await wire.post(url, bytes(BIG), JSON, 30)).body) == BIG


# HTTP/2.


@pytest.fixture
def trusting(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", bundle)


@pytest.mark.usefixtures("trusting")
async def test_many_calls_share_one_connection(authority: trustme.CA) -> None:
    async with http2_server(authority) as (url, made), wire_to(url, "http2") as wire:
        numbers = range(50)
        answers = await asyncio.gather(
            *(wire.post(f"{url}/v1", b"%d" % i, JSON, 10) for i in numbers)
        )
        assert [answer.body for answer in answers] == [b"%d" % i for i in numbers]
        assert {answer.headers["X-Path"] for answer in answers} == {"/v1"}
        assert (await wire.get(f"{url}/models?a=b", {"X-A": "1"}, 10)).body == b""
        assert len(made) == wire.statistics().connects == 1
        assert made[0].requests[0][":authority"] == url.removeprefix("https://")
        assert made[0].requests[0]["content-type"] == "application/json"
        assert made[0].requests[-1][":path"] == "/models?a=b"
        assert made[0].requests[-1]["x-a"] == "1"


@pytest.mark.usefixtures("trusting")
async def test_more_calls_than_streams(authority: trustme.CA) -> None:
    async with http2_server(authority, streams=4) as (url, made):
        async with wire_to(url, "http2", limit=3) as wire:
            await wire.get(url, {}, 10)  # its settings are known from now on
            calls = (wire.post(url, b"x", JSON, 10) for _ in range(60))
            assert len(await asyncio.gather(*calls)) == 60
        assert max(server.most for server in made) <= 4
        assert len(made) <= 3


@pytest.mark.usefixtures("trusting")
async def test_a_cancelled_call_resets_its_stream(authority: trustme.CA) -> None:
    async with http2_server(authority) as (url, made), wire_to(url, "http2") as wire:
        calls = [asyncio.create_task(wire.post(f"{url}/slow", b"x", JSON, 30)) for _ in range(3)]
        await until(lambda: made and made[0].open == 3)
        calls[0].cancel()
        await until(lambda: made[0].resets)
        assert made[0].resets == [8]  # CANCEL
        error = await failure(wire.post(f"{url}/slow", b"x", JSON, 0.05))
        assert error.failure is Failure.TIMEOUT
        await until(lambda: len(made[0].resets) == 2)
        assert (await wire.post(url, b"still there", JSON, 10)).body == b"still there"
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert len(made) == 1


@pytest.mark.usefixtures("trusting")
async def test_bodies_larger_than_a_window(authority: trustme.CA) -> None:
    body = bytes(range(256)) * (BIG // 256)
    async with http2_server(authority) as (url, _), wire_to(url, "http2") as wire:
        answers = await asyncio.gather(*(wire.post(url, body, JSON, 30) for _ in range(3)))
        assert all(answer.body == body for answer in answers)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(("path", "connections"), [("/bye", 2), ("/refuse", 1)])
async def test_a_call_the_server_did_not_look_at_is_sent_again(
    path: str, connections: int, authority: trustme.CA
) -> None:
    async with http2_server(authority) as (url, made), wire_to(url, "http2") as wire:
        if path == "/bye":
            # Each connection says goodbye to its first call: the second is answered by no one.
            error = await failure(wire.post(f"{url}{path}", b"x", JSON, 10))
            assert error.unanswered
            assert "GOAWAY" in str(error)
        else:
            assert (await wire.post(f"{url}{path}", b"x", JSON, 10)).body == b"x"
        assert len(made) == connections
        assert (await wire.post(url, b"y", JSON, 10)).body == b"y"


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("path", ["/break", "/garbage"])
async def test_broken_connections(path: str, authority: trustme.CA) -> None:
    async with http2_server(authority) as (url, _), wire_to(url, "http2") as wire:
        error = await failure(wire.post(f"{url}{path}", b"x", JSON, 10))
        assert error.failure is Failure.BROKEN
        assert (await wire.post(url, b"y", JSON, 10)).body == b"y"


@pytest.mark.usefixtures("trusting")
async def test_closing_ends_streams(authority: trustme.CA) -> None:
    async with http2_server(authority) as (url, made):
        async with wire_to(url, "http2") as wire:
            call = asyncio.create_task(wire.post(f"{url}/slow", b"x", JSON, 30))
            await until(lambda: made and made[0].open == 1)
        assert "closed" in str(await failure(call))


async def test_http2_falls_back_where_there_is_no_tls(server: SimulatedServer) -> None:
    async with wire_to(server.base_url, "http2") as wire:
        assert (await wire.get(f"{server.base_url}/models", {}, 10)).status == 200


async def test_http2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.endswith("_wire_http2_connection")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "h2"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"scaleinfer\[http2\]"):
        open_wire("https://h.example/v1", kind="http2")


@pytest.mark.usefixtures("trusting")
async def test_a_server_that_only_says_it_speaks_http2(authority: trustme.CA) -> None:
    class Liar(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.close()

    async with tls_server(Liar, server_context(authority, alpn="h2")) as port:
        url = f"https://localhost:{port}"
        async with wire_to(url, "http2") as wire:
            error = await failure(wire.get(url, {}, 10))
            assert error.failure is Failure.BROKEN
            assert "HTTP/2" in str(error)


# Proxies.


async def test_a_proxy_is_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://user:pass@127.0.0.1:{port}")
    async with server, wire_to("http://h.example/v1", "auto") as wire:
        assert isinstance(wire, AiohttpWire)
        response = await wire.get("http://h.example/v1/models", {}, 10)
        assert response.body == b"ok"
    assert seen[0].startswith(b"GET http://h.example/v1/models HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n" in seen[0]


async def test_a_proxy_is_not_gone_through_unasked(
    server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    async with wire_to(server.base_url, "auto") as wire:
        assert (await wire.get(f"{server.base_url}/models", {}, 10)).status == 200
    with pytest.raises(ConfigError, match="proxies"):
        open_wire("https://h.example/v1", kind="http2")
