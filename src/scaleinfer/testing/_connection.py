"""The asyncio shell: sockets in, `Service` decides, bytes out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError
from scaleinfer.testing._delivery import End
from scaleinfer.testing._job import Head

if TYPE_CHECKING:
    from scaleinfer.testing._changes import Down, What
    from scaleinfer.testing._job import Job
    from scaleinfer.testing._service import Service

__all__ = ["Listener"]

_BACKLOG = 4096
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_HEADS = 4096
"""How many heads to remember; those of one client differ by Content-Length alone."""


class Listener:
    """A listening socket on 127.0.0.1 and its connections, in the running loop."""

    def __init__(self, service: Service) -> None:
        import httptools

        self.service = service
        self._conditions = service.conditions
        self.parser = httptools.HttpRequestParser
        self.callback_error = httptools.HttpParserCallbackError
        self.upgrade = httptools.HttpParserUpgrade
        self.protocol_error = httptools.HttpParserError
        self.connections: set[Connection] = set()
        self.closing = False
        self.port = 0
        self.control_port = 0
        self.heads: dict[bytes, tuple[Head, int]] = {}
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._down: Down | None = None
        self._reserved: socket.socket | None = None
        self._switch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._empty = asyncio.Event()

    async def open(self, port: int) -> None:
        """Begin to listen; port 0 takes a free one.

        Raises:
            ConfigError: The port is taken.
        """
        try:
            self._server = await self._loop.create_server(
                lambda: Connection(self), "127.0.0.1", port, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigError(
                f"The simulated server cannot listen on 127.0.0.1:{port}: {error.strerror}.",
                hint="port=0 takes a free one.",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def open_control(self) -> None:
        """Listen on a second port too, which no outage closes."""
        self._control = await self._loop.create_server(
            lambda: Connection(self, control=True), "127.0.0.1", 0
        )
        self.control_port = self._control.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening and end all connections, whatever is in flight."""
        self.closing = True
        if self._switch is not None:
            self._switch.cancel()
            await asyncio.wait([self._switch])
        if self._reserved is not None:
            self._reserved.close()
        for server in self._servers:
            server.close()
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self.connections):
            connection.abort()
        if self.connections:
            await self._empty.wait()
        for server in self._servers:
            await server.wait_closed()

    @property
    def _servers(self) -> list[asyncio.Server]:
        return [server for server in (self._server, self._control) if server is not None]

    def gone(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if self.closing and not self.connections:
            self._empty.set()

    def arm(self) -> None:
        """See to it that the service is asked again when something is due."""
        due = self.service.timers.next_due
        if self._conditions.down is not self._down:
            self._follow_outage()
        if due is None or self.closing:
            return
        if self._timer is not None:
            if self._armed_for <= due:
                return
            self._timer.cancel()
        self._armed_for = due
        # Loops round to their own ticks; waking up too early would only mean to wait again.
        delay = max(due - time.monotonic(), 0.0) + self.service.timers.tick / 2
        self._timer = self._loop.call_later(delay, self._tick)

    def _follow_outage(self) -> None:
        """Cut what an outage cuts; see to it that the port is open or closed as it says."""
        down = self._down = self.service.conditions.down
        for connection in tuple(self.connections):
            if down == "refuse" or (down == "503" and connection.busy):
                connection.cut()
        if not self.closing and (self._switch is None or self._switch.done()):
            self._switch = self._loop.create_task(self._switch_port())

    async def _switch_port(self) -> None:
        """Close or open the port until it is as the outage of the moment wants it."""
        while (self._down == "refuse") != (self._server is None):
            if self._server is not None:
                self._server.close()
                self._server = None
                self._reserved = await self._reserve()
            else:
                assert self._reserved is not None
                reserved, self._reserved = self._reserved, None
                self._server = await self._loop.create_server(
                    lambda: Connection(self), sock=reserved, backlog=_BACKLOG
                )

    async def _reserve(self) -> socket.socket:
        """Return a socket that holds our port, so that nobody takes it, but does not listen."""
        while True:
            reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reserved.bind(("127.0.0.1", self.port))
            except OSError:  # loops close a listening socket some turns later
                reserved.close()
                await asyncio.sleep(0.001)
            else:
                return reserved

    def change(self, what: What) -> None:
        """Change the service now; to be called in the loop."""
        self.service.change(what, time.monotonic())
        self.arm()

    def change_from_thread(self, what: What) -> None:
        """Change the service now; to be called from anywhere. Returns when it is done."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self.change(what)
            return
        done: Future[None] = Future()

        def run() -> None:
            try:
                self.change(what)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result()

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for job in self.service.due_jobs(now):
            if not job.done:  # an earlier one may have ended it
                job.client.advance(job, now)
        self.arm()


class Connection(asyncio.Protocol):
    """One client connection: parses requests, writes what the service says.

    A head that came before is looked up instead of parsed, which saves a fifth of the time of
    a request. Bytes that are no whole request with such a head go to the parser.
    """

    def __init__(self, listener: Listener, *, control: bool = False) -> None:
        self._listener = listener
        self._control = control
        self._cut = False
        self._service = listener.service
        self._transport: asyncio.Transport | None = None
        self._parser = listener.parser(self)
        self._job: Job | None = None
        self._pipelined: deque[tuple[Head, bytes]] = deque()
        self._trapped = False
        self._parsing = False
        self._whole_head = b""
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # create_server makes transports
        self._listener.connections.add(self)
        if self._listener.closing:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._job is not None:
            job, self._job = self._job, None
            aborted = not (self._cut or self._listener.closing)
            self._service.leave(job, time.monotonic(), aborted=aborted)
            self._listener.arm()
        self._listener.gone(self)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._trapped:
            transport.close()
            return
        if not self._parsing and self._idle:
            end = data.find(b"\r\n\r\n") + 4
            known = self._listener.heads.get(data[:end])
            if known is not None and len(data) == end + known[1]:
                self._take(known[0], data[end:])
                return
            self._whole_head = data[:end]
        try:
            self._parser.feed_data(data)
        except self._listener.callback_error:
            raise  # a fault of ours, not of the client's
        except (self._listener.upgrade, self._listener.protocol_error):
            transport.write(_BAD_REQUEST)
            transport.close()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._parsing = True
        self._url = b""
        self._headers = []
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if (b"expect", b"100-continue") in self._headers and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._whole_head = b""

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._parsing = False
        whole_head, self._whole_head = self._whole_head, b""
        if self._parser.should_upgrade():
            return  # to be refused when the parser raises
        method = self._parser.get_method().decode()
        path, _, query = self._url.decode("latin-1").partition("?")
        head = Head(method, path, self._headers, keep_alive=self._parser.should_keep_alive())
        head.query = query
        body = b"".join(self._body)
        if whole_head and head.headers.get("content-length") == str(len(body)):
            self._remember(whole_head, head, len(body))
        if self._idle:
            self._take(head, body)
        else:
            self._pipelined.append((head, body))

    def _remember(self, whole_head: bytes, head: Head, length: int) -> None:
        heads = self._listener.heads
        if len(heads) >= _HEADS:
            heads.clear()
        heads[whole_head] = head, length

    # What the service decides.

    @property
    def _idle(self) -> bool:
        return self._job is None and not self._pipelined

    def _take(self, head: Head, body: bytes) -> None:
        now = time.monotonic()
        job = self._job = self._service.arrive(head, body, self, now)
        if job.due is not None and job.due <= now:
            self.advance(job, now)
        self._listener.arm()

    def advance(self, job: Job, now: float) -> None:
        """Send what is due for a job, and end the connection if that is its end."""
        data, end = self._service.advance(job, now)
        transport = self._transport
        if transport is None:
            return
        if data:
            transport.write(data)
        if end is None or end is End.HANG:
            return
        self._job = None
        self._trapped = job.trapped
        if end is End.CLOSE:
            transport.close()
        elif end is End.RESET:
            self._reset(transport)
        elif self._pipelined and self._trapped:
            transport.close()
        elif self._pipelined:
            # Not at once: a long row of requests would nest as deep as it is long.
            asyncio.get_running_loop().call_soon(self._take_next)

    def _take_next(self) -> None:
        if self._pipelined and self._transport is not None and not self._transport.is_closing():
            self._take(*self._pipelined.popleft())

    @property
    def busy(self) -> bool:
        """True while a request is being answered here."""
        return self._job is not None

    def cut(self) -> None:
        """End the connection because of an outage, which spares those of the control port."""
        if not self._control:
            self._cut = True
            self.abort()

    def abort(self) -> None:
        """End the connection without waiting for what is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def _reset(self, transport: asyncio.Transport) -> None:
        """Close with a TCP RST: what a lingering time of zero means."""
        sock = transport.get_extra_info("socket")
        # A copy of the descriptor, because event loops hand out sockets that cannot be set.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
