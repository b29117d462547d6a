"""The agent that asks: it pulls work from a coordinator and has an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from academy.agent import Agent, action, loop
from academy.identifier import AgentId

from scaleinfer import __version__
from scaleinfer.errors import ConfigError, EndpointError, Permanent, ScaleInferError, WorkerLost
from scaleinfer.fleet._link import Link, LinkError, find_coordinator
from scaleinfer.fleet._serving import Serving
from scaleinfer.fleet._spec import WorkerSpec, node_backends
from scaleinfer.fleet._station import Station
from scaleinfer.fleet._status import WorkerFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from academy.handle import Handle

    from scaleinfer.backends import Backend
    from scaleinfer.fleet._serving import ServingChange
    from scaleinfer.fleet.coordinator import Coordinator
    from scaleinfer.fleet.node_server import NodeServer

__all__ = ["InferenceWorker"]

_REPLY_S = 10.0
_PAUSE_S = 1.0
_LOOK_AGAIN_S = 15.0
_STOP_S = 5.0
_MARGIN_S, _MARGIN_SHARE = 60.0, 0.2
_HAND_BACK_S = 8.0

log = logging.getLogger(__name__)


class InferenceWorker(Agent):
    """Pulls requests from a `Coordinator` and asks endpoints that its node reaches.

    Under a `Manager` of your own, give it the coordinator's handle:

        await manager.launch(InferenceWorker, args=(coordinator,), kwargs={"backend": "local"})

    Args:
        coordinator: The coordinator's handle; `None` to look for one of the fleet.
        backend: Endpoints: adapters, spec strings, or `module:function` for a function that
            returns adapters; `None` for what `parallel_map` would take on this node.
        server: A model server to start on the node instead.
        spec: Everything else; what is given above overrides it.
        fleet: Name of the fleet.
        model: Model to ask.
        concurrency: Calls in flight at each endpoint; `"auto"` finds the best number.
    """

    def __init__(
        self,
        coordinator: Handle[Coordinator] | None = None,
        *,
        backend: str | Backend | Sequence[str | Backend] | None = None,
        server: NodeServer | None = None,
        spec: WorkerSpec | None = None,
        fleet: str | None = None,
        model: str | None = None,
        concurrency: int | str | None = None,
    ) -> None:
        super().__init__()
        given = spec or WorkerSpec("")
        changes: dict[str, Any] = {"fleet": fleet, "model": model, "concurrency": concurrency}
        self._spec = replace(given, **{k: v for k, v in changes.items() if v is not None})
        self._server = server or self._spec.node_server()
        several = isinstance(backend, list | tuple)
        chosen: Any = backend if several else [] if backend is None else [backend]
        self._chosen: list[str | Backend] = list(chosen or self._spec.backend)
        self._coordinator = coordinator
        self._summary: dict[str, Any] = {}
        self._problem: ScaleInferError | None = None
        self._finished = asyncio.Event()
        self._backends: list[Backend] = []
        self._urls: set[str] = set()
        self._started = time.time()
        self._looked = False

    @property
    def problem(self) -> ScaleInferError | None:
        """Why the worker has ended before it was told to; else `None`."""
        return self._problem

    @property
    def summary(self) -> dict[str, Any]:
        """What the worker did, once it has ended."""
        return self._summary

    async def agent_on_startup(self) -> None:
        """Get ready to be asked; the endpoints are opened by the loop, which may take long."""
        name = self._spec.name or f"{socket.gethostname()}-{secrets.token_hex(3)}"
        until = _end_of_job(self._spec.walltime_s)
        facts = WorkerFacts(
            node=socket.gethostname(),
            pid=os.getpid(),
            model=self._spec.model,
            version=__version__,
            log=self._spec.log.format(name=name, node=socket.gethostname()),
            until=until,
        )
        self._station = Station(
            name,
            facts,
            retry=self._spec.retry_rules(),
            concurrency=self._spec.concurrency_or_none(),
            rate_limit=self._spec.rate_limit_or_none(),
            secret=self._spec.secret or None,
        )

    async def agent_on_shutdown(self) -> None:
        """Hand back what is not done."""
        self._station.leave()
        self._station.abandon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._finished.wait()

    @action
    async def describe(self) -> dict[str, Any]:
        """Return the worker's name and what is known of it."""
        return {"name": self._station.name, "facts": self._station.facts.to_dict()}

    @action
    async def drain(self) -> None:
        """Take no more work, finish what is in flight, and end."""
        self._station.leave()

    @loop
    async def work(self, shutdown: asyncio.Event) -> None:
        """Pull work until the coordinator says that it is over."""
        station = self._station
        began = time.monotonic()
        opening = asyncio.create_task(self._serve())
        try:
            await self._attend(shutdown)
        except ScaleInferError as error:
            self._problem = error
            log.error("%s", error)
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await station.aclose()
            await self._close()
            self._summary = {"name": station.name, "elapsed_s": time.monotonic() - began}
            self._finished.set()
            self.agent_shutdown()

    # -- the coordinator -------------------------------------------------------------------

    async def _attend(self, shutdown: asyncio.Event) -> None:
        """Exchange messages with the coordinator until it is over.

        Raises:
            ConfigError: The coordinator refuses this worker.
            WorkerLost: There is no coordinator any more.
        """
        station, heard = self._station, time.monotonic()
        link = await self._first_link(shutdown)
        while link is not None and not station.ended:
            await self._until_due(shutdown)
            self._mind_the_time(shutdown)
            message = station.message()
            try:
                reply = await link.send(message, timeout=max(_REPLY_S, 2 * station.interval))
            except LinkError as error:
                station.lost()
                if shutdown.is_set():
                    return  # the coordinator finds out by itself what is to be asked again
                silent = time.monotonic() - heard
                log.warning("No word of the coordinator for %.0f s: %s", silent, error)
                if silent > self._spec.patience_s:
                    raise self._alone(silent) from error
                await self._pause(shutdown)
                # Thousands that look at once would keep a busy coordinator from answering.
                if silent > 2 * station.interval:
                    link = await self._other_link(link)
                continue
            heard = time.monotonic()
            station.taken(reply)
            if station.refused:
                raise ConfigError(
                    f"the coordinator of {self._spec.fleet!r} refuses the worker {station.name} "
                    f"on {station.facts.node}: {station.refused}"
                )
            if message["leave"]:
                return

    async def _first_link(self, shutdown: asyncio.Event) -> Link | None:
        began = time.monotonic()
        while not shutdown.is_set():
            link = await self._found_link()
            if link is not None:
                return link
            silent = time.monotonic() - began
            if silent > self._spec.patience_s:
                raise self._alone(silent)
            await self._pause(shutdown)
        return None

    async def _found_link(self) -> Link | None:
        exchange, name = self.agent_exchange_client, self._station.name
        if self._coordinator is not None:
            return Link(self._coordinator.agent_id, exchange, name)
        if self._spec.coordinator and not self._looked:
            self._looked = True
            known: AgentId[Any] = AgentId(uid=UUID(self._spec.coordinator), name=None, role="agent")
            return Link(known, exchange, name)
        secret = self._spec.secret or None
        try:
            agent = await find_coordinator(exchange, self._spec.fleet, secret, name)
        except LinkError as error:
            log.warning("The exchange does not answer: %s", error)
            return None
        if agent is None:
            log.info("No coordinator of the fleet %r answers.", self._spec.fleet)
            return None
        return Link(agent, exchange, name)

    async def _other_link(self, link: Link) -> Link:
        """Look whether the fleet has another coordinator by now."""
        if self._coordinator is not None:
            return link
        return await self._found_link() or link

    def _alone(self, silent: float) -> ScaleInferError:
        spec = self._spec
        return WorkerLost(
            f"the worker {self._station.name} on {self._station.facts.node} has heard nothing of a "
            f"coordinator of the fleet {spec.fleet!r} for {silent:.0f} s and ends.",
            hint="Is the exchange the same on both sides, is the secret the fleet's, and does the "
            "client still run?",
        )

    async def _until_due(self, shutdown: asyncio.Event) -> None:
        station = self._station
        while not station.leaving or station.pending:
            left = station.due() - time.monotonic()
            if left <= 0 or shutdown.is_set():
                return
            station.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _PAUSE_S)):
                    await station.wake.wait()
            self._mind_the_time(shutdown)

    @staticmethod
    async def _pause(shutdown: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE_S):
                await shutdown.wait()

    def _mind_the_time(self, shutdown: asyncio.Event) -> None:
        """Near the end of its job, or told to stop: hand back what will not be done."""
        station, until = self._station, self._station.facts.until
        if shutdown.is_set():
            station.leave()
            station.abandon()
        if not until:
            return
        left = until - time.time()
        margin = min(_MARGIN_S, _MARGIN_SHARE * (until - self._started))
        if left < margin and not station.leaving:
            if not station.served:
                self._problem = ConfigError(
                    f"the job of {station.name} on {station.facts.node} ends in {left:.0f} s and "
                    "its endpoints are not ready yet.",
                    hint="Ask for a longer walltime: starting takes this long here."
                    + (f" Log: {station.facts.log}" if station.facts.log else ""),
                )
            station.leave()
        if left < min(_HAND_BACK_S, margin / 2):
            station.abandon()

    # -- the endpoints ---------------------------------------------------------------------

    async def _serve(self) -> None:
        """Open the endpoints, and open them again when they have stopped answering."""
        try:
            if self._server is not None:
                await self._serve_servers(self._server)
            else:
                await self._serve_backends()
        except ScaleInferError as error:
            self._problem = error
        except Exception as error:
            self._problem = ConfigError(f"{type(error).__name__}: {error}")
            log.exception("The endpoints cannot be opened.")
        if self._problem is not None:
            facts = self._station.facts
            self._problem.message += f" (worker {self._station.name} on node {facts.node})"
            log.error("%s", self._problem)
            self._station.broke(_as_endpoint_error(self._problem))
            self._station.leave()

    async def _serve_backends(self) -> None:
        backends = node_backends(self._chosen, model=self._spec.model, base_url=self._spec.base_url)
        self._backends += backends
        self._station.limit(backends)
        self._tell(backends)
        opened = await self._opened(backends)
        while True:
            if opened:
                self._station.serve(opened)
                await self._station.stopped.wait()
            await asyncio.sleep(_LOOK_AGAIN_S)
            opened = [one for one in await self._opened(backends) if (await one.check()).ok]

    async def _opened(self, backends: Sequence[Backend]) -> list[Backend]:
        opened: list[Backend] = []
        for backend in backends:
            try:
                await backend.open()
            except EndpointError as error:
                log.warning("%s", error)
                self._station.broke(error)
            else:
                opened.append(backend)
        return opened

    async def _serve_servers(self, server: NodeServer) -> None:
        changes: asyncio.Queue[ServingChange] = asyncio.Queue()
        log_file = self._station.facts.log
        folder = os.path.dirname(log_file) if log_file else None
        servings = [
            Serving(server, index, folder, on_change=changes.put_nowait)
            for index in range(server.per_node)
        ]
        try:
            for serving in servings:
                await serving.open()
            await self._follow(server, changes)
        finally:
            await asyncio.gather(*(serving.aclose() for serving in servings))

    async def _follow(self, server: NodeServer, changes: asyncio.Queue[ServingChange]) -> None:
        """Ask the servers that are ready.

        Raises:
            ScaleInferError: All of them were given up.
        """
        ready: dict[int, Backend] = {}
        failed = 0
        while True:
            change = await changes.get()
            log.info("%s", change.message)
            if change.state == "ready":
                await self._server_ready(server, change, ready)
            elif change.state in {"down", "failed"}:
                failed += change.state == "failed"
                self._server_down(change, ready)
            if failed == server.per_node:
                raise change.error or WorkerLost(change.message)

    async def _server_ready(
        self, server: NodeServer, change: ServingChange, ready: dict[int, Backend]
    ) -> None:
        from scaleinfer.backends.openai import OpenAIBackend

        backend = ready.get(change.index)
        if backend is None or change.base_url not in self._urls:
            model = server.model or self._spec.model
            backend = OpenAIBackend(change.base_url, model=model, api_key="")
            await backend.open()
            self._urls.add(change.base_url)
            self._backends.append(backend)
        ready[change.index] = backend
        self._tell(list(ready.values()))
        self._station.serve(list(ready.values()))

    def _server_down(self, change: ServingChange, ready: dict[int, Backend]) -> None:
        """One of several is left to the engine's breaker; the only one takes the work along."""
        if len(ready) > 1 and change.state == "failed":
            ready.pop(change.index, None)
            self._station.serve(list(ready.values()))
        elif len(ready) <= 1:
            self._station.serve([])
            self._station.abandon()

    def _tell(self, backends: Sequence[Backend]) -> None:
        station = self._station
        model = self._spec.model or next((b.model for b in backends if b.model), None)
        endpoints = tuple(backend.endpoint for backend in backends)
        station.facts = replace(station.facts, endpoints=endpoints, model=model)

    async def _close(self) -> None:
        for backend in self._backends:
            with contextlib.suppress(Exception):
                await backend.aclose()


def _as_endpoint_error(error: ScaleInferError) -> EndpointError:
    if isinstance(error, EndpointError):
        return error
    return Permanent(error.message, hint=error.hint, fatal=True)


def _end_of_job(walltime_s: float) -> float:
    """Return the Unix time at which the worker's job ends; 0 if it is not known."""
    if walltime_s > 0:
        return time.time() + walltime_s
    # Ours first; Slurm says so by itself since 22.05.
    for name in ("SCALEINFER_JOB_END", "SLURM_JOB_END_TIME"):
        given = os.environ.get(name, "")
        if given.isdigit():
            return float(given)
    return 0.0
