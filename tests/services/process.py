"""Processes that a test service starts: waited for, logged, and ended by process id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TAIL = 2000


class MissingServiceError(Exception):
    """A service cannot run on this machine: what is missing, and how to get it."""


def in_ci() -> bool:
    """Say whether a missing service is a failure rather than a reason to skip."""
    return bool(os.environ.get("CI"))


def free_port() -> int:
    """Find a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Say whether something accepts connections on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Process:
    """One child in a session of its own, its output in a log file."""

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], name: str
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until it serves; raises RuntimeError with its last words if it does not."""
        deadline = time.monotonic() + timeout
        while not ready():
            code = self._child.poll()
            if code is not None or time.monotonic() > deadline:
                how = f"not ready after {timeout:.0f} s" if code is None else f"ended with {code}"
                self.stop()
                raise RuntimeError(f"{self.name} {how}; {self.log}:\n{self.last_words()}")
            time.sleep(0.1)

    def last_words(self) -> str:
        """Return the end of the log."""
        return self.log.read_text("utf-8", "replace")[-_TAIL:]

    def stop(self, patience: float = 15.0) -> None:
        """Ask it to end, then end it and whatever it left in its session."""
        if self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def wait_for_the_end() -> None:
    """Wait for Ctrl-C or SIGTERM, so that what runs by hand is put away by either."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def end_all_that_name(marker: str, patience: float = 10.0) -> list[str]:
    """End every process whose environment or command line holds `marker`, a unique folder.

    Daemons of a service leave its session, so their process ids are not ours to know.

    Returns:
        The names of those that had to be killed.
    """
    found = [process for process in psutil.process_iter() if _names(process, marker)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience)
    return [str(process) for process in alive]


def _names(process: psutil.Process, marker: str) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        texts = [*process.cmdline(), *process.environ().values()]
    except psutil.Error:
        return False
    return any(marker in text for text in texts)
