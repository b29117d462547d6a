"""Starting workers: the contract of everything that can, and processes on this machine."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import orjson

from scaleinfer.errors import WorkerLost, error_from_dict

if TYPE_CHECKING:
    import os

__all__ = ["FAILED", "Launcher", "LocalLauncher"]

FAILED = 3
"""Exit status of a worker that says on its standard output, as JSON, what went wrong."""

_STOP_S = 10.0
_LAST_LINES = 8


class Launcher(Protocol):
    """Starts workers somewhere.

    Attributes:
        name: What it is, for messages: `slurm`, `local processes`, ...
        max_workers: Most workers it can have at once; `None` for any number.
    """

    name: str
    max_workers: int | None

    def start(self, spec: str) -> Future[str]:
        """Begin one worker.

        Args:
            spec: What it is started with (`WorkerSpec.to_json`).

        Returns:
            A future that ends when the worker has ended, with a summary as JSON, or with an
            exception that says why, and names node and log.
        """

    def close(self) -> None:
        """Leave nothing behind: no process, no job, no connection."""


class LocalLauncher:
    """Workers as processes on this machine; they end when this process does.

    Args:
        folder: Where each writes its log.
    """

    name = "local processes"
    max_workers: int | None = None

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._started = 0

    def start(self, spec: str) -> Future[str]:
        """Begin one worker; see `Launcher.start`."""
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            self._started += 1
            log = self._folder / f"worker-{self._started}.log"
        thread = threading.Thread(target=self._run, args=(spec, log, future), daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()
        return future

    def processes(self) -> list[int]:
        """Return the process identifiers of the workers that run."""
        with self._lock:
            return list(self._running)

    def close(self) -> None:
        """End all workers: asked first, killed after some seconds."""
        with self._lock:
            running = list(self._running.values())
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in self._threads:
            thread.join()

    def _run(self, spec: str, log: Path, future: Future[str]) -> None:
        try:
            future.set_result(self._done(spec, log))
        except BaseException as error:
            future.set_exception(error)

    def _done(self, spec: str, log: Path) -> str:
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "scaleinfer.fleet._entry"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,  # a Ctrl-C is the client's to handle
            )
        with self._lock:
            self._running[process.pid] = process
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(spec.encode() + b"\n")
                process.stdin.flush()
            # Its standard input stays open: its end tells the worker that we are gone.
            summary = process.stdout.read()
            status = process.wait()
        finally:
            with self._lock:
                del self._running[process.pid]
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if status == FAILED:
            error = error_from_dict(orjson.loads(summary))
            error.hint = f"{error.hint} Its log: {log}".strip()
            raise error
        if status:
            raise WorkerLost(f"the worker process {process.pid} {_ended(status)}{last_lines(log)}")
        return summary.decode()


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def last_lines(log: Path) -> str:
    """Return where a log is and how it ends, for an error's message."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    end = "\n".join(lines[-_LAST_LINES:])
    return f"; its log {log}" + (f" ends with:\n{end}" if end else " is empty")
