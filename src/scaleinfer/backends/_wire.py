"""The thin HTTP client under the backends: bytes out, bytes in, errors as four kinds.

Behind a protocol so that another client can take its place; see docs/architecture.md for why
it is aiohttp today.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import os
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AiohttpWire", "Failure", "Wire", "WireError", "WireResponse", "is_loopback"]

_CONNECT_TIMEOUT = 10.0
_STALE_WITHIN = 1.0
_LARGE = 1 << 19
_WANTED_FILES, _SPARE_FILES = 1 << 16, 48


class Failure(Enum):
    """What went wrong below HTTP."""

    CONNECT = "connect"
    """No connection: refused, no such host, no route."""
    TLS = "tls"
    """A connection, but no trust."""
    TIMEOUT = "timeout"
    """No answer in time."""
    BROKEN = "broken"
    """The connection ended in the middle, or what came is not HTTP."""


class WireError(Exception):
    """A call that brought no HTTP response.

    Attributes:
        failure: What kind of failure it was.
        unanswered: True if the connection ended before a byte of answer came.
    """

    def __init__(self, failure: Failure, message: str, *, unanswered: bool = False) -> None:
        super().__init__(message)
        self.failure = failure
        self.unanswered = unanswered


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire(Protocol):
    """An HTTP client for one endpoint, bound to one event loop.

    Cancelling the awaiting task closes the connection, so that the server stops its work.
    """

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout: float | None
    ) -> WireResponse:
        """Send a body and return the response.

        Raises:
            WireError: There was no response.
        """

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        """Fetch a URL.

        Raises:
            WireError: There was no response.
        """

    async def aclose(self) -> None:
        """Close every connection."""


def is_loopback(url: str) -> bool:
    """True if the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AiohttpWire:
    """`Wire` over aiohttp.

    Args:
        url: The endpoint's base URL. Proxy variables are honoured unless it is this machine.
    """

    def __init__(self, url: str) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_most_connections(), ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=not is_loopback(url),
        )

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout: float | None
    ) -> WireResponse:
        began = time.monotonic()
        try:
            return await self._send("POST", url, body, headers, timeout)
        except WireError as error:
            # Servers close idle connections without a word. A POST that meets one fails at
            # once without a byte of answer, and is sent once more on a new connection.
            if error.unanswered and time.monotonic() - began < _STALE_WITHIN:
                return await self._send("POST", url, body, headers, timeout)
            raise

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        return await self._send("GET", url, None, headers, timeout)

    async def aclose(self) -> None:
        await self._session.close()
        # TLS transports close in a later turn of the loop.
        await asyncio.sleep(0)

    async def _send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout: float | None,
    ) -> WireResponse:
        import aiohttp

        # aiohttp wants large bodies, images for instance, as files.
        data = io.BytesIO(body) if body is not None and len(body) > _LARGE else body
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT)
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=limits, allow_redirects=False
            ) as response:
                return WireResponse(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _wire_error(error, timeout) from error


def _most_connections() -> int:
    """Return how many connections this process can hold; 0 for any number.

    The usual soft limit of 1024 open files is raised as far as the system lets us; within a
    hard limit that is too low, calls wait for a connection instead of failing.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 0
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):
            pass
    return max(1, soft - _SPARE_FILES)


def _wire_error(error: Exception, timeout: float | None) -> WireError:
    import aiohttp

    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return WireError(Failure.CONNECT, f"no connection within {_CONNECT_TIMEOUT:g} s")
    if isinstance(error, TimeoutError):
        return WireError(Failure.TIMEOUT, f"no answer within {timeout:g} s")
    if isinstance(error, aiohttp.ClientSSLError):
        return WireError(Failure.TLS, str(error))
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
        cause = getattr(error, "os_error", None)
        number = getattr(cause, "errno", None)
        # asyncio's own text for a refused connection names the address once more.
        plain = os.strerror(number) if number and number > 0 else str(cause or error)
        return WireError(Failure.CONNECT, plain)
    unanswered = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
    text = str(error) or type(error).__name__
    return WireError(Failure.BROKEN, text, unanswered=unanswered)
