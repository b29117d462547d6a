"""TCP options with which a peer that has gone silent is noticed within ten seconds."""

from __future__ import annotations

import socket

__all__ = ["keepalive_options", "set_keepalive"]

_OPTIONS = {
    "TCP_KEEPIDLE": 4,  # seconds of silence before the first probe
    "TCP_KEEPINTVL": 2,  # seconds between probes
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,  # milliseconds that sent data may stay unacknowledged
}


def keepalive_options() -> dict[int, int]:
    """Return option -> value, as far as this system has them."""
    return {getattr(socket, name): v for name, v in _OPTIONS.items() if hasattr(socket, name)}


def set_keepalive(sock: socket.socket) -> None:
    """Set the options; what a listening socket accepts has them too on Linux."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in keepalive_options().items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
