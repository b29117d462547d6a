"""A real Redis server with its data on disk, which a test can kill and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Redis", "free_port", "wait_for_port"]

_PATIENCE_S = 20.0


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], host: str = "127.0.0.1") -> None:
    """Wait until a process listens."""
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {host}:{port}")


def _installed() -> str:
    """Find the server; CI installs it, any other machine without one skips the test."""
    found = shutil.which("redis-server")
    if found is None and os.environ.get("CI") and os.geteuid() == 0:
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], check=True, **quiet)  # type: ignore[call-overload] # a dict of keywords
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "redis-server"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, **quiet)  # type: ignore[call-overload] # as above
        found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    return found


class Redis:
    """A server on a port of its own.

    Args:
        folder: Where its data and log are kept.
        password: What clients must give, if anything.
        host: Address to listen on.
        keep: Whether what it holds survives a restart.
    """

    def __init__(
        self, folder: Path, *, password: str = "", host: str = "127.0.0.1", keep: bool = True
    ) -> None:
        self._program = _installed()
        self._folder = folder
        self._password = password
        self._keep = keep
        self.host = host
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The text for `exchange_factory`."""
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The running server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again on the same port with what it held."""
        options = ["--port", str(self.port), "--bind", self.host, "--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "yes" if self._keep else "no"]
        options += ["--appendfsync", "always"] if self._keep else []
        options += ["--requirepass", self._password] if self._password else []
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, *options], stdout=log, stderr=log)
        wait_for_port(self.port, self._process, self.host)

    def kill(self) -> None:
        """Kill it with -9, as a node that dies does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *, away_s: float = 0.0) -> None:
        """Kill it and start it again."""
        self.kill()
        time.sleep(away_s)
        self.start()

    def command(self, *words: str) -> str:
        """Run one command in `redis-cli` and return what it printed."""
        cli = shutil.which("redis-cli")
        assert cli is not None
        login = ["-a", self._password, "--no-auth-warning"] if self._password else []
        done = subprocess.run(
            [cli, "-h", self.host, "-p", str(self.port), *login, *words],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()
