"""`AiohttpWire`: through aiohttp, which knows proxies, at several times the CPU time."""

from __future__ import annotations

import asyncio
import io
import os
import time
from typing import TYPE_CHECKING, Any

from scaleinfer.backends._wire_base import (
    CONNECT_TIMEOUT,
    STALE_WITHIN,
    Failure,
    WireError,
    WireResponse,
    WireStatistics,
)
from scaleinfer.backends._wire_descriptors import max_connections
from scaleinfer.backends._wire_target import parse_url, proxy_for
from scaleinfer.backends._wire_trust import trusted_by, verifying_context
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from scaleinfer.backends._wire_base import OnBody

__all__ = ["AiohttpWire"]

_LARGE = 1 << 19


class AiohttpWire:
    """`Wire` over aiohttp.

    Args:
        url: The endpoint's base URL.
        proxy: The proxy to go through; by default the one the environment names for the URL.
        context: For TLS; by default one that trusts whom the environment says.
        limit: Most connections at once; by default what this process can hold.

    Attributes:
        resends: False for calls that must not arrive twice, whatever became of the first.

    Raises:
        ConfigError: The URL, or a variable that names certificates or a proxy, is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        proxy: str | None = None,
        context: ssl.SSLContext | None = None,
        limit: int | None = None,
    ) -> None:
        import aiohttp

        target = parse_url(url)[0]
        if target.is_socket:
            raise ConfigError("aiohttp is not used for Unix sockets.", hint='Use kind="direct".')
        self.resends = True
        self._proxy = proxy or proxy_for(url)
        if context is None and (target.tls or (self._proxy or "").startswith("https:")):
            context = verifying_context()
        self._connector = aiohttp.TCPConnector(
            limit=limit or max_connections(), ttl_dns_cache=60, ssl=context or True
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._note_connect)
        trace.on_connection_reuseconn.append(self._note_reuse)
        trace.on_connection_queued_start.append(self._note_queued)
        trace.on_connection_queued_end.append(self._note_served)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
            headers={"Accept-Encoding": "identity", "User-Agent": "scaleinfer"},
        )
        self._connects = self._reused = self._waiting = 0
        self._waited_s = 0.0
        self._bytes_sent = self._bytes_received = 0

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        """Send a body and return the response; see `Wire.post`.

        The time until there is a connection counts for the timeout here.
        """
        began = time.monotonic()
        try:
            return await self._send("POST", url, body, headers, timeout, on_body)
        except WireError as error:
            # Servers close idle connections without a word. A POST that meets one fails at
            # once without a byte of answer, and is sent once more on a new connection.
            if self.resends and error.unanswered and time.monotonic() - began < STALE_WITHIN:
                return await self._send("POST", url, body, headers, timeout, on_body)
            raise

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        """Fetch a URL; see `Wire.get`."""
        return await self._send("GET", url, None, headers, timeout)

    def statistics(self) -> WireStatistics:
        """Return what the wire holds and has done; bytes are those of bodies."""
        # aiohttp shows these two nowhere else.
        idle = sum(len(held) for held in self._connector._conns.values())
        busy = len(self._connector._acquired)
        return WireStatistics(
            open=idle + busy,
            idle=idle,
            waiting=self._waiting,
            connects=self._connects,
            reused=self._reused,
            waited_s=self._waited_s,
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._session.close()
        # TLS transports close in a later turn of the loop.
        await asyncio.sleep(0)

    async def _send(  # noqa: PLR0917 - the inside of `post`
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        import aiohttp

        # aiohttp wants large bodies, images for instance, as files.
        data = io.BytesIO(body) if body is not None and len(body) > _LARGE else body
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        self._bytes_sent += len(body or b"")
        try:
            async with self._session.request(
                method,
                url,
                data=data,
                headers=headers,
                timeout=limits,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                if on_body is None:
                    answer = await response.read()
                else:
                    pieces = []
                    async for piece in response.content.iter_any():
                        pieces.append(piece)
                        on_body(piece)
                    answer = b"".join(pieces)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _wire_error(error, timeout) from error
        self._bytes_received += len(answer)
        return WireResponse(response.status, response.headers, answer)

    async def _note_connect(self, *_: Any) -> None:
        self._connects += 1

    async def _note_reuse(self, *_: Any) -> None:
        self._reused += 1

    async def _note_queued(self, _session: Any, context: Any, _params: Any) -> None:
        self._waiting += 1
        context.queued = time.monotonic()

    async def _note_served(self, _session: Any, context: Any, _params: Any) -> None:
        self._waiting -= 1
        self._waited_s += time.monotonic() - context.queued


def _wire_error(error: Exception, timeout: float | None) -> WireError:
    import aiohttp

    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return WireError(Failure.CONNECT, f"no connection within {CONNECT_TIMEOUT:g} s")
    if isinstance(error, TimeoutError):
        return WireError(Failure.TIMEOUT, f"no answer within {timeout:.3g} s")
    if isinstance(error, aiohttp.ClientSSLError):
        return _distrust(error)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return WireError(Failure.CONNECT, f"the proxy answers HTTP {error.status}")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
        cause = getattr(error, "os_error", None)
        number = getattr(cause, "errno", None)
        # asyncio's own text for a refused connection names the address once more.
        plain = os.strerror(number) if number and number > 0 else str(cause or error)
        return WireError(Failure.CONNECT, plain)
    unanswered = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
    text = str(error) or type(error).__name__
    return WireError(Failure.BROKEN, text, unanswered=unanswered)


def _distrust(error: Any) -> WireError:
    said = getattr(getattr(error, "certificate_error", None), "verify_message", "")
    if not said:
        return WireError(Failure.TLS, str(error))
    return WireError(Failure.TLS, f"{said} (trusted are the authorities of {trusted_by()})")
