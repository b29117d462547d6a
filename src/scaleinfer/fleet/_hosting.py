"""Runs an Academy agent beside other things in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from academy.agent import Agent
    from academy.exchange import ExchangeFactory

__all__ = ["AgentHost", "json_runtime_config"]

_PAUSE_S = 1.0

log = logging.getLogger(__name__)


def json_runtime_config() -> Any:
    """Return the configuration of an agent that sends JSON and unpickles nothing."""
    from academy.runtime import RuntimeConfig
    from academy.serialize import SerializationStrategy

    return RuntimeConfig(
        allowed_deserializers={SerializationStrategy.JSON},
        default_serializer=SerializationStrategy.JSON,
    )


class AgentHost:
    """Keeps an agent running while the context is open, in a task of its own.

    The runtime sets context variables, which must not leak into the user's code. If it ends by
    itself, because its exchange is gone for longer than it can bear, the agent is registered
    anew and runs again; those who look for it find it.

    Args:
        make: Makes the agent, each time it starts.
        kind: Its class, for the registration.
        factory: The exchange.
        name: Its name there.
    """

    def __init__(
        self,
        make: Callable[[], Agent],
        kind: type[Agent],
        factory: ExchangeFactory[Any],
        name: str,
    ) -> None:
        self.agent_id = ""
        self._make = make
        self._kind = kind
        self._factory = factory
        self._name = name
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running())
        try:
            await self._ready
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._end()

    async def _end(self) -> None:
        self._stop.set()
        task = self._task
        if task is not None:
            _, running = await asyncio.wait({task}, timeout=5.0)
            if running:
                task.cancel()
                await asyncio.wait({task}, timeout=5.0)

    async def _keep_running(self) -> None:
        from scaleinfer.fleet.exchange import json_only

        assert self._ready is not None
        with json_only():
            while not self._stop.is_set():
                try:
                    await self._run()
                except Exception as error:
                    if not self._ready.done():
                        self._ready.set_exception(error)
                        return
                    log.warning("%s runs again after %s: %s", self._name, type(error), error)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_PAUSE_S):
                            await self._stop.wait()

    async def _run(self) -> None:
        from academy.runtime import Runtime

        client = await self._factory.create_user_client(start_listener=False)
        try:
            registration = await client.register_agent(self._kind, name=self._name)
            runtime = Runtime(
                self._make(),
                exchange_factory=self._factory,
                registration=registration,
                config=json_runtime_config(),
            )
            async with runtime:
                self.agent_id = str(registration.agent_id.uid)
                assert self._ready is not None
                if not self._ready.done():
                    self._ready.set_result(None)
                stopped = asyncio.create_task(self._stop.wait())
                ended = asyncio.create_task(runtime.wait_shutdown())
                await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
                for task in (stopped, ended):
                    task.cancel()
                await asyncio.gather(stopped, ended, return_exceptions=True)
        finally:
            with contextlib.suppress(Exception):
                await client.close()
