"""One start of a node's server: its process under a guard, and the log it prints to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError
from scaleinfer.fleet import _guard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["ServerProcess", "log_tail", "start_process"]

_TAIL_BYTES = 16_384
# A process that waits for a device in the kernel ends only when the device lets it.
_UNKILLABLE_S = 10.0


class ServerProcess:
    """A server that runs, or has run.

    Args:
        process: The guard.
        pid: The server's process id, which is its group's and its session's too.
        stop_timeout: Seconds it has to end by itself.

    Attributes:
        pid: The server's process id.
        ended: Done once nothing of the server is left; the result is its exit status (negative:
            the signal), `None` if its guard was killed.
    """

    def __init__(self, process: asyncio.subprocess.Process, pid: int, stop_timeout: float) -> None:
        self.pid = pid
        self.guard_pid = process.pid
        self._process = process
        self._stop_timeout = stop_timeout
        self.ended: asyncio.Task[int | None] = asyncio.create_task(self._follow())

    async def _follow(self) -> int | None:
        assert self._process.stdout is not None
        status = None
        async for line in self._process.stdout:
            if line.startswith(b"exited "):
                status = int(line.split()[1])
        await self._process.wait()
        if status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._close_input()
        return status

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL to what is left after its grace."""
        self._close_input()
        await self._gone(self._stop_timeout)

    async def kill(self) -> None:
        """End it at once."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):  # it ended a moment ago
            self._process.stdin.write(b"kill\n")
        await self._gone(0.0)

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _gone(self, grace: float) -> None:
        done, _ = await asyncio.wait((self.ended,), timeout=grace + _UNKILLABLE_S)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self.ended


async def start_process(
    arguments: Sequence[str], environment: Mapping[str, str], *, log: Path, stop_timeout: float
) -> ServerProcess:
    """Start a server under its guard.

    Args:
        arguments: Program and arguments.
        environment: The whole of its environment.
        log: What it prints is appended to this file.
        stop_timeout: Seconds it has to end by itself when it is stopped.

    Raises:
        ConfigError: The program, or the guard, cannot be run.
    """
    # Isolated and without site: it starts in 40 ms, whatever the server's variables name.
    command = [sys.executable, "-I", "-S", _guard.__file__, str(stop_timeout), "--", *arguments]
    try:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )
    except OSError as error:
        what = error.filename or sys.executable
        raise ConfigError(f"{what} cannot be used: {error.strerror}.") from None
    assert process.stdout is not None
    first = (await process.stdout.readline()).decode(errors="replace").strip()
    kind, _, rest = first.partition(" ")
    if kind == "pid":
        return ServerProcess(process, int(rest), stop_timeout)
    assert process.stdin is not None
    process.stdin.close()
    status = await process.wait()
    # Until its end has been read, the pipe stays open.
    await process.stdout.read()
    raise ConfigError(
        f"{arguments[0]} cannot be run: {rest}."
        if kind == "error"
        else f"{arguments[0]} was not started; its guard ended with exit status {status}."
    )


def log_tail(log: Path, start: int, lines: int) -> str:
    """Return the last lines of a log, of what was written after byte `start`."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip() for line in text.splitlines()[-lines:])
