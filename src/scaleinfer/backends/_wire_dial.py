"""Makes connections: looks names up once, tries addresses side by side, speaks TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeVar

from scaleinfer.backends._wire_base import CONNECT_TIMEOUT, Failure, WireError
from scaleinfer.backends._wire_connection import broken_by
from scaleinfer.backends._wire_trust import trusted_by
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.backends._wire_target import Target

__all__ = ["Dialer"]

_NAME_SECONDS = 60.0
"""How long a looked-up name holds; what follows a change of address follows it this late."""
_NEXT_ADDRESS_AFTER = 0.25
"""Seconds until the next address is tried beside a slow one (RFC 8305, section 5)."""
_PROBE_AFTER, _PROBE_EVERY, _PROBES = 60, 60, 5

Address = tuple[int, int, int, str, tuple[Any, ...]]
P = TypeVar("P", bound=asyncio.Protocol)


class Dialer:
    """Makes connections to one target on one event loop.

    Args:
        target: Where to.
        context: For TLS; None for plain connections.
    """

    def __init__(self, target: Target, context: ssl.SSLContext | None) -> None:
        self._target = target
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._addresses: list[Address] = []
        self._known_until = 0.0
        self._lookup: asyncio.Task[list[Address]] | None = None
        self._turn = 0

    async def dial(self, factory: Callable[[], P]) -> P:
        """Make a connection; it is closed if the awaiting task is cancelled.

        Raises:
            WireError: It cannot be made.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await self._dial(factory)
        except TimeoutError as error:
            text = f"no connection within {CONNECT_TIMEOUT:g} s"
            raise WireError(Failure.CONNECT, text) from error
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise WireError(Failure.TLS, self._distrust(error)) from error
        except socket.gaierror as error:
            text = f"no such host: {self._target.host} ({error.strerror})"
            raise WireError(Failure.CONNECT, text) from error
        except OSError as error:
            self._known_until = 0.0  # the host may have moved
            raise WireError(Failure.CONNECT, self._refusal(error)) from error

    async def aclose(self) -> None:
        """End a lookup that still goes on."""
        if self._lookup is not None:
            self._lookup.cancel()
            await asyncio.gather(self._lookup, return_exceptions=True)

    async def _dial(self, factory: Callable[[], P]) -> P:
        target, loop = self._target, self._loop
        tls: dict[str, Any] = {}
        if self._context is not None:
            tls = {"ssl": self._context, "server_hostname": target.host}
        if target.is_socket:
            if not hasattr(loop, "create_unix_connection"):
                raise ConfigError("this system has no Unix sockets.")
            return (await loop.create_unix_connection(factory, target.host))[1]
        addresses = await self._resolve()
        if len(addresses) == 1 and ipaddress.ip_address(addresses[0][4][0]).is_loopback:
            host, port = addresses[0][4][:2]
            return (await loop.create_connection(factory, host, port, **tls))[1]
        sock = await self._race(addresses)
        try:
            return (await loop.create_connection(factory, sock=sock, **tls))[1]
        except BaseException:
            sock.close()
            raise

    async def _race(self, addresses: list[Address]) -> socket.socket:
        from aiohappyeyeballs import start_connection

        # Names with several addresses often spread load: each connection starts elsewhere.
        self._turn += 1
        first = self._turn % len(addresses)
        sock = await start_connection(
            addresses[first:] + addresses[:first],
            happy_eyeballs_delay=_NEXT_ADDRESS_AFTER,
            interleave=1,
            loop=self._loop,
            socket_factory=_make_socket,
        )
        # A family that lost the race loses the next ones too: localhost is usually one of them.
        reachable = [address for address in addresses if address[0] == sock.family]
        if self._addresses == addresses:
            self._addresses = reachable
        return sock

    async def _resolve(self) -> list[Address]:
        if time.monotonic() < self._known_until:
            return self._addresses
        if self._lookup is None:
            self._lookup = self._loop.create_task(self._look_up())
            # All who waited may be gone when it fails.
            self._lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shared by all who wait for it: one of them going away must not end it.
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> list[Address]:
        try:
            found = await self._loop.getaddrinfo(
                self._target.host, self._target.port, type=socket.SOCK_STREAM
            )
            self._addresses = list(dict.fromkeys(found))
            self._known_until = time.monotonic() + _NAME_SECONDS
            return self._addresses
        finally:
            self._lookup = None

    def _distrust(self, error: ssl.SSLError | ssl.CertificateError) -> str:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"{error.verify_message} (trusted are the authorities of {trusted_by()})"
        reason = (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
        return f"no TLS with {self._target.authority}: {reason}; does it speak https?"

    def _refusal(self, error: OSError) -> str:
        if self._target.is_socket:
            return f"{broken_by(error)} ({self._target.host})"
        if isinstance(error, ConnectionError) and self._context is not None and not error.errno:
            return "it was closed during the TLS handshake"
        return broken_by(error)


def _make_socket(address: Address) -> socket.socket:
    """Return a socket that notices within minutes that the other side is gone."""
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE_AFTER),
            ("TCP_KEEPINTVL", _PROBE_EVERY),
            ("TCP_KEEPCNT", _PROBES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except BaseException:
        sock.close()
        raise
    return sock
