"""A simulated server in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import fields
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self

import orjson

from scaleinfer._loop import new_event_loop
from scaleinfer.errors import ConfigError
from scaleinfer.testing._changes import Change
from scaleinfer.testing._ledger import Ledger
from scaleinfer.testing._server import SimulatedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    from scaleinfer.testing._changes import What
    from scaleinfer.testing._settings import Settings

__all__ = ["ServerProcess", "main", "raise_file_limit", "serve_in_this_process"]

_PARENT_CHECK_SECONDS = 0.5
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0


class ServerProcess:
    """A simulated server in another process; a context manager.

    It does not end with its clients, but with the process that made it, even if that is
    killed. `ledger` is a snapshot, fetched anew each time it is read; after the end it is the
    last one, taken right before the server stopped.

    Args:
        settings: How it is to behave.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._last: Ledger | None = None
        self._port = self._control_port = 0

    def start(self) -> None:
        """Start the process and wait until it listens.

        Raises:
            ConfigError: A callable cannot be sent to the process, or the server cannot start.
        """
        parcel = _pack(self._settings)
        # The server must not hear the Ctrl-C that is meant for its clients.
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", "from scaleinfer.testing._process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(_START_SECONDS, process.kill)
        watchdog.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(parcel)
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        report: dict[str, Any] = orjson.loads(line) if line else {}
        if "port" not in report:
            self._end()
            raise ConfigError(
                "The simulated server's process did not start: "
                + report.get("error", f"it ended with status {process.returncode}."),
            )
        self._port, self._control_port = report["port"], report["control"]

    @property
    def base_url(self) -> str:
        """The URL to give to a client: `http://127.0.0.1:PORT/v1`."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The process's id; `None` if it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is now.

        Raises:
            ConfigError: The server did not run yet, or its process is dead.
        """
        if self._process is None:
            if self._last is None:
                raise ConfigError("This simulated server has not run yet, so it has no ledger.")
            return self._last
        return Ledger.from_dict(self._fetch("/ledger"))

    def statistics(self) -> dict[str, Any]:
        """Return the ledger's totals without fetching all of it; statuses are strings here."""
        return self._fetch("/ledger/statistics")

    def change(self, **what: Unpack[What]) -> None:
        """Become another server from now on, see `SimulatedServer.change`.

        Raises:
            ConfigError: A value that cannot be, or the process is dead.
        """
        named = Change(**what).what
        # JSON has no infinity.
        asked = {name: None if value == math.inf else value for name, value in named.items()}
        self._fetch("/control", orjson.dumps(asked))

    def stop(self) -> None:
        """Take a last snapshot of the ledger and end the process."""
        if self._process is not None:
            with contextlib.suppress(ConfigError):
                self._last = self.ledger
            self._end()

    def _fetch(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self._control_port, timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            return dict(orjson.loads(connection.getresponse().read()))
        except OSError as error:
            raise ConfigError(
                f"The simulated server on port {self._port} does not answer: {error}."
            ) from error
        finally:
            connection.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _pack(settings: Settings) -> bytes:
    """Return the settings as bytes.

    Raises:
        ConfigError: They hold a callable that has no name in a module.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    _refuse_main(values)
    try:
        return pickle.dumps(values)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"This simulated server cannot run in a process of its own: {error}.",
            hint="Its callables must be functions of an importable module, not lambdas.",
        ) from error


def _refuse_main(values: dict[str, Any]) -> None:
    callables = [values["latency"], values["answer"], values["prompt_of"]]
    callables += [fault.match for fault in values["faults"]]
    for function in callables:
        if callable(function) and getattr(function, "__module__", "") == "__main__":
            name = getattr(function, "__name__", repr(function))
            raise ConfigError(
                f"{name} belongs to __main__, which the server's process cannot import.",
                hint="Put it into a module, or use in_thread().",
            )


def main() -> None:
    """Serve in this process what the parent sent over standard input, until it ends."""
    parent = os.getppid()
    try:
        server = SimulatedServer(**pickle.load(sys.stdin.buffer))
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve_in_this_process([server], _tell_parent, parent=parent))
    except Exception as error:  # the parent raises it
        _tell({"error": f"{type(error).__name__}: {error}"})


def _tell_parent(server: SimulatedServer) -> None:
    _tell({"port": server.port, "control": server.control_port})


def _tell(report: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(report) + b"\n")
    sys.stdout.buffer.flush()


async def serve_in_this_process(
    servers: Sequence[SimulatedServer],
    on_open: Callable[[SimulatedServer], None],
    *,
    parent: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent is gone.

    Args:
        servers: What to serve.
        on_open: Called with each once it listens.
        parent: Process whose end is ours: watched by its end of our standard input, and by
            its id, because a child of the parent may hold that pipe open.
    """
    raise_file_limit()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    if parent is not None:
        threading.Thread(target=_await_end_of_input, args=(loop, stop), daemon=True).start()
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await server.open(control=parent is not None)
            stack.push_async_callback(server.aclose)
            on_open(server)
        while not stop.is_set():
            if parent is not None and os.getppid() != parent:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PARENT_CHECK_SECONDS):
                    await stop.wait()


def _await_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read, because a thread in sys.stdin's lock would make the interpreter's exit abort.
    while os.read(0, 1):
        pass
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(stop.set)


def raise_file_limit() -> None:
    """Let this process have as many open connections as the system allows it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
