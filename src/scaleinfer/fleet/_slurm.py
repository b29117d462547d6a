"""A Parsl configuration for workers on a Slurm cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scaleinfer.errors import ConfigError
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

__all__ = ["slurm_config"]

# A node that dies takes its own worker with it, not the others' step; and a worker starts servers
# and threads on all cores, so it is not bound to one.
_SRUN = "--cpu-bind=none --no-kill --kill-on-bad-exit=0 --wait=0"


def slurm_config(
    *,
    nodes: int = 1,
    account: str | None = None,
    partition: str | None = None,
    qos: str | None = None,
    walltime: str = "01:00:00",
    workers_per_node: int = 1,
    worker_init: str = "",
    scheduler_options: str = "",
    cores_per_node: int | None = None,
    gpus_per_node: int | None = None,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    exclusive: bool = True,
    address: str | None = None,
    launcher: Literal["srun", "single"] = "srun",
    run_dir: str | os.PathLike[str] | None = None,
    heartbeat_period: int = 5,
    heartbeat_threshold: int = 60,
    poll_seconds: float = 10.0,
    idle_seconds: float = 30.0,
) -> Config:
    """Return a Parsl configuration that runs workers on a Slurm cluster's nodes.

    Jobs are submitted as workers are asked for, each with `nodes` nodes, and cancelled once they
    have been idle. Call it on a machine that has `sbatch` and that the nodes can reach.

    Args:
        nodes: Nodes of one job.
        account: What the time is charged to. Default: the user's default account.
        partition: Where it runs. Default: the cluster's default partition.
        qos: Quality of service.
        walltime: How long a job may run, `HH:MM:SS`; Slurm counts whole minutes.
        workers_per_node: Workers on one node. One is enough to keep a model server busy.
        worker_init: Shell lines to run in the job before the workers, for instance
            `module load cuda`. This Python environment is activated before them.
        scheduler_options: More `#SBATCH` lines.
        cores_per_node: Cores to ask for on each node. Default: what the partition gives.
        gpus_per_node: GPUs to ask for on each node.
        min_nodes: Nodes that are kept although idle. Default: 0.
        max_nodes: Nodes of all jobs together. Default: `nodes`, that is, one job.
        exclusive: Share no node with other jobs.
        address: This machine's IP address as the nodes see it. Default: each node tries all.
        launcher: `srun` starts a worker on every node, `single` on the first only.
        run_dir: Folder for logs, keys and submit scripts, on a file system that every node sees.
            Default: `runinfo` in the working directory.
        heartbeat_period: Seconds between a node's signs of life.
        heartbeat_threshold: Seconds without one after which a node's workers are ended and others
            may be started. Their work goes out again long before; a node that is back earlier
            works on.
        poll_seconds: Seconds between looks at the queue.
        idle_seconds: Seconds after which an idle job is cancelled.

    Returns:
        A `parsl.Config` for one `ParslLauncher`.

    Raises:
        ConfigError: A value is wrong, or Parsl is not installed.
    """
    blocks = _batch.Blocks.of(nodes, min_nodes, max_nodes)
    _batch.check_counts(
        workers_per_node=workers_per_node,
        cores_per_node=cores_per_node,
        gpus_per_node=gpus_per_node,
    )
    for name, value in (("account", account), ("partition", partition), ("qos", qos)):
        _batch.check_name(name, value)
    # Slurm is told minutes.
    seconds = _batch.walltime_seconds(walltime) // 60 * 60
    _batch.check_directives(scheduler_options, "#SBATCH")
    _batch.check_heartbeat(heartbeat_period, heartbeat_threshold)
    _batch.check_address(address)
    _batch.check_positive(poll_seconds=poll_seconds, idle_seconds=idle_seconds)
    if launcher not in ("srun", "single"):
        raise ConfigError(f"launcher must be 'srun' or 'single', not {launcher!r}.")
    if launcher == "single" and nodes > 1:
        raise ConfigError(
            f"launcher='single' starts workers on one node, but nodes is {nodes}.",
            hint="Use launcher='srun', or nodes=1 with max_nodes.",
        )
    need_parsl()
    from parsl.launchers import SingleNodeLauncher, SrunLauncher
    from parsl.providers import SlurmProvider

    # The job goes on with the nodes that are left when one fails.
    directives = ["#SBATCH --no-kill"]
    if gpus_per_node:
        directives.append(f"#SBATCH --gpus-per-node={gpus_per_node}")
    if scheduler_options.strip():
        directives.append(scheduler_options.strip("\n"))
    provider = patient_provider(SlurmProvider)(
        partition=partition,
        account=account,
        qos=qos,
        nodes_per_block=blocks.nodes,
        init_blocks=blocks.smallest,
        min_blocks=blocks.smallest,
        max_blocks=blocks.largest,
        cores_per_node=cores_per_node,
        exclusive=exclusive,
        walltime=walltime,
        scheduler_options="\n".join(directives),
        worker_init=job_environment(worker_init, seconds),
        launcher=SrunLauncher(overrides=_SRUN) if launcher == "srun" else SingleNodeLauncher(),
    )
    provider.poll_seconds = poll_seconds
    executor = executor_on(
        provider,
        label="slurm",
        address=address,
        workers_per_node=workers_per_node,
        heartbeat_period=heartbeat_period,
        heartbeat_threshold=heartbeat_threshold,
        drain_seconds=_batch.drain_seconds(seconds),
    )
    return config_for(executor, run_dir, idle_seconds)
