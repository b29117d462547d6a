"""Follows whether a model on a cluster of FIRST runs, and starts it where a request does that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING

from scaleinfer.errors import RateLimited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scaleinfer.backends._first_gateway import Gateway
    from scaleinfer.backends._first_state import FirstState

__all__ = ["Watcher"]

_JITTER = 0.2


class Watcher:
    """Looks at a model's state while it does not run; a task of one event loop.

    Args:
        gateway: Whom to ask; open.
        state: Is kept up to date.
        cluster: The cluster.
        framework: Its framework.
        poll_s: Seconds between two looks, give or take a fifth.
        learn_limits: Asks for the model's limits; nothing is sent before.
        warm_up: Sends a small request that starts the model; returns whether it was answered.
    """

    def __init__(
        self,
        gateway: Gateway,
        state: FirstState,
        *,
        cluster: str,
        framework: str,
        poll_s: float,
        learn_limits: Callable[[], Awaitable[None]],
        warm_up: Callable[[], Awaitable[bool]],
    ) -> None:
        self._gateway = gateway
        self._state = state
        self._cluster = cluster
        self._framework = framework
        self._poll_s = poll_s
        self._learn_limits = learn_limits
        self._warm_up = warm_up
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch())

    def changed(self) -> None:
        """The model runs now and did not, or the other way round; from any thread."""
        with contextlib.suppress(RuntimeError):  # that loop has ended
            self._loop.call_soon_threadsafe(self._changed.set)

    async def aclose(self) -> None:
        """End it, and a request that was to start the model."""
        tasks = [task for task in (self._task, self._warming) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Ask for the model's state; what goes wrong there is no reason to hold calls back."""
        state, before = self._state, self._state.phase
        try:
            jobs = await self._gateway.jobs(self._cluster)
        except RateLimited:
            return
        except Exception as error:
            # Of whatever kind: with nobody looking, calls would wait for ever.
            _log(f"{self._cluster} does not tell what runs: {error!r}")
            state.not_told(time.monotonic())
            return
        state.told(jobs, self._framework, time.monotonic())
        if state.phase not in ("", before):
            _log(f"{state.phase} ({state.model})")

    async def _watch(self) -> None:
        await self._learn_limits()
        await self.look()
        while True:
            self._changed.clear()
            if self._state.hot:
                await self._changed.wait()
                continue
            if self._state.wants_warm_up and (self._warming is None or self._warming.done()):
                self._state.warm_up_began()
                self._warming = asyncio.create_task(self._start_model())
            # After a refusal too: what `/jobs` tells at once is older than the refusal.
            wait = self._poll_s * random.uniform(1 - _JITTER, 1 + _JITTER)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            if not self._state.hot:
                await self.look()

    async def _start_model(self) -> None:
        """Start the model with one small request."""
        try:
            answered = await self._warm_up()
        except Exception as error:
            _log(f"{self._cluster}: the request that starts {self._state.model} failed: {error}")
        else:
            if answered:
                self._state.answered(time.monotonic())
                self._changed.set()
        finally:
            self._state.warm_up_ended()


def _log(line: str) -> None:
    logging.getLogger("scaleinfer").info(line)
