"""One HTTP/2 connection: many calls at once, each a stream of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from scaleinfer.backends._wire_base import Failure, Headers, WireError, WireResponse
from scaleinfer.backends._wire_connection import broken_by, no_answer_within
from scaleinfer.backends._wire_response import MAX_BODY, decoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from h2.events import Event

    from scaleinfer.backends._wire_base import OnBody

__all__ = ["Http2Connection", "Stream"]

_STREAMS = 100
"""Most calls on one connection, whatever more the server allows: one connection is one core's
TLS and one place in a gateway."""
_WINDOW = 1 << 24
"""Bytes that may come unacknowledged: larger than any usual answer."""


class Owner(Protocol):
    """Where a connection reports to."""

    bytes_sent: int
    bytes_received: int

    def roomier(self) -> None:
        """A connection takes more calls than before."""

    def lost(self, connection: Http2Connection) -> None:
        """The connection is closed, or takes no more calls."""


class Stream:
    """One call.

    Attributes:
        response: Brings the response, or `WireError`.
        deadline: Monotonic time at which the call is given up; infinite without one.
        on_body: Called with pieces of the body as they come.
    """

    __slots__ = ("_chunks", "_connection", "_headers", "_size", "_status", "_timeout", "deadline",
                 "number", "on_body", "response", "unsent")  # fmt: skip

    def __init__(
        self, connection: Http2Connection, number: int, body: bytes, timeout: float | None
    ) -> None:
        self._connection = connection
        self._timeout = timeout or 0.0
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self.number = number
        self.unsent = memoryview(body)
        self.on_body: OnBody | None = None
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.response: asyncio.Future[WireResponse] = asyncio.get_running_loop().create_future()

    def take_head(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the response's header fields."""
        self._headers = [(name, value) for name, value in fields if not name.startswith(b":")]
        self._status = int(dict(fields)[b":status"])

    def take(self, data: bytes) -> None:
        """Take a piece of the body.

        Raises:
            WireError: It is larger than is sane.
        """
        self._chunks.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            text = f"the response is larger than {MAX_BODY >> 20} MiB"
            raise WireError(Failure.BROKEN, text)
        if self.on_body is not None:
            self.on_body(data)

    def finish(self) -> None:
        """The response is whole."""
        if self.response.done():
            return
        headers, body = Headers(self._headers), b"".join(self._chunks)
        encoding = headers.get("content-encoding", "").strip().lower()
        try:
            if encoding not in {"", "identity"}:
                body = decoded(body, encoding, MAX_BODY)
        except WireError as error:
            self.fail(error)
        else:
            self.response.set_result(WireResponse(self._status, headers, body))

    def fail(self, error: WireError) -> None:
        """There will be no response."""
        if not self.response.done():
            self.response.set_exception(error)

    def expire(self) -> None:
        """End the call, whose time is over."""
        self.fail(no_answer_within(self._timeout))
        self._connection.reset(self)

    @property
    def begun(self) -> bool:
        """True once the response's head has come."""
        return self._status > 0


