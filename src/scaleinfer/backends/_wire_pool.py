"""Keep-alive connections to one origin, and who waits for one."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from typing import TYPE_CHECKING

from scaleinfer.backends._wire_base import Failure, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from scaleinfer.backends._wire_connection import Connection
    from scaleinfer.backends._wire_response import Heads

__all__ = ["Pool"]

_DIALS = 256
"""Connections in the making at once: a server's queue of new ones is short (vLLM: 2,048)."""
_IDLE_SECONDS = 60.0
"""Firewalls forget idle connections without a word (Azure after 240 s, AWS after 350 s)."""
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})


class Pool:
    """Connections to one origin; the last one used is the first to be used again.

    Calls that find no idle connection wait in order; what becomes free first, a new connection
    or one that has served, goes to the first of them.

    Args:
        dial: Makes a connection; raises `WireError`.
        limit: Most connections at once.
    """

    def __init__(self, dial: Callable[[Pool], Coroutine[Any, Any, Connection]], limit: int) -> None:
        self._dial = dial
        self._limit = limit
        self._waiting: deque[asyncio.Future[Connection]] = deque()
        self._wanting_new: deque[asyncio.Future[Connection]] = deque()
        self._dialing: set[asyncio.Task[None]] = set()
        self._idle: list[Connection] = []
        self._emptied = asyncio.Event()
        self._closing = False
        self.open: set[Connection] = set()
        self.heads: Heads = {}
        self.bytes_received = 0
        self.connects = 0
        self.waiting = 0
        self.waited_s = 0.0

    @property
    def idle(self) -> int:
        """Connections without a call."""
        return sum(not connection.closed for connection in self._idle)

    def take(self) -> Connection | None:
        """Return an idle connection, or None if there is none."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.closed:
                continue
            if time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def wait(self, *, new: bool = False) -> Connection:
        """Wait for a connection.

        Args:
            new: Only one that has not served yet will do.

        Raises:
            WireError: It could not be made, or the pool was closed.
        """
        began = time.monotonic()
        self.waiting += 1
        try:
            while True:
                connection = await self._turn(new)
                if not connection.closed:
                    return connection
                if not connection.served:  # trying again could go on for ever
                    raise _closed_at_once()
        finally:
            self.waiting -= 1
            self.waited_s += time.monotonic() - began

    async def _turn(self, new: bool) -> Connection:
        if self._closing:
            raise _closed()
        turn: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        (self._wanting_new if new else self._waiting).append(turn)
        self._grow()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result())
            raise

    def release(self, connection: Connection) -> None:
        """Give a connection to the next call, or keep it for one that comes."""
        if connection.closed:
            return
        turn = _first(self._waiting)
        if turn is not None:
            turn.set_result(connection)
        elif self._wanting_new and self._full:
            connection.abort()
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self.open.discard(connection)
        if self._closing and not self.open:
            self._emptied.set()
        elif self._waiting or self._wanting_new:
            self._grow()

    @property
    def _full(self) -> bool:
        return len(self.open) + len(self._dialing) >= self._limit

    def _grow(self) -> None:
        """Make as many connections as are waited for, within bounds."""
        dialing = len(self._dialing)
        wanted = len(self._waiting) + len(self._wanting_new) - dialing
        room = min(_DIALS - dialing, self._limit - len(self.open) - dialing)
        if self._closing:
            return
        for _ in range(min(wanted, room)):
            task = asyncio.get_running_loop().create_task(self._add())
            self._dialing.add(task)
            task.add_done_callback(self._dialed)

    def _dialed(self, task: asyncio.Task[None]) -> None:
        self._dialing.discard(task)
        if self._waiting or self._wanting_new:
            self._grow()

    async def _add(self) -> None:
        try:
            connection = await self._dial(self)
        except Exception as error:
            self._refused(error)
            return
        self.connects += 1
        if connection.closed:
            self._refused(_closed_at_once())
            return
        self.open.add(connection)
        turn = _first(self._wanting_new) or _first(self._waiting)
        if turn is not None:
            turn.set_result(connection)
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def _refused(self, error: Exception) -> None:
        others = len(self.open) + len(self._dialing) - 1
        if getattr(error.__cause__, "errno", None) in _OUT_OF_FILES and others > 0:
            # Somebody else in this process holds the rest: live with what there is.
            self._limit = min(self._limit, others)
            return
        turn = _first(self._wanting_new) or _first(self._waiting)
        if turn is not None:
            turn.set_exception(error)

    async def aclose(self) -> None:
        """Close every connection; calls end with `WireError`."""
        self._closing = True
        dialing = tuple(self._dialing)
        for task in dialing:
            task.cancel()
        await asyncio.gather(*dialing, return_exceptions=True)
        for queue in (self._wanting_new, self._waiting):
            while (turn := _first(queue)) is not None:
                turn.set_exception(_closed())
        for connection in tuple(self.open):
            connection.end(_closed())
        if self.open:
            await self._emptied.wait()
        self._idle.clear()


def _first(queue: deque[asyncio.Future[Connection]]) -> asyncio.Future[Connection] | None:
    """Take the first call that still waits out of a queue."""
    while queue:
        turn = queue.popleft()
        if not turn.done():
            return turn
    return None


def _closed_at_once() -> WireError:
    text = "the server took the connection and closed it at once"
    return WireError(Failure.BROKEN, text, unanswered=True)


def _closed() -> WireError:
    return WireError(Failure.BROKEN, "the wire client was closed")
