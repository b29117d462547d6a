"""Workers as Parsl tasks: on Slurm, PBS, or whatever else a Parsl `Config` describes."""

from __future__ import annotations

import atexit
import contextlib
import logging
import shutil
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, ScaleInferError, WorkerLost
from scaleinfer.fleet._interchange import interchange_command
from scaleinfer.fleet._providers import need_parsl

if TYPE_CHECKING:
    from collections.abc import Callable

    from parsl import Config, DataFlowKernel
    from parsl.executors.base import ParslExecutor

__all__ = ["ParslLauncher"]

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_USED: weakref.WeakSet[Any] = weakref.WeakSet()
# What each of Parsl's providers submits with.
_SUBMIT = {
    "slurm": "sbatch",
    "pbspro": "qsub",
    "torque": "qsub",
    "grid_engine": "qsub",
    "lsf": "bsub",
    "cobalt": "qsub",
    "condor": "condor_submit",
}


class ParslLauncher:
    """Starts each worker as one Parsl task and ends the batch jobs when it is closed.

    Parsl runs in a data flow kernel of the launcher's own, so another one that is loaded in this
    process (`parsl.load`) is left alone. It starts with the first worker. A config holds executors
    that run once, so a launcher is made from a fresh one.

    Args:
        config: A `parsl.Config`, or one of Parsl's executors.
        function: What runs on the node, found there by its module and name: takes the worker's
            spec and returns its summary, both JSON. Default: the fleet's own worker.
        name: What the launcher is called in messages. Default: the provider's name.

    Attributes:
        name: See above.
        max_workers: How many workers can run at once; None if it has no limit.

    Raises:
        ConfigError: Parsl is not installed, `config` is neither of the two or was used before, or
            the scheduler's commands are not on this machine.
    """

    def __init__(
        self,
        config: Config | ParslExecutor,
        *,
        function: Callable[[str], str] | None = None,
        name: str | None = None,
    ) -> None:
        need_parsl()
        self._config = _as_config(config)
        if self._config in _USED:
            raise ConfigError(
                "This Parsl config has been used by another launcher, and its executors run once.",
                hint="Make a fresh one.",
            )
        self._function = function
        providers = [getattr(executor, "provider", None) for executor in self._config.executors]
        for provider in filter(None, providers):
            _need_commands(provider)
        _USED.add(self._config)
        self.name = name or getattr(providers[0], "label", None) or "parsl"
        self.max_workers = _capacity(self._config.executors)
        self._kernel: DataFlowKernel | None = None
        self._failed: ConfigError | None = None
        self._lock = threading.Lock()
        self._pending: set[Future[str]] = set()
        self._closed = threading.Event()
        # Parsl needs a second to start and its calls may block: they get a thread of their own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scaleinfer-parsl")
        self._watch = threading.Thread(target=self._watch_interchanges, daemon=True)

    def start(self, spec: str) -> Future[str]:
        """Begin one worker; returns at once.

        Args:
            spec: The worker's spec, JSON.

        Returns:
            A future that ends when the worker has ended, with its summary, or with `ConfigError`
            if no job can be had, `WorkerLost` if its node or process went away, or what the
            worker itself raised.

        Raises:
            ConfigError: The launcher is closed.
        """
        future: Future[str] = Future()
        with self._lock:
            if self._closed.is_set():
                raise ConfigError(f"The launcher {self.name!r} is closed and starts no workers.")
            self._pending.add(future)
            self._thread.submit(self._submit, spec, future)
        return future

    def close(self) -> None:
        """End Parsl's processes and every batch job; workers that still run are ended.

        Their futures fail with `WorkerLost`. Blocks for some seconds; may be called twice.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        atexit.unregister(self.close)
        self._thread.shutdown(wait=True)
        if self._kernel is not None:
            self._watch.join()
            _close_kernel(self._kernel)
        lost = WorkerLost(f"The launcher {self.name!r} was closed while this worker ran.")
        for future in list(self._pending):
            self._settle(future, error=lost)

    def _submit(self, spec: str, future: Future[str]) -> None:
        if self._closed.is_set():
            return
        try:
            kernel = self._kernel or self._start_kernel()
            task = kernel.submit(
                self._function or _worker_function(),
                app_args=(spec,),
                executors="all",
                cache=False,
                ignore_for_cache=None,
                app_kwargs={},
            )
        except Exception as error:  # whatever it is belongs to this worker
            self._settle(future, error=_own_error(error, self._config))
        else:
            task.add_done_callback(lambda done: self._finish(done, future))

    def _start_kernel(self) -> DataFlowKernel:
        from parsl import DataFlowKernel

        if self._failed is not None:
            raise self._failed
        for executor in self._config.executors:
            # Parsl's own command needs a PATH with interchange.py and outlives this process.
            if getattr(executor, "interchange_launch_cmd", None) == ["interchange.py"]:
                executor.interchange_launch_cmd = interchange_command()  # type: ignore[attr-defined] # HighThroughputExecutor's
        try:
            self._kernel = DataFlowKernel(self._config)
        except Exception as error:
            for executor in self._config.executors:
                _end_executor(executor)
            self._failed = ConfigError(
                f"Parsl could not start: {type(error).__name__}: {error}.",
                hint=f"Its folder is {Path(self._config.run_dir).resolve()}.",
            )
            raise self._failed from error
        self._watch.start()
        atexit.register(self.close)
        return self._kernel

    def _finish(self, task: Future[Any], future: Future[str]) -> None:
        error = task.exception()
        if error is None:
            self._settle(future, result=task.result())
        else:
            self._settle(future, error=_own_error(error, self._config))

    def _settle(
        self, future: Future[str], *, result: str = "", error: BaseException | None = None
    ) -> None:
        with self._lock:
            if future not in self._pending:
                return
            self._pending.remove(future)
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _watch_interchanges(self) -> None:
        """Fail an executor whose interchange has died: Parsl itself would wait for ever."""
        while not self._closed.wait(_LOOK_SECONDS):
            for executor in self._config.executors:
                process = getattr(executor, "interchange_proc", None)
                if process is not None and process.poll() is not None:
                    _fail_executor(executor, process.returncode)


def _as_config(config: Any) -> Config:
    from parsl import Config
    from parsl.executors.base import ParslExecutor

    if isinstance(config, Config):
        return config
    if isinstance(config, ParslExecutor):
        return Config(executors=[config], strategy="htex_auto_scale", initialize_logging=False)
    raise ConfigError(
        f"A Parsl launcher needs a parsl.Config or an executor, not {type(config).__name__}."
    )


def _need_commands(provider: Any) -> None:
    command = _SUBMIT.get(getattr(provider, "label", ""))
    if command and not shutil.which(command):
        raise ConfigError(
            f"The command {command} is not on this machine, so no job can be submitted.",
            hint="Run this on a login node of the cluster, with the scheduler on PATH.",
        )


def _capacity(executors: Any) -> int | None:
    total = 0
    for executor in executors:
        provider = getattr(executor, "provider", None)
        if provider is not None:
            slots = provider.max_blocks * provider.nodes_per_block * executor.workers_per_node
        elif (threads := getattr(executor, "max_threads", None)) is not None:
            slots = threads
        else:
            return None
        total += int(slots)
    return total


def _worker_function() -> Callable[[str], str]:
    from importlib import import_module

    function: Callable[[str], str] = import_module("scaleinfer.fleet._entry").run_worker
    return function


def _own_error(error: BaseException, config: Config) -> BaseException:
    """Translate Parsl's own errors; what the worker raised stays as it is."""
    from parsl.errors import ParslError
    from parsl.executors.errors import BadStateException
    from parsl.executors.high_throughput.errors import ManagerLost
    from parsl.executors.high_throughput.errors import WorkerLost as ProcessLost

    logs = f"Logs are below {Path(config.run_dir).resolve()}."
    if isinstance(error, ManagerLost):
        return WorkerLost(
            f"Node {error.hostname} stopped answering or its job has ended.", hint=logs
        )
    if isinstance(error, ProcessLost):
        return WorkerLost(f"The worker's process on node {error.hostname} died.", hint=logs)
    if isinstance(error, BadStateException):
        reason = error.executor.executor_exception  # type: ignore[attr-defined] # only block executors raise it
        if isinstance(reason, ScaleInferError):
            return reason
        return WorkerLost(f"Parsl gave up: {reason}", hint=logs)
    if isinstance(error, ParslError):
        return WorkerLost(f"Parsl failed: {type(error).__name__}: {error}", hint=logs)
    return error


