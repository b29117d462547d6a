"""`Fleet`: an exchange, a coordinator beside the maps that use it, and workers on nodes."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._backend import FleetBackend
from scaleinfer.fleet._broker import Broker
from scaleinfer.fleet._keeper import Keeper
from scaleinfer.fleet._options import WorkerOptions, model_of, spec_of
from scaleinfer.fleet._scaling import Scaling

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

    from academy.exchange import ExchangeClient
    from academy.handle import Handle

    from scaleinfer.fleet._client import RemoteBroker
    from scaleinfer.fleet._launch import Launcher
    from scaleinfer.fleet._spec import WorkerSpec
    from scaleinfer.fleet._status import FleetStatus
    from scaleinfer.fleet.coordinator import Coordinator

__all__ = ["Fleet"]

_END_S = 15.0
_WAIT_S = 0.05
_HERE = "127.0.0.1"

log = logging.getLogger(__name__)


class Fleet:
    """Workers on nodes that maps share.

        async with Fleet.local(4, backend="local") as fleet:
            results = await parallel_map(items, prompt_fn, fleet=fleet)

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
        host: str = _HERE,
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
        given = options.get("secret")
        self._secret = secrets.token_urlsafe(16) if given is None else given
        self._spec = spec_of(options, fleet=self.name, secret=self._secret)
        self.model = self._spec.model if launcher is None else model_of(self._spec)
        self._options = options
        self._host = host
        self._scaling = Scaling(
            least=workers if least is None else least,
            most=most or workers,
            first=workers,
            idle_s=options.get("idle_s", 60.0),
        )
        self._launcher_of = launcher
        self._launcher: Launcher | None = None
        self._keeper: Keeper | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._broker: Broker | RemoteBroker | None = None
        self._remote: tuple[Handle[Coordinator], ExchangeClient[Any] | None] | None = None
        self._keep_workers = self._temporary = False
        self._stack = AsyncExitStack()

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
    def parsl(
        cls,
        config: Any,
        workers: int,
        *,
        address: str | None = None,
        **options: Unpack[WorkerOptions],
    ) -> Self:
        """Return a fleet whose workers are tasks of Parsl, on whatever its config describes.

        Args:
            config: A `parsl.Config`, or one of Parsl's executors.
            workers: How many.
            address: This machine's IP address as the nodes see it, for the fleet's own exchange.
            options: See `WorkerOptions`.

        Raises:
            ConfigError: Parsl is not installed, or the config is none.
        """
        from scaleinfer.fleet._parsl import ParslLauncher

        launcher = ParslLauncher(config)
        return cls(lambda _folder: launcher, workers, host=_seen(address), **_shared(options))

    @classmethod
    def slurm(
        cls,
        nodes: int = 1,
        *,
        account: str | None = None,
        partition: str | None = None,
        qos: str | None = None,
        walltime: str = "01:00:00",
        workers_per_node: int = 1,
        worker_init: str = "",
        scheduler_options: str = "",
        cores_per_node: int | None = None,
        gpus_per_node: int | None = None,
        exclusive: bool = True,
        address: str | None = None,
        launcher: Literal["srun", "single"] = "srun",
        **options: Unpack[WorkerOptions],
    ) -> Self:
        """Return a fleet on the nodes of a Slurm cluster; call it where there is `sbatch`.

        One job of all nodes; jobs of one node each if `min_workers` or `max_workers` lets the
        fleet grow and shrink.

        Args:
            nodes: How many nodes to begin with.
            account: Account that the time is charged to.
            partition: Partition of the cluster.
            qos: Quality of service.
            walltime: How long a job may run, `HH:MM:SS`.
            workers_per_node: Workers on each node. One keeps several model servers busy.
            worker_init: Shell lines to run before the workers.
            scheduler_options: More `#SBATCH` lines.
            cores_per_node: Cores to ask for on each node.
            gpus_per_node: GPUs to ask for on each node.
            exclusive: True for whole nodes.
            address: This machine's IP address as the nodes see it.
            launcher: How processes are started on the nodes of a job.
            options: See `WorkerOptions`. `folder` must be one that all nodes see; default a new
                one in the working directory.

        Raises:
            ConfigError: A value is wrong, Parsl is not installed, or there is no `sbatch`.
        """
        from scaleinfer.fleet._parsl import ParslLauncher
        from scaleinfer.fleet._slurm import slurm_config

        elastic = _is_elastic(options)
        most = -(-(options.get("max_workers") or nodes * workers_per_node) // workers_per_node)

        def start(folder: Path) -> Launcher:
            config = slurm_config(
                nodes=1 if elastic else nodes,
                max_nodes=most,
                account=account,
                partition=partition,
                qos=qos,
                walltime=walltime,
                workers_per_node=workers_per_node,
                worker_init=worker_init,
                scheduler_options=scheduler_options,
                cores_per_node=cores_per_node,
                gpus_per_node=gpus_per_node,
                exclusive=exclusive,
                address=address,
                launcher=launcher,
                run_dir=folder,
            )
            return ParslLauncher(config)

        host, shared = _seen(address), _shared(options)
        return cls(start, nodes * workers_per_node, host=host, **shared)

    @classmethod
    def pbs(
        cls,
        nodes: int = 1,
        *,
        account: str | None = None,
        queue: str | None = None,
        walltime: str = "01:00:00",
        workers_per_node: int = 1,
        worker_init: str = "",
        scheduler_options: str = "",
        select_options: str = "",
        cpus_per_node: int = 1,
        filesystems: str | None = None,
        address: str | None = None,
        mpiexec_options: str = "--ppn 1",
        **options: Unpack[WorkerOptions],
    ) -> Self:
        """Return a fleet on the nodes of a PBS Pro cluster; call it where there is `qsub`.

        The configuration is checked against Parsl and its submit script; it has not been run on
        a PBS cluster.

        Args:
            nodes: How many nodes to begin with.
            account: Project that the time is charged to.
            queue: Queue of the cluster.
            walltime: How long a job may run, `HH:MM:SS`.
            workers_per_node: Workers on each node. One keeps several model servers busy.
            worker_init: Shell lines to run before the workers.
            scheduler_options: More `#PBS` lines.
            select_options: What to add to the `select` of each node, for instance `ngpus=4`.
            cpus_per_node: `ncpus` of each node: 208 on Aurora, 64 on Polaris.
            filesystems: File systems that the job needs, for instance `flare:home`.
            address: This machine's IP address as the nodes see it.
            mpiexec_options: More options for `mpiexec`.
            options: See `WorkerOptions`; `folder` as for `Fleet.slurm`.

        Raises:
            ConfigError: A value is wrong, Parsl is not installed, or there is no `qsub`.
        """
        from scaleinfer.fleet._parsl import ParslLauncher
        from scaleinfer.fleet._pbs import pbs_config

        elastic = _is_elastic(options)
        most = -(-(options.get("max_workers") or nodes * workers_per_node) // workers_per_node)

        def start(folder: Path) -> Launcher:
            config = pbs_config(
                nodes=1 if elastic else nodes,
                max_nodes=most,
                account=account,
                queue=queue,
                walltime=walltime,
                workers_per_node=workers_per_node,
                worker_init=worker_init,
                scheduler_options=scheduler_options,
                select_options=select_options,
                cpus_per_node=cpus_per_node,
                filesystems=filesystems,
                address=address,
                mpiexec_options=mpiexec_options,
                run_dir=folder,
            )
            return ParslLauncher(config)

        host, shared = _seen(address), _shared(options)
        return cls(start, nodes * workers_per_node, host=host, **shared)

    @classmethod
    def globus_compute(
        cls,
        endpoint_id: str | uuid.UUID,
        workers: int = 1,
        *,
        user_endpoint_config: Mapping[str, Any] | None = None,
        worker_init: str | None = None,
        client: Any = None,
        **options: Unpack[WorkerOptions],
    ) -> Self:
        """Return a fleet on a Globus Compute endpoint, from anywhere.

        Client and workers share no network, so that `exchange` must be one that both reach:
        `"academy"`, or a URL.

        Args:
            endpoint_id: The endpoint's id, a UUID.
            workers: How many.
            user_endpoint_config: Values for the endpoint's template.
            worker_init: Shell lines that a node runs before the worker.
            client: A `globus_compute_sdk.Client`; default one from this user's login.
            options: See `WorkerOptions`.

        Raises:
            ConfigError: The id is no UUID, or no exchange was named.
        """
        from scaleinfer.fleet._globus_compute import GlobusComputeLauncher

        if options.get("exchange") is None:
            raise ConfigError(
                "Fleet.globus_compute needs an exchange that this machine and the nodes reach.",
                hint="exchange='academy' is hosted; 'redis://host:port' and 'https://host' are "
                "yours.",
            )
        launcher = GlobusComputeLauncher(
            endpoint_id,
            user_endpoint_config=user_endpoint_config,
            worker_init=worker_init,
            client=client,
        )
        return cls(lambda _folder: launcher, workers, **options)

    @classmethod
    def attach(
        cls, exchange: Any, /, *, keep_workers: bool = False, **options: Unpack[WorkerOptions]
    ) -> Self:
        """Return a fleet whose workers are started by hand, in any number and at any time.

        On each node: `scaleinfer worker --exchange URL --fleet NAME --backend ...`, with the
        secret, if there is one, in the variable `SCALEINFER_FLEET_SECRET`.

        Args:
            exchange: Where messages go; see `exchange_factory`.
            keep_workers: True to leave the workers running when the fleet is closed; they look
                for the next fleet of its name, for as long as their patience lasts.
            options: See `WorkerOptions`. What concerns how workers ask is theirs to say. Without
                `secret` every worker is let in.
        """
        options["exchange"] = exchange
        options.setdefault("secret", "")
        fleet = cls(None, 0, **options)
        fleet._keep_workers = keep_workers
        return fleet

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

    def backend(self, *, priority: int = 0, once: bool = False) -> FleetBackend:
        """Return the adapter through which one map uses the fleet.

        Args:
            priority: Requests with a higher one go first.
            once: True if each request is paid for one call; see `Request.once`.
        """
        return FleetBackend(self, priority=priority, once=once)

    def status(self) -> FleetStatus:
        """Return where the fleet stands.

        Raises:
            ConfigError: It is not open.
        """
        return self.broker.status()

    async def watch(self, *, every: float = 1.0) -> None:
        """Show where the fleet stands, in terminal or notebook, until it is closed.

            watching = asyncio.create_task(fleet.watch())

        Args:
            every: Seconds between two looks.
        """
        from scaleinfer.fleet._live import watch

        await watch(self.status, every=every)

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
        self._temporary = given is None
        self.folder = Path(given or tempfile.mkdtemp(prefix=f"scaleinfer-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._broker = broker = Broker(self.name, secret=self._secret or None)
        broker.on_change = self._said
        exchange: Any = self._options.get("exchange")
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
        name = "" if self._host == _HERE else str(self.folder / "{name}.log")
        spec = replace(self._spec, exchange=text, coordinator=agent, log=name)
        _write_spec(spec, self.folder / "worker.json")
        self._launcher = self._launcher_of(self.folder)
        self._keeper = Keeper(self._launcher, broker, self._scaling, spec, self.folder, self._said)
        self._keeping = asyncio.create_task(self._keeper.run())

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
                closed = ConfigError(f"the fleet {self.name} was closed.")
                if self._keep_workers:
                    broker.fail(closed)
                else:
                    broker.end(closed)
                    await self._workers_ended(broker)
            if self._launcher is not None:
                await asyncio.to_thread(self._launcher.close)
        finally:
            await self._stack.aclose()
            if self._temporary and (self._keeper is None or not self._keeper.failed):
                await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
            self._stack, self._keeping, self._launcher = AsyncExitStack(), None, None
            self._keeper, self._broker, self.loop = None, None, None

    async def _workers_ended(self, broker: Broker) -> None:
        """Give workers the time to hear that it is over, which they do with their next message."""
        keeper, until = self._keeper, time.monotonic() + _END_S
        while time.monotonic() < until and broker.met:
            # Of those that are not here some may never come, or be reported long after their end.
            if not broker.workers and (keeper is None or not keeper.closing):
                return
            await asyncio.sleep(_WAIT_S)

    def _said(self, what: str) -> None:
        log.info("%s: %s", self.name, what)
        if self._keeper is not None:
            self._keeper.look_again()
        told = self._options.get("on_event")
        if told is not None:
            told(what)


def _write_spec(spec: WorkerSpec, path: Path) -> None:
    """Let the user attach to the fleet, or start a worker by hand; it holds the secret."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(spec.to_json())


def _seen(address: str | None) -> str:
    """Return the address of this machine that others most probably see."""
    if address is not None:
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: it asks the kernel by which address it would leave.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return _HERE
        return str(probe.getsockname()[0])


def _shared(options: WorkerOptions) -> WorkerOptions:
    """Put logs where all nodes see them."""
    name = options.get("name") or f"fleet-{secrets.token_hex(3)}"
    folder = options.get("folder") or Path.cwd() / f"scaleinfer-{name}"
    return {**options, "name": name, "folder": folder}


def _is_elastic(options: WorkerOptions) -> bool:
    return options.get("min_workers") is not None or options.get("max_workers") is not None
