"""`DirectWire` (and `AiohttpWire` beside it) against real sockets, on asyncio and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from scaleinfer.backends import _wire_connection, _wire_dial, _wire_pool
from scaleinfer.backends._wire import Failure, WireError, open_wire
from scaleinfer.backends._wire_direct import DirectWire
from scaleinfer.errors import ConfigError
from scaleinfer.testing import Fault, SimulatedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from scaleinfer.backends._wire import Wire, WireResponse

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = 10 << 20


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run everything on both event loops."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(params=["direct", "aiohttp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def wire_to(url: str, kind: str = "direct", **options: Any) -> AsyncIterator[Wire]:
    wire = open_wire(url, kind=kind, **options)
    try:
        yield wire
    finally:
        await wire.aclose()
    held = wire.statistics()
    assert (held.open, held.idle, held.waiting) == (0, 0, 0)


@contextlib.asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """Serve bytes by hand."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(start, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request; return its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length or 0))


def always(response: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(response)

    return handler


def ask(wire: Wire, url: str, prompt: str = "p", timeout: float = 10) -> Any:
    body = orjson.dumps({"messages": [{"role": "user", "content": prompt}]})
    return wire.post(f"{url}/chat/completions", body, JSON, timeout)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - a ledger has no events
        await asyncio.sleep(0.002)


def content(response: WireResponse) -> str:
    return str(orjson.loads(response.body)["choices"][0]["message"]["content"])


async def failure(call: Awaitable[WireResponse]) -> WireError:
    with pytest.raises(WireError) as caught:
        await call
    return caught.value


# How calls go well.


async def test_calls_share_connections(server: SimulatedServer, kind: str) -> None:
    async with wire_to(server.base_url, kind) as wire:
        for _ in range(3):
            answers = await asyncio.gather(*(ask(wire, server.base_url, f"{i}") for i in range(8)))
            assert [content(answer) for answer in answers] == [f"echo: {i}" for i in range(8)]
        held = wire.statistics()
        assert held.open == held.idle == held.connects == 8
        assert held.reused == 16
        assert held.bytes_sent >= sum(len(record.body or b"") for record in server.ledger.requests)
        assert held.bytes_received >= sum(len(answer.body) for answer in answers)


async def test_get(server: SimulatedServer, kind: str) -> None:
    async with wire_to(server.base_url, kind) as wire:
        for _ in range(2):
            response = await wire.get(f"{server.base_url}/models", {}, 10)
            assert orjson.loads(response.body)["data"][0]["id"] == "sim-model"
            assert response.headers["content-type"].startswith("application/json")


async def test_the_last_connection_used_is_used_again(server: SimulatedServer) -> None:
    async with wire_to(server.base_url) as wire:
        await asyncio.gather(*(ask(wire, server.base_url) for _ in range(5)))
        for _ in range(10):
            await ask(wire, server.base_url)
        assert wire.statistics().connects == 5


async def test_more_calls_than_connections(kind: str) -> None:
    async with (
        SimulatedServer(latency=0.01) as server,
        wire_to(server.base_url, kind, limit=4) as wire,
    ):
        calls = [asyncio.create_task(ask(wire, server.base_url, f"{i}")) for i in range(40)]
        await until(lambda: wire.statistics().waiting >= 36)
        answers = await asyncio.gather(*calls)
        assert [content(answer) for answer in answers] == [f"echo: {i}" for i in range(40)]
        assert server.ledger.peak_in_flight == 4
        assert wire.statistics().connects == 4
        assert wire.statistics().waited_s > 0


async def test_waiting_for_a_connection_is_not_part_of_the_timeout() -> None:
    async with (
        SimulatedServer(latency=0.1) as server,
        wire_to(server.base_url, limit=1) as wire,
    ):
        calls = (ask(wire, server.base_url, f"{i}", timeout=0.3) for i in range(6))
        assert len(await asyncio.gather(*calls)) == 6


async def test_a_storm_of_calls_is_no_storm_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialing = most = 0
    dial = _wire_dial.Dialer.dial

    async def counted(self: Any, factory: Any) -> Any:
        nonlocal dialing, most
        dialing += 1
        most = max(most, dialing)
        try:
            return await dial(self, factory)
        finally:
            dialing -= 1

    monkeypatch.setattr(_wire_dial.Dialer, "dial", counted)
    monkeypatch.setattr(_wire_pool, "_DIALS", 16)
    async with SimulatedServer(latency=0.05) as server, wire_to(server.base_url) as wire:
        await asyncio.gather(*(ask(wire, server.base_url, f"{i}") for i in range(200)))
        assert server.ledger.answered == 200
    assert most == 16


async def test_one_name_is_looked_up_once(
    server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = 0
    look_up = _wire_dial.Dialer._look_up

    async def counted(self: Any) -> Any:
        nonlocal lookups
        lookups += 1
        return await look_up(self)

    monkeypatch.setattr(_wire_dial.Dialer, "_look_up", counted)
    url = server.base_url.replace("127.0.0.1", "localhost")
    async with wire_to(url) as wire:
        await asyncio.gather(*(ask(wire, url, f"{i}") for i in range(50)))
        assert wire.statistics().connects == 50
    assert lookups == 1


async def test_large_bodies_both_ways(kind: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            await writer.drain()

    body = bytes(range(256)) * (BIG // 256)
    async with raw_server(handler) as url, wire_to(url, kind) as wire:
        for _ in range(2):
            response = await wire.post(url, body, JSON, 30)
            assert response.body == body
        assert wire.statistics().connects == 1


async def test_a_request_larger_than_what_the_server_takes_at_once() -> None:
    """The body is handed over as the server reads it, not all at once."""
    go_on = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        await reader.readexactly(BIG)
        writer.write(OK)

    async with raw_server(handler) as url, wire_to(url) as wire:
        call = asyncio.create_task(wire.post(url, bytes(BIG), JSON, 30))
        await until(lambda: wire.statistics().open)
        connection = next(iter(next(iter(wire._pools.values())).open))  # type: ignore[attr-defined] # DirectWire
        await until(lambda: connection._paused)
        assert connection._unsent is not None
        go_on.set()
        assert (await call).body == b"ok"


@pytest.mark.parametrize("path", ["uds", "unix"])
async def test_unix_sockets(path: str, tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        writer.close()
        await writer.wait_closed()

    place = tmp_path / "a b.sock"
    server = await asyncio.start_unix_server(serve, place)
    url = f"{path}://{tmp_path}/a%20b.sock:/v1"
    async with server, wire_to(url) as wire:
        response = await wire.get(f"{url}/models", {}, 10)
        assert response.body == b"ok"
        assert seen[0].startswith(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    async with wire_to(f"uds://{tmp_path}/x.sock:/v1") as wire:
        error = await failure(wire.get(f"uds://{tmp_path}/x.sock:/v1", {}, 10))
        assert error.failure is Failure.CONNECT
        assert "x.sock" in str(error)


async def test_connections_send_small_packets_at_once(server: SimulatedServer) -> None:
    async with wire_to(server.base_url) as wire:
        await ask(wire, server.base_url)
        connection = next(iter(next(iter(wire._pools.values())).open))  # type: ignore[attr-defined] # DirectWire
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sockets_notice_a_peer_that_is_gone() -> None:
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 80))
    with _wire_dial._make_socket(address) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_a_changed_header_is_sent(server: SimulatedServer) -> None:
    headers = JSON | {"X-Turn": "1"}
    body = orjson.dumps({"messages": [{"role": "user", "content": "p"}]})
    async with wire_to(server.base_url) as wire:
        for turn in ("1", "2"):
            headers["X-Turn"] = turn
            await wire.post(f"{server.base_url}/chat/completions", body, headers, 10)
    assert [record.headers["x-turn"] for record in server.ledger.requests] == ["1", "2"]


async def test_a_header_that_cannot_be_sent(server: SimulatedServer) -> None:
    async with wire_to(server.base_url) as wire:
        with pytest.raises(ConfigError, match="X-A"):
            await wire.post(server.base_url, b"", {"X-A": "1\r\nX-B: 2"}, 10)
        assert wire.statistics().connects == 0


# How calls go wrong.

FAULTS: dict[str, tuple[Fault, Failure | int]] = {
    "status": (Fault.status(503), 503),
    "drop": (Fault.drop(), Failure.BROKEN),
    "reset": (Fault.reset(), Failure.BROKEN),
    "stall": (Fault.stall(), Failure.TIMEOUT),
    "stall in the head": (Fault.stall(at=0), Failure.TIMEOUT),
    "stall in the body": (Fault.stall(at=0.5), Failure.TIMEOUT),
    "truncate": (Fault.truncate(), Failure.BROKEN),
    "truncate at once": (Fault.truncate(at=0), Failure.BROKEN),
    "malformed": (Fault.malformed(), 200),
    "html": (Fault.html(), 200),
    "wrong content type": (Fault.wrong_content_type(), 200),
    "slow drip": (Fault.slow_drip(size=64, seconds=0.001), 200),
    "slower drip": (Fault.slow_drip(size=1, seconds=0.05), Failure.TIMEOUT),
    "empty choices": (Fault.empty_choices(), 200),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_faults(name: str, kind: str) -> None:
    fault, outcome = FAULTS[name]
    async with SimulatedServer(faults=[fault]) as server, wire_to(server.base_url, kind) as wire:
        call = ask(wire, server.base_url, timeout=0.2 if outcome is Failure.TIMEOUT else 10)
        if isinstance(outcome, Failure):
            assert (await failure(call)).failure is outcome
        else:
            assert (await call).status == outcome


@pytest.mark.parametrize("on", ["next_request", "response"])
async def test_connections_closed_under_the_next_request(on: Any) -> None:
    faults = [Fault.keepalive_close(on=on, rate=0.5)]
    async with SimulatedServer(faults=faults) as server, wire_to(server.base_url) as wire:
        for start in range(0, 60, 6):
            numbers = range(start, start + 6)
            await asyncio.gather(*(ask(wire, server.base_url, f"{i}") for i in numbers))
        assert server.ledger.answered == 60


async def test_a_call_is_sent_again_once_and_only_over_a_connection_that_served() -> None:
    calls = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        first = True
        while True:
            await read_request(reader)
            calls += 1
            if not first or calls > 1:
                return
            first = False
            writer.write(OK)

    async with raw_server(handler) as url, wire_to(url) as wire:
        await wire.post(url, b"", JSON, 10)
        assert (await failure(wire.post(url, b"", JSON, 10))).unanswered
        assert calls == 3  # lost over the old connection, lost over a new one
        assert (await failure(wire.post(url, b"", JSON, 10))).unanswered
        assert calls == 4  # a new connection is no excuse


async def test_a_call_of_which_a_byte_was_answered_is_not_sent_again() -> None:
    calls = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        for answer in (OK, b"H"):
            await read_request(reader)
            calls += 1
            writer.write(answer)
            await writer.drain()

    async with raw_server(handler) as url, wire_to(url) as wire:
        await wire.post(url, b"", JSON, 10)
        error = await failure(wire.post(url, b"", JSON, 10))
        assert (error.failure, error.unanswered, calls) == (Failure.BROKEN, False, 2)


@pytest.mark.parametrize("extra", [b"garbage", OK])
async def test_bytes_nobody_asked_for(extra: bytes) -> None:
    async with raw_server(always(OK + extra)) as url, wire_to(url) as wire:
        for _ in range(3):
            assert (await wire.post(url, b"", JSON, 10)).body == b"ok"
        assert wire.statistics().connects == 3


async def test_bytes_that_come_between_calls() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with raw_server(handler) as url, wire_to(url) as wire:
        assert (await wire.post(url, b"", JSON, 10)).body == b"ok"
        await until(lambda: wire.statistics().open == 0)
        assert (await wire.post(url, b"", JSON, 10)).body == b"ok"


async def test_an_answer_before_the_request_is_sent() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(30)

    async with raw_server(handler) as url, wire_to(url) as wire:
        assert (await wire.post(url, bytes(BIG), JSON, 20)).status == 413
        await until(lambda: wire.statistics().open == 0)  # half a request is still on it


async def test_what_is_not_http(kind: str) -> None:
    async with (
        raw_server(always(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")) as url,
        wire_to(url, kind) as wire,
    ):
        assert (await failure(wire.post(url, b"", JSON, 10))).failure is Failure.BROKEN


async def test_an_endless_head() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-A: 1\r\n" * 1000)
            await writer.drain()

    async with raw_server(handler) as url, wire_to(url) as wire:
        error = await failure(wire.post(url, b"", JSON, 30))
        assert error.failure is Failure.BROKEN
        assert "head" in str(error)


async def test_connection_close_is_honoured(kind: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")

    async with raw_server(handler) as url, wire_to(url, kind) as wire:
        for _ in range(3):
            assert (await wire.post(url, b"", JSON, 10)).body == b"ok"
        assert wire.statistics().connects == 3


async def test_nobody_listens(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with wire_to(url, kind) as wire:
            calls = [failure(wire.post(url, b"", JSON, 10)) for _ in range(20)]
            for error in await asyncio.gather(*calls):
                assert error.failure is Failure.CONNECT
                assert str(error) == "Connection refused"


async def test_connections_that_are_closed_as_soon_as_made() -> None:
    """So does a balancer, or an SSH tunnel, with no server behind it."""
    made = 0

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        writer.transport.abort()

    async with raw_server(handler) as url, wire_to(url) as wire:
        calls = [failure(wire.post(url, b"", JSON, 10)) for _ in range(20)]
        for error in await asyncio.gather(*calls):
            assert error.failure is Failure.BROKEN
            assert error.unanswered
        assert made <= 20


async def test_no_such_host(kind: str) -> None:
    async with wire_to("http://nowhere.invalid/v1", kind) as wire:
        error = await failure(wire.get("http://nowhere.invalid/v1/models", {}, 10))
        assert error.failure is Failure.CONNECT
        assert kind == "aiohttp" or "no such host: nowhere.invalid" in str(error)


async def test_a_connection_that_is_not_made_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any, factory: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(_wire_dial.Dialer, "_dial", never)
    monkeypatch.setattr(_wire_dial, "CONNECT_TIMEOUT", 0.02)
    async with wire_to("http://127.0.0.1:9") as wire:
        error = await failure(wire.post("http://127.0.0.1:9", b"", JSON, 10))
        assert error.failure is Failure.CONNECT
        assert "no connection within" in str(error)


# How calls end early.


async def test_a_cancelled_call_is_given_up_by_the_server(kind: str) -> None:
    async with SimulatedServer(latency=30) as server, wire_to(server.base_url, kind) as wire:
        calls = [asyncio.create_task(ask(wire, server.base_url, f"{i}")) for i in range(5)]
        await until(lambda: server.ledger.in_flight == 5)
        for call in calls[:3]:
            call.cancel()
        await until(lambda: server.ledger.aborted == 3)
        assert server.ledger.in_flight == 2
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: server.ledger.aborted == 5)
        assert wire.statistics().open == 0


async def test_a_call_cancelled_in_the_middle_of_an_answer(kind: str) -> None:
    faults = [Fault.stall(at=0.5)]
    async with SimulatedServer(faults=faults) as server, wire_to(server.base_url, kind) as wire:
        call = asyncio.create_task(ask(wire, server.base_url))
        await until(lambda: server.ledger.in_flight == 1)
        await asyncio.sleep(0.02)
        call.cancel()
        await until(lambda: server.ledger.aborted == 1)


async def test_a_call_that_took_too_long_is_given_up_by_the_server(kind: str) -> None:
    async with SimulatedServer(latency=30) as server, wire_to(server.base_url, kind) as wire:
        error = await failure(ask(wire, server.base_url, timeout=0.1))
        assert (error.failure, str(error)) == (Failure.TIMEOUT, "no answer within 0.1 s")
        await until(lambda: server.ledger.aborted == 1)


async def test_a_call_cancelled_while_it_waits_for_a_connection() -> None:
    async with SimulatedServer(latency=0.05) as server, wire_to(server.base_url, limit=1) as wire:
        first = asyncio.create_task(ask(wire, server.base_url, "first"))
        await until(lambda: server.ledger.in_flight == 1)
        waiting = [asyncio.create_task(ask(wire, server.base_url, f"{i}")) for i in range(3)]
        await until(lambda: wire.statistics().waiting == 3)
        waiting[0].cancel()
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert server.ledger.counts() == {"first": 1, "1": 1, "2": 1}


async def test_calls_cancelled_at_any_moment_lose_no_connection() -> None:
    async with (
        SimulatedServer(latency=(0.002, 0.002)) as server,
        wire_to(server.base_url, limit=3) as wire,
    ):
        for turn in range(60):
            calls = [
                asyncio.create_task(ask(wire, server.base_url, f"{turn} {i}")) for i in range(6)
            ]
            await asyncio.sleep(turn % 10 / 2000)
            for call in calls[turn % 3 :: 2]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        held = wire.statistics()
        assert held.waiting == 0
        assert held.open <= 3
        await asyncio.gather(*(ask(wire, server.base_url, f"last {i}") for i in range(9)))


async def test_closing_ends_calls_in_flight() -> None:
    async with SimulatedServer(latency=30) as server:
        async with wire_to(server.base_url, limit=3) as wire:
            calls = [asyncio.create_task(ask(wire, server.base_url, f"{i}")) for i in range(5)]
            await until(lambda: server.ledger.in_flight == 3)
        for error in await asyncio.gather(*map(failure, calls)):
            assert error.failure is Failure.BROKEN
            assert "closed" in str(error)
        await until(lambda: server.ledger.aborted == 3)


async def test_closing_while_connections_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Any, factory: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(_wire_dial.Dialer, "_dial", never)
    wire = open_wire("http://127.0.0.1:9")
    call = asyncio.create_task(wire.post("http://127.0.0.1:9", b"", JSON, 10))
    await until(lambda: wire.statistics().waiting == 1)
    await wire.aclose()
    assert "closed" in str(await failure(call))
    assert "closed" in str(await failure(wire.post("http://127.0.0.1:9", b"", JSON, 10)))


async def test_out_of_files_while_connections_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    dial = _wire_dial.Dialer._dial
    made = 0

    async def few(self: Any, factory: Any) -> Any:
        nonlocal made
        if made == 2:
            raise OSError(24, "Too many open files")
        made += 1
        return await dial(self, factory)

    monkeypatch.setattr(_wire_dial.Dialer, "_dial", few)
    async with SimulatedServer(latency=0.01) as server, wire_to(server.base_url) as wire:
        await asyncio.gather(*(ask(wire, server.base_url, f"{i}") for i in range(20)))
        assert server.ledger.answered == 20
        assert wire.statistics().connects == 2


async def test_idle_connections_are_not_trusted_for_ever(
    server: SimulatedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wire_to(server.base_url) as wire:
        await ask(wire, server.base_url)
        monkeypatch.setattr(_wire_pool, "_IDLE_SECONDS", 0.0)
        await ask(wire, server.base_url)
        assert wire.statistics().connects == 2


def test_two_loops_in_one_process() -> None:
    with SimulatedServer(latency=0.02).in_thread() as server:

        async def run() -> None:
            async with wire_to(server.base_url) as wire:
                await asyncio.gather(*(ask(wire, server.base_url) for _ in range(5)))

        async def both() -> None:
            await asyncio.gather(asyncio.to_thread(asyncio.run, run()), run())

        asyncio.run(both())
        assert server.ledger.answered == 10


async def test_kinds() -> None:
    with pytest.raises(ConfigError, match="Known: auto, direct, aiohttp, http2"):
        open_wire("http://h.example/v1", kind="carrier pigeon")
    with pytest.raises(ConfigError, match="no http"):
        open_wire("ftp://h.example/v1")
    wire = open_wire("http://h.example/v1")
    assert isinstance(wire, DirectWire)
    await wire.aclose()


def test_words_for_broken_connections() -> None:
    assert _wire_connection.broken_by(ConnectionResetError(104, "x")) == "Connection reset by peer"
    assert _wire_connection.broken_by(EOFError()) == "EOFError"
