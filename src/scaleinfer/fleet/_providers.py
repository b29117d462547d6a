"""Parsl's providers, made to report refusals and to look at the queue more often.

The classes are made on first use: importing Parsl takes a second.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._blocks import Block, Submissions, fatal, idle_blocks, scheduler_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parsl import Config
    from parsl.executors.status_handling import BlockProviderExecutor
    from parsl.jobs.states import JobStatus

__all__ = [
    "config_for",
    "executor_on",
    "job_environment",
    "local_addresses",
    "need_parsl",
    "patient_provider",
    "report_failed_blocks",
]

JOB_END_VARIABLE = "SCALEINFER_JOB_END"
_LIVE = ("PENDING", "RUNNING", "HELD", "UNKNOWN")
_FAILED = ("FAILED", "MISSING")


def need_parsl() -> None:
    """Import Parsl.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import parsl  # noqa: F401 # only whether it can be imported
    except ImportError as error:
        raise ConfigError(
            f"Parsl cannot be imported: {error}.", hint="Run: pip install scaleinfer[hpc]"
        ) from error


@functools.cache
def patient_provider(base: type[Any]) -> type[Any]:
    """Return a Parsl provider class that also polls at its own pace and spaces out refusals.

    Its attribute `poll_seconds` says how often the queue is looked at; Parsl's own classes fix it
    at 60 s.
    """

    class Patient(base):  # type: ignore[misc] # the base is only known at run time
        poll_seconds = 60.0

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.submissions = Submissions()

        @property
        def status_polling_interval(self) -> float:
            return self.poll_seconds

        def submit(self, command: str, tasks_per_node: int, job_name: str = "scaleinfer") -> Any:
            if not self.submissions.may_try(time.monotonic()):
                raise ConfigError(
                    "the last jobs were refused, waiting before the next is asked for"
                )
            try:
                job = super().submit(command, tasks_per_node, job_name)
            except Exception as error:
                self.submissions.refused(time.monotonic())
                raise ConfigError(_why_refused(error)) from error
            if not job:
                self.submissions.refused(time.monotonic())
                raise ConfigError("the scheduler named no job")
            self.submissions.accepted()
            return job

    Patient.__name__ = Patient.__qualname__ = base.__name__
    return Patient


def _why_refused(error: Exception) -> str:
    said = scheduler_words(getattr(error, "stderr", None) or getattr(error, "stdout", None))
    return said or scheduler_words(str(error)) or type(error).__name__


def report_failed_blocks(
    executor: BlockProviderExecutor, statuses: Mapping[str, JobStatus]
) -> None:
    """Fail everything that waits once no job can be had; Parsl calls this at every poll."""
    block = fatal([_block(name, status) for name, status in statuses.items()])
    if block is None or executor.bad_state_is_set:
        return
    where = getattr(executor, "logdir", executor.run_dir)
    executor.set_bad_state_and_fail_all(
        ConfigError(
            f"No job of executor {executor.label!r} starts workers: {block.reason}",
            hint=f"Logs and submit scripts are below {Path(where).parent.resolve()}.",
        )
    )


def _block(name: str, status: JobStatus) -> Block:
    state = status.state.name
    reason = ""
    if state in _FAILED:
        # Parsl's sentence for a refusal ends with the exception, which is the scheduler's words.
        refusal = (status.message or "").partition(f"Failed to start block {name}: ")[2]
        said = scheduler_words(status.stderr_summary) or "it printed no error"
        reason = f"the scheduler refused it: {refusal}" if refusal else f"it ended early: {said}"
        if not refusal and status.stderr_path:
            reason += f" (see {status.stderr_path})"
    return Block(int(name), state in _LIVE, state in _FAILED, reason)


def job_environment(worker_init: str, walltime_seconds: int) -> str:
    """Return the shell lines that make a job use this environment, the user's own after them.

    The user's lines come last, so that another environment activated there wins. The job's end
    (Unix time, seconds) goes into SCALEINFER_JOB_END, as most schedulers do not tell.
    """
    lines = [f'export PATH="{Path(sys.executable).parent}:$PATH"']
    if sys.prefix != sys.base_prefix:
        lines.append(f'export VIRTUAL_ENV="{sys.prefix}"')
    lines.append(f"export {JOB_END_VARIABLE}=$(( $(date +%s) + {walltime_seconds} ))")
    if worker_init.strip():
        lines.append(worker_init.strip("\n"))
    return "\n".join(lines)


def local_addresses() -> set[str]:
    """Return this machine's IPv4 addresses, loopback only if there is no other."""
    import socket

    import psutil  # Parsl needs it

    found = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    }
    return {address for address in found if not address.startswith("127.")} or found


@functools.cache
def _sparing_executor() -> type[Any]:
    """Return Parsl's executor, made to give back only jobs that have been idle.

    Parsl's own takes a job that has not started yet for the one that has been idle longest, and
    when asked for none it cancels all.
    """
    from parsl.executors import HighThroughputExecutor

    class Sparing(HighThroughputExecutor):
        def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
            if max_idletime is None:
                ended: list[str] = super().scale_in(blocks)
                return ended
            chosen = idle_blocks(self.connected_managers(), max_idletime, blocks)
            chosen = [block for block in chosen if self._status[block].state.name in _LIVE]
            if not chosen or self.provider is None:
                return []
            for block in chosen:
                self._hold_block(block)  # type: ignore[no-untyped-call] # Parsl's
            cancelled = self.provider.cancel([self.blocks_to_job_id[block] for block in chosen])
            return [block for block, gone in zip(chosen, cancelled, strict=True) if gone]

    Sparing.__name__ = Sparing.__qualname__ = HighThroughputExecutor.__name__
    return Sparing


def executor_on(
    provider: Any,
    *,
    label: str,
    address: str | None,
    workers_per_node: int,
    heartbeat_period: int,
    heartbeat_threshold: int,
    drain_seconds: int,
) -> Any:
    """Return a HighThroughputExecutor for long-running workers on a provider's jobs."""
    executor = _sparing_executor()(
        label=label,
        provider=provider,
        # Without one the constructor asks a web service what this machine's address is.
        address=address or "127.0.0.1",
        max_workers_per_node=workers_per_node,
        # The number of workers follows from workers_per_node alone, not from the cores.
        cores_per_worker=0.001,
        prefetch_capacity=0,
        heartbeat_period=heartbeat_period,
        heartbeat_threshold=heartbeat_threshold,
        # No new worker on a job that is about to end; those that run stay.
        drain_period=drain_seconds,
        # One round of a loop per process on every node; nothing here needs 100 a second.
        poll_period=100,
        block_error_handler=report_failed_blocks,
    )
    if address is None:
        # Listen everywhere, and let each node find the address that it can reach.
        executor.address = None
        found = local_addresses()
        # A set since 2026; before that the list as the node's command line has it.
        older = isinstance(executor.all_addresses, str)
        executor.all_addresses = ",".join(sorted(found)) if older else found
    return executor


def config_for(
    executor: Any, run_dir: str | os.PathLike[str] | None, idle_seconds: float
) -> Config:
    """Return a configuration that adds jobs by demand and gives back each idle one.

    `run_dir` is for logs, keys and submit scripts; every node must see it.
    """
    from parsl import Config

    return Config(
        executors=[executor],
        run_dir=os.path.abspath(run_dir or "runinfo"),
        strategy="htex_auto_scale",
        strategy_period=1,
        max_idletime=idle_seconds,
        retries=0,
        initialize_logging=False,
    )
