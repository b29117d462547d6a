"""Free ports of this node, and who listens on one."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
from pathlib import Path

from scaleinfer.fleet._guard import descendants
from scaleinfer.fleet.node_server import HOST

__all__ = ["foreign_listener", "free_port", "listener"]

_FIRST, _TRIES = 20_000, 50
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LISTEN = "0A"
_LOOPBACK_V4 = "0100007F"


def free_port() -> int:
    """Return a port of the loopback address that nobody has now.

    Not one of those the kernel gives to outgoing connections: a server may load its model for
    minutes before it listens, and a connection would take the port meanwhile.
    """
    last = 32_768
    with contextlib.suppress(OSError, ValueError, IndexError):
        last = int(_EPHEMERAL.read_text().split()[0])
    for _ in range(_TRIES if last > _FIRST else 0):
        port = random.randrange(_FIRST, last)
        if _can_listen(port):
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        # Without it, connections that a server left behind would count as a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def listener(port: int) -> bool:
    """Return whether anybody listens on a port of the loopback address."""
    return not _can_listen(port)


def foreign_listener(port: int, root: int) -> bool:
    """Return whether a process that is not below `root` listens on a port.

    Servers may share a port without an error (`SO_REUSEPORT`), and then a healthy answer may be
    another's. Where the kernel does not tell, the answer is no.
    """
    if sys.platform != "linux":
        return False
    sockets = _listening(port)
    if not sockets:
        return False
    for pid in (root, *descendants(root)):
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except FileNotFoundError:
            continue
        except OSError:
            return False  # in a container under another user: it may be its own
        for number in numbers:
            with contextlib.suppress(OSError):
                sockets.discard(os.readlink(f"/proc/{pid}/fd/{number}"))
    return bool(sockets)


def _listening(port: int) -> set[str]:
    """Return the sockets that get connections to a port of 127.0.0.1, as `/proc` names them."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, at = fields[1].partition(":")
                here = address.endswith(_LOOPBACK_V4) or not address.strip("0")
                if fields[3] == _LISTEN and int(at, 16) == port and here:
                    found.add(f"socket:[{fields[9]}]")
    return found
