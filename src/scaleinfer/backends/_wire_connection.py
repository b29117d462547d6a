"""One HTTP/1.1 connection: a request out, a response in, one at a time."""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import time
from typing import TYPE_CHECKING, Protocol

from scaleinfer.backends._wire_base import Failure, WireError, WireResponse
from scaleinfer.backends._wire_response import ResponseReader

if TYPE_CHECKING:
    from scaleinfer.backends._wire_base import OnBody
    from scaleinfer.backends._wire_response import Heads

__all__ = ["Connection", "broken_by", "no_answer_within"]

_WHOLE = 1 << 16
"""A request of at most so many bytes is handed over in one piece."""
_PIECE = 1 << 18


class Owner(Protocol):
    """Where a connection reports to."""

    heads: Heads
    bytes_received: int

    def release(self, connection: Connection) -> None:
        """The connection is free for the next request."""

    def lost(self, connection: Connection) -> None:
        """The connection is closed."""


class Connection(asyncio.Protocol):
    """A connection of a pool.

    Attributes:
        deadline: Monotonic time at which its call is given up; infinite without one.
        idle_since: Monotonic time of the last response's end.
        served: Requests sent over it so far.
        closed: True once it cannot be used any more.
    """

    __slots__ = ("_loop", "_owner", "_paused", "_reader", "_timeout", "_transport", "_unsent",
                 "_waiter", "closed", "deadline", "idle_since", "served")  # fmt: skip

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._reader = ResponseReader(owner.heads)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[WireResponse] | None = None
        self._unsent: memoryview | None = None
        self._paused = False
        self._timeout = 0.0
        self.deadline = math.inf
        self.idle_since = 0.0
        self.served = 0
        self.closed = False

    def send(
        self, head: bytes, body: bytes, timeout: float | None, on_body: OnBody | None = None
    ) -> asyncio.Future[WireResponse]:
        """Send a request; the future brings the response, or `WireError`.

        Args:
            head: The request's head, the empty line included.
            body: What follows it.
            timeout: Seconds for the whole response.
            on_body: Called with pieces of a chunked body.
        """
        transport = self._transport
        assert transport is not None
        self._reader.reset(on_body)
        self.served += 1
        waiter: asyncio.Future[WireResponse] = self._loop.create_future()
        self._waiter = waiter
        if timeout is not None:
            self._timeout = timeout
            self.deadline = time.monotonic() + timeout
        if len(body) <= _WHOLE:
            transport.write(head + body)
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._push()
        return waiter

    def give_up(self, waiter: asyncio.Future[WireResponse]) -> None:
        """Close the connection if it still serves this call."""
        if self._waiter is waiter:
            self._waiter = None
            self.abort()

    def expire(self) -> None:
        """End its call, whose time is over."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(no_answer_within(self._timeout))
        self.abort()

    def end(self, error: WireError) -> None:
        """End its call, if there is one, with an error, and close the connection."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self.closed = True
        self.deadline = math.inf
        self._unsent = None
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a stream's transport

    def data_received(self, data: bytes) -> None:
        owner = self._owner
        owner.bytes_received += len(data)
        waiter = self._waiter
        if waiter is None:  # nobody asked
            self.abort()
            return
        reader = self._reader
        try:
            response = reader.feed(data)
        except WireError as error:
            self.end(error)
            return
        if response is None:
            return
        self._waiter = None
        self.deadline = math.inf
        if reader.keep_alive and self._unsent is None and not self.closed:
            owner.release(self)
        else:
            self.abort()
        if not waiter.done():
            waiter.set_result(response)

    def eof_received(self) -> None:
        self.closed = True  # the transport closes itself in a moment

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.deadline = math.inf
        self._transport = self._unsent = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            try:
                waiter.set_result(self._reader.eof(broken_by(exc) if exc else ""))
            except WireError as error:
                waiter.set_exception(error)
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._push()

    def _push(self) -> None:
        """Hand over as much of a large body as the transport wants to hold."""
        while (rest := self._unsent) is not None and not self._paused:
            assert self._transport is not None
            # Shortened first: the transport may ask for more before it returns.
            self._unsent = rest[_PIECE:] if len(rest) > _PIECE else None
            self._transport.write(rest[:_PIECE])


def no_answer_within(timeout: float) -> WireError:
    """Return the error of a call whose time is over."""
    return WireError(Failure.TIMEOUT, f"no answer within {timeout:.3g} s")


def broken_by(exc: Exception) -> str:
    """Return in words what ended a connection."""
    if (
        isinstance(exc, OSError)
        and exc.errno
        and exc.errno > 0
        and not isinstance(exc, ssl.SSLError)
    ):
        return os.strerror(exc.errno)
    return str(exc) or type(exc).__name__
