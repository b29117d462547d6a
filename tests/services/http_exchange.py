"""Academy's own HTTP exchange, as its documentation starts it: with a configuration file."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from tests.services.redis import free_port, wait_for_port

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HttpExchange"]


class HttpExchange:
    """An exchange on a port of its own, whose mailboxes are in memory: a restart loses them.

    Args:
        folder: Where its configuration and log are kept.
        host: Address to listen on.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self.host = host
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "exchange.toml"
        self._config.write_text(f'host = "{host}"\nport = {self.port}\n', "utf-8")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """The text for `exchange_factory`."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The running server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        command = [sys.executable, "-m", "academy.exchange.cloud", "--config", str(self._config)]
        with (self._folder / "exchange.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
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