def _fail_executor(executor: Any, status: int) -> None:
    if executor.bad_state_is_set:
        return
    lost = WorkerLost(
        f"Parsl's interchange of executor {executor.label!r} ended with status {status}.",
        hint=f"Its log is {Path(executor.logdir).resolve()}/interchange.log.",
    )
    # A task that ends at the same moment has its result already.
    with contextlib.suppress(Exception):
        executor.set_bad_state_and_fail_all(lost)
    # Unblocks whoever waits for an answer from the interchange.
    with contextlib.suppress(Exception):
        executor.command_client.zmq_context._ctx.shutdown()


def _close_kernel(kernel: DataFlowKernel) -> None:
    """Clean up, and make sure of it: Parsl leaves the jobs of an executor that failed."""
    executors = [e for label, e in kernel.executors.items() if label != "_parsl_internal"]
    try:
        kernel.cleanup()
    except Exception:
        _LOG.exception("Parsl did not clean up")
    for executor in executors:
        _cancel_jobs(getattr(executor, "provider", None))
        _end_executor(executor)


def _end_executor(executor: Any) -> None:
    """End what is left of an executor that did not start or was not shut down."""
    process = getattr(executor, "interchange_proc", None)
    if process is None or process.poll() is not None:
        return
    with contextlib.suppress(Exception):
        executor.shutdown()
    if process.poll() is None:
        process.kill()
        process.wait()


def _cancel_jobs(provider: Any) -> None:
    resources: dict[str, Any] = getattr(provider, "resources", {})
    live = [job for job, known in resources.items() if not known["status"].terminal]
    for job in live:
        # One by one: the scheduler refuses a list with a job that has ended by itself.
        try:
            provider.cancel([job])
        except Exception:
            _LOG.exception("job %s could not be cancelled", job)
