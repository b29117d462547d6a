"""`Http2Wire`: many calls on few connections, for gateways that limit connections."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from scaleinfer.backends._wire_base import (
    CONNECT_TIMEOUT,
    STALE_WITHIN,
    Failure,
    WireError,
    WireStatistics,
)
from scaleinfer.backends._wire_deadlines import Deadlines
from scaleinfer.backends._wire_descriptors import max_connections
from scaleinfer.backends._wire_dial import Dialer
from scaleinfer.backends._wire_direct import DirectWire
from scaleinfer.backends._wire_target import header_fields, parse_url
from scaleinfer.backends._wire_trust import verifying_context
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from scaleinfer.backends._wire_base import OnBody, WireResponse
    from scaleinfer.backends._wire_http2_connection import Http2Connection, Stream

__all__ = ["Http2Wire"]

_PER_DIAL = 100
"""Calls that one more connection is made for."""


class Http2Wire:
    """`Wire` over HTTP/2 and TLS; over HTTP/1.1 where the server does not offer it.

    Which of the two is agreed on with the first connection (ALPN, RFC 7301). A call that the
    server says it did not look at (GOAWAY, REFUSED_STREAM), or whose connection is closed
    before an answer began, is sent once more if that happens within a second.

    Args:
        url: The endpoint's base URL.
        context: For TLS; its list of application protocols is set here.
        limit: Most connections at once; by default what this process can hold.

    Raises:
        ConfigError: h2 is not installed, or the URL or a variable that names certificates is
            wrong.
    """

    def __init__(
        self, url: str, *, context: ssl.SSLContext | None = None, limit: int | None = None
    ) -> None:
        try:
            from scaleinfer.backends._wire_http2_connection import Http2Connection
        except ImportError as error:
            raise ConfigError(
                "HTTP/2 needs the package h2, which is not installed.",
                hint="Install it with: pip install 'scaleinfer[http2]'",
            ) from error
        self._make = Http2Connection
        self._target = parse_url(url)[0]
        self._url = url
        self._limit = limit or max_connections()
        self._context = context
        self._http1: DirectWire | None = None
        if self._target.tls:
            self._context = context or verifying_context()
            self._context.set_alpn_protocols(["h2", "http/1.1"])
        else:
            self._fall_back()
        self._dialer = Dialer(self._target, self._context)
        self._connections: list[Http2Connection] = []
        self._closing: set[Http2Connection] = set()
        self._dialing: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._deadlines = Deadlines(asyncio.get_running_loop(), self._streams)
        self._connects = self._calls = 0
        self._waited_s = 0.0
        self._closed = False
        self._emptied = asyncio.Event()
        self.bytes_sent = self.bytes_received = 0

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        """Send a body and return the response; see `Wire.post`."""
        return await self._call("POST", url, body, headers, timeout, on_body)

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        """Fetch a URL; see `Wire.get`."""
        return await self._call("GET", url, b"", headers, timeout)

    def statistics(self) -> WireStatistics:
        """Return what the wire holds and has done; a connection in use has a call or more."""
        if self._http1 is not None:
            return self._http1.statistics()
        held = [*self._connections, *self._closing]
        return WireStatistics(
            open=len(held),
            idle=sum(not connection.streams for connection in held),
            waiting=len(self._waiting),
            connects=self._connects,
            reused=max(0, self._calls - self._connects),
            waited_s=self._waited_s,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
        )

    async def aclose(self) -> None:
        """Close every connection; calls in flight end with `WireError`."""
        self._closed = True
        self._deadlines.stop()
        dialing = tuple(self._dialing)
        for task in dialing:
            task.cancel()
        await asyncio.gather(*dialing, return_exceptions=True)
        await self._dialer.aclose()
        if self._http1 is not None:
            await self._http1.aclose()
        self._fail_waiting(_closed())
        for connection in (*self._connections, *self._closing):
            connection.end(_closed())
        if self._connections or self._closing:
            await self._emptied.wait()

    async def _call(  # noqa: PLR0917 - the inside of `post`
        self,
        method: str,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        target, path = parse_url(url, self._url)
        fields = header_fields(target, headers)
        hosts = [value for name, value in fields if name.lower() == "host"]
        request = [
            (":method", method),
            (":scheme", "https"),
            (":authority", hosts[0]),
            (":path", path),
            *((name.lower(), value) for name, value in fields if name.lower() != "host"),
        ]
        if method == "POST":
            request.append(("content-length", str(len(body))))
        for last in (False, True):
            connection = await self._room()
            if connection is None:
                break
            began = time.monotonic()
            try:
                return await self._exchange(connection, request, body, timeout, on_body)
            except WireError as error:
                quick = time.monotonic() - began < STALE_WITHIN
                if last or not (error.unanswered and quick):
                    raise
        assert self._http1 is not None
        if method == "GET":
            return await self._http1.get(url, headers, timeout or 0.0)
        return await self._http1.post(url, body, headers, timeout, on_body)

    async def _exchange(
        self,
        connection: Http2Connection,
        request: list[tuple[str, str]],
        body: bytes,
        timeout: float | None,
        on_body: OnBody | None,
    ) -> WireResponse:
        self._calls += 1
        stream = connection.send(request, body, timeout)
        stream.on_body = on_body
        self._deadlines.note(stream.deadline)
        try:
            return await stream.response
        except asyncio.CancelledError:
            connection.reset(stream)
            raise

    # Which connection.

    async def _room(self) -> Http2Connection | None:
        """Return a connection with room for a call, or None if HTTP/1.1 is spoken here."""
        began = time.monotonic()
        while self._http1 is None:
            for connection in self._connections:
                if connection.room > 0:
                    return connection
            if self._closed:
                raise _closed()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._grow()
            try:
                await turn
            except asyncio.CancelledError:
                self.roomier()  # the turn may have come: pass it on
                raise
            finally:
                self._waited_s += time.monotonic() - began
                began = time.monotonic()
        return None

    def _grow(self) -> None:
        dialing = len(self._dialing)
        room = self._limit - len(self._connections) - len(self._closing) - dialing
        # Whether it is HTTP/2 at all is found out with one connection.
        most = 1 if not self._connects else -(-len(self._waiting) // _PER_DIAL)
        for _ in range(min(most - dialing, room)):
            task = asyncio.get_running_loop().create_task(self._add())
            self._dialing.add(task)
            task.add_done_callback(self._dialing.discard)

    async def _add(self) -> None:
        try:
            connection = await self._dialer.dial(lambda: self._make(self))
            if connection.speaks_http2:
                await _ready(connection)
        except Exception as error:
            self._fail_waiting(error)
            return
        self._connects += 1
        if not connection.speaks_http2:
            connection.end(_closed())
            self._fall_back()
        elif not connection.closed:
            self._connections.append(connection)
        self.roomier()
        if self._waiting:
            self._grow()

    def _fall_back(self) -> None:
        if self._http1 is None:
            if self._context is not None:
                self._context.set_alpn_protocols(["http/1.1"])
            self._http1 = DirectWire(self._url, context=self._context, limit=self._limit)

    # What connections report.

    def roomier(self) -> None:
        """Wake as many waiting calls as there is room for."""
        room = sum(connection.room for connection in self._connections)
        while self._waiting and (room > 0 or self._http1 is not None):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    def lost(self, connection: Http2Connection) -> None:
        """A connection is closed, or takes no more calls."""
        if connection in self._connections:
            self._connections.remove(connection)
        if connection.closed:
            self._closing.discard(connection)
        else:
            self._closing.add(connection)
        if self._closed and not self._connections and not self._closing:
            self._emptied.set()
        elif self._waiting and not self._closed:
            self._grow()

    def _fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                same = (
                    WireError(error.failure, str(error)) if isinstance(error, WireError) else error
                )
                turn.set_exception(same)

    def _streams(self) -> list[Stream]:
        held = (*self._connections, *self._closing)
        return [stream for connection in held for stream in connection.streams.values()]


async def _ready(connection: Http2Connection) -> None:
    """Wait until a new connection takes calls.

    Raises:
        WireError: It does not come to that.
    """
    try:
        done, _ = await asyncio.wait((connection.ready,), timeout=CONNECT_TIMEOUT)
    except asyncio.CancelledError:
        connection.end(_closed())
        raise
    if not done or connection.ready.cancelled():
        text = "the server agreed on HTTP/2 and does not speak it"
        connection.end(WireError(Failure.BROKEN, text))
        raise WireError(Failure.BROKEN, text)


def _closed() -> WireError:
    return WireError(Failure.BROKEN, "the wire client was closed")