class Http2Connection(asyncio.Protocol):
    """A connection that may turn out not to speak HTTP/2.

    Attributes:
        speaks_http2: True if that was agreed on when it was made.
        ready: Done once the server has said how many calls it takes.
        streams: Calls on it by the number of their stream.
        closed: True once it is closed.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._limit = _STREAMS
        self._usable = False
        self.streams: dict[int, Stream] = {}
        self.speaks_http2 = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    @property
    def room(self) -> int:
        """How many more calls it takes now."""
        return self._limit - len(self.streams) if self._usable else 0

    def send(self, fields: Sequence[tuple[str, str]], body: bytes, timeout: float | None) -> Stream:
        """Send a request.

        Args:
            fields: Header fields, the pseudo-header fields first.
            body: What follows.
            timeout: Seconds for the whole response.

        Raises:
            WireError: The connection has no streams left.
        """
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, fields, end_stream=not body)
        except ProtocolError as error:
            self._usable = False
            self._owner.lost(self)
            raise WireError(Failure.BROKEN, str(error), unanswered=True) from error
        self._h2.increment_flow_control_window(_WINDOW, number)
        stream = self.streams[number] = Stream(self, number, body, timeout)
        self._push(stream)
        self._flush()
        return stream

    def reset(self, stream: Stream) -> None:
        """Tell the server to stop its work on a call."""
        if self.streams.pop(stream.number, None) is None or self._transport is None:
            return
        with contextlib.suppress(ProtocolError):  # it may be closed already
            self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
        self._flush()
        self._made_room()

    def end(self, error: WireError) -> None:
        """End all calls with an error and close the connection."""
        self._usable = False
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.fail(error)
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a stream's transport
        tls: Any = transport.get_extra_info("ssl_object")
        self.speaks_http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
        if self.speaks_http2:
            self._h2.initiate_connection()
            self._h2.increment_flow_control_window(_WINDOW)
            self._flush()

    def data_received(self, data: bytes) -> None:
        self._owner.bytes_received += len(data)
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except ProtocolError as error:
            self._flush()
            text = f"what came is no HTTP/2: {str(error) or type(error).__name__}"
            self.end(WireError(Failure.BROKEN, text))
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._usable = False
        self.closed = True
        text = broken_by(exc) if exc else "it was closed"
        if not self.ready.done():
            self.ready.cancel()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.fail(WireError(Failure.BROKEN, text, unanswered=not stream.begun))
        self._owner.lost(self)

    # What the server says.

    def _handle(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                told = event.changed_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS)
                if told is not None:
                    self._limit = min(told.new_value, _STREAMS)
                self._push_all()
                if not self.ready.done():
                    self._usable = True
                    self.ready.set_result(None)
                self._owner.roomier()
            case WindowUpdated():
                self._push_all()
            case ConnectionTerminated():
                self._go_away(event)
            case ResponseReceived() | DataReceived() | StreamEnded() | StreamReset():
                self._handle_stream(event)
            case _:
                pass

    def _handle_stream(
        self, event: ResponseReceived | DataReceived | StreamEnded | StreamReset
    ) -> None:
        if isinstance(event, DataReceived):
            # What comes for a call that was given up counts for the connection's window too.
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        match event:
            case ResponseReceived():
                stream.take_head(event.headers)
            case DataReceived():
                try:
                    stream.take(event.data)
                except WireError as error:
                    stream.fail(error)
                    self.reset(stream)
            case StreamEnded():
                if stream.unsent:
                    self.reset(stream)  # it answered without reading all
                self._forget(stream)
                stream.finish()
            case StreamReset():
                self._forget(stream)
                code = ErrorCodes(event.error_code).name if event.error_code < 14 else "unknown"  # noqa: PLR2004 - codes of RFC 9113
                refused = event.error_code == ErrorCodes.REFUSED_STREAM
                text = f"the server reset the stream ({code})"
                stream.fail(WireError(Failure.BROKEN, text, unanswered=refused))

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.number, None) is not None:
            self._made_room()

    def _made_room(self) -> None:
        if self._usable:
            self._owner.roomier()
        elif not self.streams and self._transport is not None:
            self._transport.close()

    def _go_away(self, event: ConnectionTerminated) -> None:
        """Take no more calls; those the server will not look at fail at once."""
        self._usable = False
        last = event.last_stream_id or 0
        for stream in tuple(self.streams.values()):
            if stream.number > last or event.error_code:
                del self.streams[stream.number]
                text = "the server closes this connection (GOAWAY)"
                stream.fail(WireError(Failure.BROKEN, text, unanswered=stream.number > last))
        self._owner.lost(self)
        self._made_room()

    # What is sent.

    def _push_all(self) -> None:
        for stream in tuple(self.streams.values()):
            if stream.unsent:
                self._push(stream)

    def _push(self, stream: Stream) -> None:
        """Send as much of a body as the server's windows allow."""
        while stream.unsent:
            window = self._h2.local_flow_control_window(stream.number)
            size = min(window, self._h2.max_outbound_frame_size, len(stream.unsent))
            if size <= 0:
                return
            piece, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._h2.send_data(stream.number, bytes(piece), end_stream=not stream.unsent)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None:
            self._owner.bytes_sent += len(data)
            self._transport.write(data)
