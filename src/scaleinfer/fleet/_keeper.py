"""Keeps a fleet's workers: starts them, and starts others for those that end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from scaleinfer.fleet._broker import Broker
    from scaleinfer.fleet._launch import Launcher
    from scaleinfer.fleet._scaling import Scaling
    from scaleinfer.fleet._spec import WorkerSpec

__all__ = ["Keeper"]

_LOOK_S = 0.5


class Keeper:
    """Has a launcher start as many workers as there should be.

    Args:
        launcher: Starts them.
        broker: Knows which have come, and what there is to do.
        scaling: Says how many there should be.
        spec: What they are started with; each gets a name of its own.
        folder: Where logs are, for messages.
        said: Called with one line for what happens.
    """

    def __init__(  # noqa: PLR0917 - all that keeping workers needs
        self,
        launcher: Launcher,
        broker: Broker,
        scaling: Scaling,
        spec: WorkerSpec,
        folder: Path,
        said: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._broker = broker
        self._scaling = scaling
        self._spec = spec
        self._folder = folder
        self._said = said
        self._running: dict[Future[str], str] = {}
        self._launched = 0
        self._last_error: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def running(self) -> int:
        """Workers that were started and have not ended."""
        return sum(not future.done() for future in self._running)

    @property
    def closing(self) -> int:
        """Workers that were told to end and are about to."""
        told = self._broker.sent_home
        return sum(not future.done() and told(name) for future, name in self._running.items())

    @property
    def failed(self) -> bool:
        """True if a worker has ended with an error."""
        return self._last_error is not None

    def look_again(self) -> None:
        """Something has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Keep workers until cancelled."""
        while True:
            self._look(time.monotonic())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()

    def _look(self, now: float) -> None:
        table, broker = self._broker.table, self._broker
        # A batch system may tell a minute later that a worker has ended.
        here = [name for name in self._running.values() if not broker.has_left(name)]
        wanted = self._scaling.look(
            now,
            started=len(here),
            joined=table.workers,
            tasks=len(table),
            room=table.room,
        )
        for _ in range(wanted.start):
            self._start()
        if wanted.end:
            broker.dismiss(wanted.end)
        if wanted.give_up and broker.problem is None:
            broker.fail(self._why_none())

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._launched += 1
        name = f"{self._spec.fleet}-{self._launched}"
        future = self._launcher.start(replace(self._spec, name=name).to_json())
        self._running[future] = name

        def tell(ended: Future[str]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the fleet
                loop.call_soon_threadsafe(self._worker_ended, ended)

        future.add_done_callback(tell)

    def _worker_ended(self, future: Future[str]) -> None:
        name = self._running.pop(future)
        if self._broker.ending:
            return
        error = future.exception()
        if self._broker.has_left(name) and not isinstance(error, ConfigError):
            # One that was told to go may yet be reported as lost with its job.
            error = None
        came, answered = self._broker.knew(name), self._broker.table.statistics().answered
        self._scaling.ended(
            time.monotonic(),
            failed=error is not None,
            came=came,
            # Where anything was answered, the settings are right.
            hopeless=isinstance(error, ConfigError) and not answered,
        )
        if error is not None:
            self._last_error = error
            self._said(f"{name} has ended: {error}")
        # No need to wait until its silence is noticed.
        self._broker.lost(name, "has ended")
        self._changed.set()

    def _why_none(self) -> ScaleInferError:
        error = self._last_error
        if isinstance(error, ConfigError):
            return error
        return WorkerLost(
            f"no worker of the fleet {self._spec.fleet} could be started "
            f"({self._launcher.name}): {error or type(error).__name__}",
            hint=f"Logs are in {self._folder}.",
        )
