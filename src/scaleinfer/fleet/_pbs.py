"""A Parsl configuration for workers on a PBS Pro cluster, as on Aurora and Polaris."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.fleet import _batch
from scaleinfer.fleet._providers import (
    config_for,
    executor_on,
    job_environment,
    need_parsl,
    patient_provider,
)

if TYPE_CHECKING:
    import os

    from parsl import Config

__all__ = ["pbs_config"]


def pbs_config(
    *,
    nodes: int = 1,
    account: str | None = None,
    queue: str | None = None,
    walltime: str = "01:00:00",
    workers_per_node: int = 1,
    worker_init: str = "",
    scheduler_options: str = "",
    select_options: str = "",
    cpus_per_node: int = 1,
    filesystems: str | None = None,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    address: str | None = None,
    mpiexec_options: str = "--ppn 1",
    run_dir: str | os.PathLike[str] | None = None,
    heartbeat_period: int = 5,
    heartbeat_threshold: int = 60,
    poll_seconds: float = 15.0,
    idle_seconds: float = 30.0,
) -> Config:
    """Return a Parsl configuration that runs workers on a PBS Pro cluster's nodes.

    `mpiexec` starts one process on every node of a job, not bound to any core, and that process
    starts the workers. Jobs are submitted as workers are asked for, each with `nodes` nodes, and
    deleted once they have been idle. Call it on a machine that has `qsub` and that the nodes can
    reach.

    PBS gives a job none of the caller's environment, so what workers need (keys, proxies, modules)
    belongs into `worker_init` or into files.

    Args:
        nodes: Nodes of one job.
        account: The project that the time is charged to.
        queue: Default: the site's default queue.
        walltime: How long a job may run, `HH:MM:SS`.
        workers_per_node: Workers on one node. One is enough to keep several model servers busy.
        worker_init: Shell lines to run in the job before the workers, for instance
            `module load frameworks`. This Python environment is activated before them.
        scheduler_options: More `#PBS` lines.
        select_options: What to add to the `select` of each node, for instance `ngpus=4`.
        cpus_per_node: `ncpus` of each node: 208 on Aurora, 64 on Polaris.
        filesystems: File systems that the job needs, for instance `flare:home` on Aurora.
        min_nodes: Nodes that are kept although idle. Default: 0.
        max_nodes: Nodes of all jobs together. Default: `nodes`, that is, one job.
        address: This machine's IP address as the nodes see it. Default: each node tries all.
        mpiexec_options: More options for `mpiexec`; the default starts one process per node.
        run_dir: Folder for logs, keys and submit scripts, on a file system that every node sees.
            Default: `runinfo` in the working directory.
        heartbeat_period: Seconds between a node's signs of life.
        heartbeat_threshold: Seconds without one after which a node's workers are ended and others
            may be started. Their work goes out again long before; a node that is back earlier
            works on.
        poll_seconds: Seconds between looks at the queue.
        idle_seconds: Seconds after which an idle job is deleted.

    Returns:
        A `parsl.Config` for one `ParslLauncher`.

    Raises:
        ConfigError: A value is wrong, or Parsl is not installed.
    """
    blocks = _batch.Blocks.of(nodes, min_nodes, max_nodes)
    _batch.check_counts(workers_per_node=workers_per_node, cpus_per_node=cpus_per_node)
    for name, value in (("account", account), ("queue", queue), ("filesystems", filesystems)):
        _batch.check_name(name, value)
    for name, value in (("select_options", select_options), ("mpiexec_options", mpiexec_options)):
        _batch.check_one_line(name, value)
    seconds = _batch.walltime_seconds(walltime)
    _batch.check_directives(scheduler_options, "#PBS")
    _batch.check_heartbeat(heartbeat_period, heartbeat_threshold)
    _batch.check_address(address)
    _batch.check_positive(poll_seconds=poll_seconds, idle_seconds=idle_seconds)
    need_parsl()
    from parsl.launchers import MpiExecLauncher
    from parsl.providers import PBSProProvider

    # Without it PBS may put two of the job's chunks onto one node.
    directives = ["#PBS -l place=scatter"]
    if filesystems:
        directives.append(f"#PBS -l filesystems={filesystems}")
    if scheduler_options.strip():
        directives.append(scheduler_options.strip("\n"))
    provider = patient_provider(PBSProProvider)(
        account=account,
        queue=queue,
        nodes_per_block=blocks.nodes,
        init_blocks=blocks.smallest,
        min_blocks=blocks.smallest,
        max_blocks=blocks.largest,
        cpus_per_node=cpus_per_node,
        select_options=select_options,
        walltime=walltime,
        scheduler_options="\n".join(directives),
        worker_init=job_environment(worker_init, seconds),
        launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides=mpiexec_options),
    )
    provider.poll_seconds = poll_seconds
    executor = executor_on(
        provider,
        label="pbs",
        address=address,
        workers_per_node=workers_per_node,
        heartbeat_period=heartbeat_period,
        heartbeat_threshold=heartbeat_threshold,
        drain_seconds=_batch.drain_seconds(seconds),
    )
    return config_for(executor, run_dir, idle_seconds)
