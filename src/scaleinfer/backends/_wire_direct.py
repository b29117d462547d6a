"""`DirectWire`: HTTP/1.1 with next to nothing between the call and the socket."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._wire_base import STALE_WITHIN, WireError, WireStatistics
from scaleinfer.backends._wire_connection import Connection
from scaleinfer.backends._wire_deadlines import Deadlines
from scaleinfer.backends._wire_descriptors import max_connections
from scaleinfer.backends._wire_dial import Dialer
from scaleinfer.backends._wire_pool import Pool
from scaleinfer.backends._wire_target import parse_url, request_head
from scaleinfer.backends._wire_trust import verifying_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Mapping

    from scaleinfer.backends._wire_base import OnBody, WireResponse
    from scaleinfer.backends._wire_target import Target

__all__ = ["DirectWire"]

_HEADS_KEPT = 64


class DirectWire:
    """`Wire` over asyncio's transports and llhttp, HTTP/1.1 only, without proxies.

    A call over a connection that had served before and is closed without a byte of answer
    within a second is sent once more over a new connection: servers close idle connections
    without a word, and the request then never reached them. Nothing else is sent twice.

    Args:
        url: The endpoint's base URL: `http://`, `https://`, or `uds:///run/vllm.sock:/v1`
            for a Unix socket.
        context: For TLS; by default one that trusts whom the environment says.
        limit: Most connections at once; by default what this process can hold.

    Raises:
        ConfigError: The URL, or a variable that names certificates, is wrong.
    """

    def __init__(
        self, url: str, *, context: ssl.SSLContext | None = None, limit: int | None = None
    ) -> None:
        self._base = url
        self._context = context
        self._limit = limit or max_connections()
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Target, Pool] = {}
        self._dialers: list[Dialer] = []
        self._heads: dict[tuple[object, ...], tuple[Pool, bytes]] = {}
        self._deadlines = Deadlines(self._loop, self._connections)
        self._reused = 0
        self._bytes_sent = 0
        self._pool(parse_url(url)[0])

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> Coroutine[Any, Any, WireResponse]:
        """Send a body and return the response; see `Wire.post`."""
        # The values count, not the mapping's identity: a renewed key may come in the same one.
        known = self._heads.get((url, *headers.items()))
        pool, head = known or self._prepare("POST", url, headers)
        return self._call(pool, b"%b%d\r\n\r\n" % (head, len(body)), body, timeout, on_body)

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        """Fetch a URL; see `Wire.get`."""
        pool, head = self._prepare("GET", url, headers)
        return await self._call(pool, head + b"\r\n", b"", timeout)

    async def _call(
        self,
        pool: Pool,
        head: bytes,
        body: bytes,
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        connection = pool.take() or await pool.wait()
        stale = connection.served > 0
        self._reused += stale
        while True:
            began = time.monotonic()
            self._bytes_sent += len(head) + len(body)
            waiter = connection.send(head, body, timeout, on_body)
            self._deadlines.note(connection.deadline)
            try:
                return await waiter
            except asyncio.CancelledError:
                connection.give_up(waiter)
                raise
            except WireError as error:
                # One that was kept open may have been closed by the server meanwhile.
                late = time.monotonic() - began > STALE_WITHIN
                if late or not stale or not error.unanswered:
                    raise
            stale, connection = False, await pool.wait(new=True)

    def statistics(self) -> WireStatistics:
        """Return what the wire holds and has done; bytes of heads are counted."""
        pools = self._pools.values()
        return WireStatistics(
            open=sum(len(pool.open) for pool in pools),
            idle=sum(pool.idle for pool in pools),
            waiting=sum(pool.waiting for pool in pools),
            connects=sum(pool.connects for pool in pools),
            reused=self._reused,
            waited_s=sum(pool.waited_s for pool in pools),
            bytes_sent=self._bytes_sent,
            bytes_received=sum(pool.bytes_received for pool in pools),
        )

    async def aclose(self) -> None:
        """Close every connection; calls in flight end with `WireError`."""
        self._deadlines.stop()
        for dialer in self._dialers:
            await dialer.aclose()
        for pool in self._pools.values():
            await pool.aclose()

    def _connections(self) -> list[Connection]:
        return [connection for pool in self._pools.values() for connection in pool.open]

    def _prepare(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[Pool, bytes]:
        target, path = parse_url(url, self._base)
        prepared = self._pool(target), request_head(method, target, path, headers)
        if method == "POST":
            if len(self._heads) >= _HEADS_KEPT:
                self._heads.clear()
            self._heads[(url, *headers.items())] = prepared
        return prepared

    def _pool(self, target: Target) -> Pool:
        pool = self._pools.get(target)
        if pool is None:
            if target.tls and self._context is None:
                self._context = verifying_context()
            dialer = Dialer(target, self._context if target.tls else None)
            self._dialers.append(dialer)

            async def dial(pool: Pool) -> Connection:
                return await dialer.dial(lambda: Connection(pool, self._loop))

            pool = self._pools[target] = Pool(dial, self._limit)
        return pool
