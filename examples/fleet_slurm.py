"""A map over the nodes of a Slurm cluster, with a model server on each of them.

Run it on a login node; the journal makes the same command go on where it was stopped
(one line):

    python examples/fleet_slurm.py --account myproject --partition gpu --nodes 4 --per-node 4
        --worker-init 'module load cuda'
        --server 'vllm serve Qwen/Qwen3-8B --host {host} --port {port}'

Without a cluster there is `scaleinfer.testing`, or the embedded model, to serve:

    --server 'python -m scaleinfer.testing --port {port}'
    --server 'scaleinfer serve --port {port}'
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
from pathlib import Path

from scaleinfer import parallel_map
from scaleinfer.fleet import Fleet, NodeServer

DATA = Path(__file__).parent / "data" / "papers.jsonl"


async def run(options: argparse.Namespace) -> None:
    server = NodeServer(
        shlex.split(options.server),
        per_node=options.per_node,
        pin={"CUDA_VISIBLE_DEVICES": "{index}"},
        ready_timeout=1800,
    )
    fleet = Fleet.slurm(
        options.nodes,
        account=options.account,
        partition=options.partition,
        walltime=options.walltime,
        gpus_per_node=options.gpus,
        worker_init=options.worker_init,
        address=options.address,
        server=server,
        on_event=print,
    )
    papers = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    async with fleet:
        results = await parallel_map(
            papers[: options.limit],
            "Give three keywords for this title: {title}",
            fleet=fleet,
            sampling={"max_tokens": 40},
            journal="fleet_slurm.db",
        )
        print(fleet.status())
    print(f"answers: {len(results.ok)} of {len(results)}")
    results.to_jsonl("fleet_slurm.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description="A map over the nodes of a Slurm cluster.")
    parser.add_argument("--server", required=True, help="the model server's command")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--per-node", type=int, default=1, help="model servers on each node")
    parser.add_argument("--gpus", type=int, help="GPUs to ask for on each node")
    parser.add_argument("--account")
    parser.add_argument("--partition")
    parser.add_argument("--walltime", default="01:00:00")
    parser.add_argument("--worker-init", default="", help="shell lines before each worker")
    parser.add_argument("--address", help="this machine's IP address as the nodes see it")
    parser.add_argument("--limit", type=int, default=200, help="how many papers (at most 200)")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
