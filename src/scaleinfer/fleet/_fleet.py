"""`Fleet`: an exchange, a coordinator beside the maps that use it, and workers on nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from scaleinfer.backends import resolve_backend
from scaleinfer.engine import Concurrency
from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost
from scaleinfer.fleet._backend import FleetBackend
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._scaling import Scaling
from scaleinfer.fleet._spec import KINDS, WorkerSpec

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from academy.exchange import ExchangeClient
    from academy.handle import Handle

    from scaleinfer.engine import RateLimit, Retry
    from scaleinfer.fleet._client import RemoteBroker
    from scaleinfer.fleet._launch import Launcher
    from scaleinfer.fleet._status import FleetStatus
    from scaleinfer.fleet.coordinator import Coordinator
    from scaleinfer.fleet.node_server import NodeServer

__all__ = ["Fleet", "WorkerOptions"]

_LOOK_S = 0.5
_END_S = 15.0
_WAIT_S = 0.05

log = logging.getLogger(__name__)


class WorkerOptions(TypedDict, total=False):
    """What every way to make a `Fleet` takes, all of it optional.

    Attributes:
        backend: What workers ask: spec strings (`"local"`, a URL, ...), or `module:function` for
            a function that returns an adapter on the node. An adapter made here stays here.
        model: Model to ask.
        base_url: Address of an OpenAI-compatible server that the nodes reach.
        server: A model server that each worker starts on its node.
        concurrency: Calls in flight at each endpoint; `"auto"` finds the best number.
        rate_limit: Requests and tokens a minute at each endpoint.
        retry: How workers try failed calls again.
        exchange: Where messages go; see `exchange_factory`. Default an HTTP exchange of the
            fleet's own.
        name: Name of the fleet. Workers that have lost their coordinator look for a new one of
            the same name.
        secret: What workers must show; made up by default.
        min_workers: Workers that are kept without work.
        max_workers: Most workers; more are started while there is work for them.
        idle_s: Seconds without work after which a worker beyond `min_workers` is ended.
        walltime_s: Seconds after which a worker's job ends, where the batch system does not
            tell the job.
        folder: Where logs are written; all nodes should see it.
        on_event: Called with one line for every worker that comes, goes or breaks.
    """

    backend: str | Sequence[str] | None
    model: str | None
    base_url: str | None
    server: NodeServer | None
    concurrency: int | Concurrency | str
    rate_limit: RateLimit | None
    retry: Retry | None
    exchange: Any
    name: str | None
    secret: str | None
    min_workers: int | None
    max_workers: int | None
    idle_s: float
    walltime_s: float
    folder: str | os.PathLike[str] | None
    on_event: Callable[[str], None] | None


class Fleet:
    """Workers on nodes that maps share.

    ```python
    async with Fleet.local(4, backend="local") as fleet:
        results = await parallel_map(items, prompt_fn, fleet=fleet)
    ```

    Made by `Fleet.local`, `parsl`, `slurm`, `pbs`, `globus_compute` or `attach`. Opened with
    `async with`, which returns as soon as the coordinator listens: maps wait for the workers.
    Belongs to the event loop that opened it.

    Args:
        launcher: Starts workers; called with the folder for logs. `None` if they are started by
            hand.
        workers: How many to start.
        host: Address that the fleet's own exchange listens on, which the nodes reach.
        options: See `WorkerOptions`.

    Attributes:
        name: The fleet's name.
        model: The model that workers ask, if it is known.
        folder: Where logs are; known once open.
        loop: The event loop that opened it; `None` while it is not open.
    """

    def __init__(
        self,
        launcher: Callable[[Path], Launcher] | None,
        workers: int,
        *,
        host: str = "127.0.0.1",
        **options: Unpack[WorkerOptions],
    ) -> None:
        least, most = options.get("min_workers"), options.get("max_workers")
        if workers < 0 or (launcher is not None and workers < 1):
            raise ConfigError(f"a fleet needs at least one worker, not {workers}.")
        if not 0 <= (workers if least is None else least) <= (most or workers):
            raise ConfigError(
                f"min_workers={least} and max_workers={most} do not go together with {workers}."
            )
        self.name = options.get("name") or f"fleet-{secrets.token_hex(3)}"
        self.loop: asyncio.AbstractEventLoop | None = None
        self.folder = Path()
        self._launcher_of = launcher
        self._launcher: Launcher | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._last_error: BaseException | None = None
        self._options = options
        self._host = host
        self._secret = (
            secrets.token_urlsafe(16) if options.get("secret") is None else options.get("secret")
        )
        self._exchange = options.get("exchange")
        self._scaling = Scaling(
            least=workers if least is None else least,
            most=most or workers,
            first=workers,
            idle_s=options.get("idle_s", 60.0),
        )
        self._spec = self._worker_spec()
        self.model = self._spec.model or _model_of(self._spec)
        self._broker: Broker | RemoteBroker | None = None
        self._remote: tuple[Handle[Coordinator], ExchangeClient[Any] | None] | None = None
        self._stack = AsyncExitStack()
        self._running: dict[Future[str], str] = {}
        self._launched = 0
        self._changed = asyncio.Event()

    # -- ways to make one ------------------------------------------------------------------

    @classmethod
    def local(cls, workers: int = 2, **options: Unpack[WorkerOptions]) -> Self:
        """Return a fleet of processes on this machine.

        Args:
            workers: How many.
            options: See `WorkerOptions`.
        """
        from scaleinfer.fleet._launch import LocalLauncher

        return cls(LocalLauncher, workers, **options)

    @classmethod
    def attach(cls, exchange: Any, /, **options: Unpack[WorkerOptions]) -> Self:
        """Return a fleet whose workers are started by hand, in any number and at any time.

        On each node: `scaleinfer worker --exchange URL --fleet NAME --backend ...`, with the
        secret, if there is one, in the variable `SCALEINFER_FLEET_SECRET`.

        Args:
            exchange: Where messages go; see `exchange_factory`.
            options: See `WorkerOptions`. What concerns how workers ask is theirs to say. Without
                `secret` every worker is let in.
        """
        options["exchange"] = exchange
        options.setdefault("secret", "")
        return cls(None, 0, **options)

    @classmethod
    def of(
        cls,
        coordinator: Handle[Coordinator],
        *,
        name: str = "fleet",
        secret: str | None = None,
        model: str | None = None,
        exchange: ExchangeClient[Any] | None = None,
    ) -> Self:
        """Return the fleet of a coordinator that runs elsewhere, for maps in this process.

        For agents and programs with an exchange client of their own: the handle is one they
        got from their `Manager`, or the like.

        Args:
            coordinator: Its handle.
            name: The fleet's name there.
            secret: What it wants to be shown.
            model: The model that its workers ask, for journals.
            exchange: The client to send by; default the one that the context or handle has.
        """
        options: WorkerOptions = {"name": name, "secret": secret or "", "model": model}
        fleet = cls(None, 0, **options)
        fleet._remote = coordinator, exchange
        return fleet

    # -- opening and closing ---------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self.loop is not None:
            raise ConfigError(f"the fleet {self.name} is open already.")
        self.loop = asyncio.get_running_loop()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    @property
    def broker(self) -> Broker | RemoteBroker:
        """Where requests wait for workers."""
        if self._broker is None:
            raise ConfigError(f"the fleet {self.name} is not open.", hint="async with fleet: ...")
        return self._broker

    def backend(self, *, priority: int = 0) -> FleetBackend:
        """Return the adapter through which one map uses the fleet."""
        return FleetBackend(self, priority=priority)

    def status(self) -> FleetStatus:
        """Return where the fleet stands.

        Raises:
            ConfigError: It is not open.
        """
        return self.broker.status()

    async def ready(self, workers: int = 1, *, timeout: float | None = None) -> None:
        """Wait until so many workers are there.

        Raises:
            TimeoutError: They did not come in time.
            ScaleInferError: None can be started.
        """
        async with asyncio.timeout(timeout):
            while self.broker.workers < workers:
                if self.broker.problem is not None:
                    raise self.broker.problem
                await asyncio.sleep(_WAIT_S)

    # -- the inside ------------------------------------------------------------------------

    async def _open(self) -> None:
        stack = self._stack
        if self._remote is not None:
            await self._open_remote(*self._remote)
            return
        given = self._options.get("folder")
        self.folder = Path(given or tempfile.mkdtemp(prefix=f"scaleinfer-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._broker = broker = Broker(self.name, secret=self._secret or None)
        broker.on_change = self._said
        exchange: Any = self._exchange
        if exchange is None:
            from scaleinfer.fleet._serve_exchange import serve_exchange

            exchange = await stack.enter_async_context(
                serve_exchange(log=self.folder / "exchange.log", host=self._host)
            )
        agent = await self._coordinate(exchange, broker)
        if self._launcher_of is None:
            return
        from scaleinfer.fleet.exchange import exchange_spec

        text: str | None = exchange if isinstance(exchange, str) else exchange_spec(exchange)
        if text is None or text == "local":
            raise ConfigError(
                f"workers in other processes cannot reach the exchange {exchange!r}.",
                hint="Name it by a URL: 'redis://host:port', 'http://host:port'.",
            )
        self._spec = replace(self._spec, exchange=text, coordinator=agent)
        self._launcher = self._launcher_of(self.folder)
        self._keeping = asyncio.create_task(self._keep_workers(self._launcher, broker))

    async def _open_remote(
        self, coordinator: Handle[Coordinator], exchange: ExchangeClient[Any] | None
    ) -> None:
        from scaleinfer.fleet._client import RemoteBroker
        from scaleinfer.fleet._link import Link

        sender = f"client-{secrets.token_hex(4)}"
        link = Link(coordinator.agent_id, exchange or coordinator.exchange, sender)
        broker = RemoteBroker(link, self.name, self._secret or None)
        running = asyncio.create_task(broker.run())

        async def stop() -> None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        self._stack.push_async_callback(stop)
        self._broker = broker

    async def _coordinate(self, exchange: Any, broker: Broker) -> str:
        """Run the coordinator's agent; return its identifier."""
        from scaleinfer.fleet._hosting import AgentHost
        from scaleinfer.fleet.coordinator import Coordinator
        from scaleinfer.fleet.exchange import check_exchange, exchange_factory

        factory = exchange_factory(exchange)
        await check_exchange(factory)
        secret = self._secret or None
        host = AgentHost(
            lambda: Coordinator(self.name, secret=secret, broker=broker),
            Coordinator,
            factory,
            self.name,
        )
        await self._stack.enter_async_context(host)
        return host.agent_id

    async def _close(self) -> None:
        """End the workers, then what they need; also while being cancelled."""
        broker, keeping = self._broker, self._keeping
        try:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            if isinstance(broker, Broker):
                broker.end(ConfigError(f"the fleet {self.name} was closed."))
                await self._workers_ended(broker)
            if self._launcher is not None:
                await asyncio.to_thread(self._launcher.close)
        finally:
            await self._stack.aclose()
            self._stack, self._keeping, self._launcher = AsyncExitStack(), None, None
            self._broker, self.loop = None, None
            self._running.clear()

    async def _workers_ended(self, broker: Broker) -> None:
        """Give workers the time to hear that it is over, which they do with their next message."""
        until = time.monotonic() + _END_S
        while time.monotonic() < until and (
            broker.table.workers or any(not future.done() for future in self._running)
        ):
            if not broker.table.workers and not broker.met:
                return  # none has ever come: there is nobody to hear it
            await asyncio.sleep(_WAIT_S)

    async def _keep_workers(self, launcher: Launcher, broker: Broker) -> None:
        """Start workers, and start them again when they have ended against expectation."""
        loop = asyncio.get_running_loop()
        while True:
            now = time.monotonic()
            table = broker.table
            wanted = self._scaling.look(
                now,
                started=len(self._running),
                joined=table.workers,
                tasks=len(table),
                room=table.room,
            )
            for _ in range(wanted.start):
                self._launched += 1
                name = f"{self.name}-{self._launched}"
                future = launcher.start(replace(self._spec, name=name).to_json())
                self._running[future] = name
                future.add_done_callback(lambda one: self._call_soon(loop, one))
            if wanted.end:
                broker.dismiss(wanted.end)
            if wanted.give_up and broker.problem is None:
                broker.fail(self._why_none())
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_S)

    def _worker_ended(self, future: Future[str]) -> None:
        name, broker = self._running.pop(future, ""), self._broker
        if not isinstance(broker, Broker) or broker.ending:
            return
        error = future.exception()
        came = broker.knew(name)
        self._scaling.ended(time.monotonic(), failed=error is not None, came=came)
        if error is not None:
            self._last_error = error
            self._said(f"{name} has ended: {error}")
        # No need to wait until its silence is noticed.
        broker.lost(name, "has ended")
        self._changed.set()

    def _call_soon(self, loop: asyncio.AbstractEventLoop, future: Future[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the fleet
            loop.call_soon_threadsafe(self._worker_ended, future)

    def _why_none(self) -> ScaleInferError:
        """Return why there are no workers."""
        what = "" if self._launcher is None else f" ({self._launcher.name})"
        why = str(self._last_error) or type(self._last_error).__name__
        return WorkerLost(
            f"no worker of the fleet {self.name} could be started{what}: {why}",
            hint=f"Logs are in {self.folder}.",
        )

    def _said(self, what: str) -> None:
        log.info("%s: %s", self.name, what)
        self._changed.set()
        told = self._options.get("on_event")
        if told is not None:
            told(what)

    def _worker_spec(self) -> WorkerSpec:
        """Return what workers are started with, as far as it is known before the start."""
        given = self._options
        specs = given.get("backend") or ()
        specs = (specs,) if isinstance(specs, str) else tuple(specs)
        for one in specs:
            if not isinstance(one, str):
                raise ConfigError(
                    f"backend={one!r} cannot travel to the nodes of a fleet.",
                    hint="Pass a spec string ('local', a URL, ...) or 'module:function' for a "
                    "function that returns the adapter there.",
                )
        server, bounds = given.get("server"), given.get("concurrency", "auto")
        concurrency = asdict(bounds) if isinstance(bounds, Concurrency) else bounds
        rate_limit, retry = given.get("rate_limit"), given.get("retry")
        if server is not None and specs:
            raise ConfigError("server= is what the workers ask; leave out backend=.")
        spec = WorkerSpec(
            exchange="",
            fleet=self.name,
            secret=self._secret or "",
            backend=specs,
            model=given.get("model"),
            base_url=given.get("base_url"),
            concurrency=asdict(concurrency)
            if isinstance(concurrency, Concurrency)
            else concurrency,
            rate_limit=None if rate_limit is None else asdict(rate_limit),
            retry={} if retry is None else asdict(retry),
            server=None if server is None else server.to_dict(),
            walltime_s=given.get("walltime_s", 0.0),
        )
        spec.concurrency_or_none()
        return spec


def _model_of(spec: WorkerSpec) -> str | None:
    """Return the model that the workers ask, if that is known without asking them."""
    server = spec.node_server()
    if server is not None:
        return server.model
    if len(spec.backend) != 1 or spec.backend[0].partition(":")[0] not in KINDS:
        return None
    return resolve_backend(spec.backend[0], model=spec.model, base_url=spec.base_url).backend.model
