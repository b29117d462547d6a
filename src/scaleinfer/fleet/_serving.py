"""`Serving`: keeps one `NodeServer` running on this node."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaleinfer.backends.health import health_status
from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost
from scaleinfer.fleet._ports import foreign_listener, free_port, listener
from scaleinfer.fleet._server_process import ServerProcess, log_tail, start_process
from scaleinfer.fleet._watch import Again, GiveUp, Kill, Watch
from scaleinfer.fleet.node_server import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.fleet._watch import WatchState
    from scaleinfer.fleet.node_server import NodeServer

__all__ = ["Serving", "ServingChange", "ServingStatistics"]

_SHOWN_LINES = 10
_IN_USE = re.compile(r"address already in use|EADDRINUSE|Cannot listen on", re.IGNORECASE)
_SECRET = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServingChange:
    """What happened to a server.

    Attributes:
        index: Its number on the node.
        state: `starting` (its process runs), `ready`, `down` (it will be started again) or
            `failed` (given up).
        base_url: Where it is reached once it is ready. The same after a restart, unless
            somebody took its port meanwhile.
        message: In words, for a log.
        error: Why it was given up.
    """

    index: int
    state: Literal["starting", "ready", "down", "failed"]
    base_url: str
    message: str
    error: ScaleInferError | None = None


@dataclass(frozen=True, slots=True)
class ServingStatistics:
    """A server at one moment.

    Attributes:
        index: Its number on the node.
        state: `stopped`, `starting`, `ready`, `waiting` (for its restart) or `failed`.
        port: Where it listens; 0 before its first start.
        pid: Its process; `None` while there is none.
        restarts: How often it was started again.
        uptime_s: Seconds since it last became ready; 0 if it is not.
        ready_s: Seconds from its first start until it was ready; `None` before that.
        log: The file with what it printed.
    """

    index: int
    state: WatchState
    port: int
    pid: int | None
    restarts: int
    uptime_s: float
    ready_s: float | None
    log: str


class Serving:
    """Starts one server of a node, waits for its health, starts it again, and stops it.

    `async with` opens and closes it; that it is ready is said by `ready` and `on_change`.

    Args:
        server: What to run.
        index: Its number on the node, from 0 to `server.per_node - 1`.
        folder: Where its log goes, unless the server names a folder; default a new one among the
            temporary files.
        on_change: Called in the event loop with every change; must not raise.
        ports: Gives a port that is free.

    Attributes:
        server: What it runs.
        index: Its number on the node.
        log: The file with what it printed, once it was opened.
    """

    def __init__(
        self,
        server: NodeServer,
        index: int,
        folder: str | os.PathLike[str] | None = None,
        *,
        on_change: Callable[[ServingChange], None] | None = None,
        ports: Callable[[], int] = free_port,
    ) -> None:
        self.server = server
        self.index = index
        self.log = Path()
        self._folder = server.log_folder or folder
        self._node = socket.gethostname()
        self._on_change = on_change
        self._ports = ports
        self._port = 0
        self._process: ServerProcess | None = None
        self._start: asyncio.Task[ServerProcess] | None = None
        self._log_start = 0
        self._run: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[float] | None = None
        self._watch = Watch(
            ready_timeout=server.ready_timeout,
            restarts=server.restarts,
            check_every=server.check_every,
            failed_checks=server.failed_checks,
            seed=index,
        )

    @property
    def base_url(self) -> str:
        """Where an OpenAI-compatible adapter reaches it; known once it has a port."""
        return f"http://{HOST}:{self._port}{self.server.api}"

    async def __aenter__(self) -> Serving:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Begin to start the server; does not wait for it.

        Raises:
            ConfigError: The log's folder cannot be made, or this is Windows.
        """
        if sys.platform == "win32":
            raise ConfigError("A node's server needs Linux or macOS.")
        name = f"{self.server.name}-{self._node}-{os.getpid()}-{self.index}.log"
        try:
            self.log = Path(self._folder or tempfile.mkdtemp(prefix="scaleinfer-"), name)
            self.log = self.log.expanduser()
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        except OSError as error:
            raise ConfigError(
                f"The log {self.log} of {self.server.name} cannot be written on node "
                f"{self._node}: {error.strerror}.",
                hint="Set log_folder to a folder that the node can write to.",
            ) from None
        self._ready = asyncio.get_running_loop().create_future()
        self._run = asyncio.create_task(self._keep_running())

    async def ready(self) -> float:
        """Wait until it was ready for the first time; return the seconds that took.

        Raises:
            ConfigError: It cannot be started, ended, or was not ready in time.
            WorkerLost: It was closed before.
        """
        if self._ready is None:
            raise ConfigError("The server was not opened.")
        return await asyncio.shield(self._ready)

    def statistics(self) -> ServingStatistics:
        """Return where the server stands."""
        since = self._watch.ready_since
        first = self._ready
        known = first is not None and first.done() and first.exception() is None
        return ServingStatistics(
            index=self.index,
            state=self._watch.state,
            port=self._port,
            pid=None if self._process is None else self._process.pid,
            restarts=self._watch.restarts,
            uptime_s=0.0 if since is None else asyncio.get_running_loop().time() - since,
            ready_s=first.result() if first is not None and known else None,
            log=str(self.log),
        )

    async def aclose(self) -> None:
        """Stop the server; returns when no process of it is left.

        It has `stop_timeout` seconds after SIGTERM, then it is killed.
        """
        run, self._run = self._run, None
        if run is None:
            return
        run.cancel()
        try:
            await asyncio.wait((run,))
        finally:
            await asyncio.shield(self._stop())
        self._settle(WorkerLost(f"{self._title()} was stopped."))
        if not run.cancelled():
            run.result()

    async def _stop(self) -> None:
        if self._start is not None:
            await asyncio.wait((self._start,))
            if self._start.exception() is None:
                self._process = self._start.result()
        if self._process is not None:
            await self._process.stop()
        self._process = self._start = None
        self._watch.stopped()

    async def _keep_running(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        self._port = self._ports()
        while True:
            try:
                process = await self._begin()
            except ConfigError as error:
                self._give_up(ConfigError(f"{self._title()}: {error.message}", hint=error.hint))
                return
            killed, foreign = await self._follow(process, began)
            status = await asyncio.shield(process.ended)
            self._process = None
            text = log_tail(self.log, self._log_start, _SHOWN_LINES)
            taken = foreign or (killed is None and self._port_taken(text))
            verdict = self._watch.ended(clock(), killed=killed, port_taken=taken)
            what = "another process has its port" if foreign else _ending(killed, status)
            if isinstance(verdict, GiveUp):
                self._give_up(self._error(verdict, what, text))
                return
            await self._pause(verdict, what)

    def _port_taken(self, text: str) -> bool:
        return _IN_USE.search(text) is not None or listener(self._port)

    async def _begin(self) -> ServerProcess:
        server, index, port = self.server, self.index, self._port
        arguments = server.arguments(index, port)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        note = f"\n== {stamp} {server.name} {index} on port {port}: {_shown(arguments)}\n"
        self._log_start = _append(self.log, note)
        self._start = asyncio.create_task(
            start_process(
                arguments,
                server.environment(index, port, os.environ),
                log=self.log,
                stop_timeout=server.stop_timeout,
            )
        )
        # Cancelled in the middle of it, the process would be nobody's.
        process = await asyncio.shield(self._start)
        self._process, self._start = process, None
        self._watch.started(asyncio.get_running_loop().time())
        self._tell("starting", f"{self._title()} starts on port {port}.")
        return process

    async def _follow(self, process: ServerProcess, began: float) -> tuple[Kill | None, bool]:
        """Look at its health until it ends; return why it was killed, and if its port is taken."""
        clock, watch = asyncio.get_running_loop().time, self._watch
        url = f"http://{HOST}:{self._port}{self.server.health}"
        while True:
            pause = watch.next_check(clock()) - clock()
            await asyncio.wait((process.ended,), timeout=max(0.0, pause))
            healthy = not process.ended.done() and await self._check(process, url)
            if process.ended.done():
                return None, False
            if not healthy:
                if (killed := watch.failed(clock())) is not None:
                    await process.kill()
                    return killed, False
                continue
            if watch.state == "starting" and foreign_listener(self._port, process.guard_pid):
                await process.kill()
                return None, True
            if watch.passed(clock()):
                self._announce(clock() - began)

    async def _check(self, process: ServerProcess, url: str) -> bool:
        timeout = self.server.check_timeout
        check = asyncio.create_task(health_status(url, timeout=timeout))
        try:
            await asyncio.wait((check, process.ended), return_when=asyncio.FIRST_COMPLETED)
            return check.done() and check.result() == 200  # noqa: PLR2004 - HTTP's OK
        finally:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)

    def _announce(self, seconds: float) -> None:
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_result(seconds)
        self._tell("ready", f"{self._title()} is ready at {self.base_url}.")

    async def _pause(self, again: Again, what: str) -> None:
        clock = asyncio.get_running_loop().time
        seconds = max(0.0, again.at - clock())
        when = "on another port" if again.move else f"in {seconds:.1f} s"
        self._tell("down", f"{self._title()} {what}; it is started again {when}.")
        await asyncio.sleep(seconds)
        if again.move:
            self._port = self._ports()

    def _give_up(self, error: ScaleInferError) -> None:
        self._watch.gave_up()
        self._settle(error)
        self._tell("failed", str(error), error)

    def _settle(self, error: ScaleInferError) -> None:
        """Have `ready` raise, if it has not returned yet."""
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody need have asked

    def _tell(
        self,
        state: Literal["starting", "ready", "down", "failed"],
        message: str,
        error: ScaleInferError | None = None,
    ) -> None:
        if self._on_change is not None:
            self._on_change(ServingChange(self.index, state, self.base_url, message, error))

    def _title(self) -> str:
        return f"Server {self.server.name} {self.index} on node {self._node}"

    def _error(self, verdict: GiveUp, what: str, text: str) -> ScaleInferError:
        server = self.server
        why, hint = {
            "exited": (
                "before it was ready",
                "The command must serve in the foreground; run it on the node to see why it ends.",
            ),
            "late": (
                f"{server.ready_timeout:g} s after its start",
                f"It must answer http://{HOST}:PORT{server.health} with status 200; check that "
                "it listens on the port it was given, or raise ready_timeout.",
            ),
            "ports": ("on every port it was given", "Check what takes ports on this node."),
            "restarts": (
                f"after {server.restarts} restarts without becoming ready",
                "See its log.",
            ),
        }[verdict.why]
        shown = _shown(server.arguments(self.index, self._port))
        lines = "\n".join(f"  {line}" for line in text.splitlines()) or "  (nothing)"
        kind = WorkerLost if verdict.why == "restarts" else ConfigError
        return kind(
            f"{self._title()} {what} {why}. Command: {shown}. Log: {self.log}, which ends "
            f"with:\n{lines}\n",
            hint=hint,
        )


def _ending(killed: Kill | None, status: int | None) -> str:
    if killed is not None:
        return "did not become healthy" if killed == "late" else "stopped answering"
    if status is None:
        return "was lost with its guard"
    if status < 0:
        return f"was ended by signal {-status}"
    return f"ended with exit status {status}"


def _shown(arguments: list[str]) -> str:
    """Return a command line for people, without what looks like a secret."""
    shown, hide = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        names_one = option.startswith("-") and _SECRET.search(option) is not None
        if hide:
            shown.append("***")
        elif names_one and equals:
            shown.append(f"{option}=***")
        else:
            shown.append(argument)
        hide = names_one and not equals and not hide
    return shlex.join(shown)


def _append(log: Path, note: str) -> int:
    """Write a line of our own; return where what follows it begins."""
    try:
        with log.open("ab") as file:
            file.write(note.encode(errors="replace"))
            return file.tell()
    except OSError as error:
        raise ConfigError(f"the log {log} cannot be written: {error.strerror}.") from None
