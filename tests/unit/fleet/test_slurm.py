"""The Parsl configuration for Slurm, and the script that Parsl hands to sbatch."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._slurm import slurm_config


@pytest.fixture(scope="module", autouse=True)
def parsl_imported() -> None:
    """Parsl imports the Globus SDK, which starts a thread that lives as long as the process."""
    import parsl  # noqa: F401 # no test is to blame for the thread


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH, in which every scheduler command fails until a test writes it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sacct", "squeue", "sbatch", "scancel"):
        write(folder / name, "exit 1")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def submitted(config: Any, tmp_path: Path) -> str:
    """Submit a block to the `sbatch` on PATH and return the script it was given."""
    provider = config.executors[0].provider
    provider.script_dir = str(tmp_path)
    assert provider.submit("run the workers", 1, "block") == "7"
    (script,) = tmp_path.glob("block.*")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    return script.read_text()


def test_the_script_asks_for_what_was_set(commands: Path, tmp_path: Path) -> None:
    write(commands / "sbatch", 'echo "Submitted batch job 7"')
    config = slurm_config(
        nodes=4,
        account="m1234_g",
        partition="gpu",
        qos="debug",
        walltime="02:30:00",
        worker_init="module load cuda",
        scheduler_options="#SBATCH -C gpu",
        cores_per_node=64,
        gpus_per_node=4,
    )

    lines = submitted(config, tmp_path).splitlines()

    for asked in (
        "#SBATCH --nodes=4",
        "#SBATCH --time=150",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --account=m1234_g",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=debug",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=64",
        "#SBATCH --exclusive",
        "#SBATCH --no-kill",
        "#SBATCH -C gpu",
        "module load cuda",
        "run the workers",
    ):
        assert asked in lines, asked
    assert any(line.startswith("srun --ntasks 4 -l --cpu-bind=none --no-kill") for line in lines)


def test_the_job_uses_this_environment_and_then_the_users_lines(
    commands: Path, tmp_path: Path
) -> None:
    write(commands / "sbatch", 'echo "Submitted batch job 7"')
    script = submitted(slurm_config(worker_init="PATH=/opt/mine:$PATH"), tmp_path)
    start = script.index("export PATH=")
    setup = script[start : script.index("export JOBNAME")]

    shown = subprocess.check_output(
        ["bash", "-c", f"before=$(date +%s)\n{setup}\necho $PATH $((SCALEINFER_JOB_END - before))"],
        text=True,
    )

    path, seconds = shown.split()
    assert path.split(":")[:2] == ["/opt/mine", str(Path(sys.executable).parent)]
    assert 3600 <= int(seconds) <= 3610


def test_what_is_left_out_is_not_asked_for(commands: Path, tmp_path: Path) -> None:
    write(commands / "sbatch", 'echo "Submitted batch job 7"')
    script = submitted(slurm_config(exclusive=False, launcher="single"), tmp_path)

    for unasked in ("--account", "--partition", "--qos", "--gpus", "--exclusive", "srun"):
        assert unasked not in script


def test_a_refused_job_is_asked_for_twice_and_then_less_often(
    commands: Path, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    write(
        commands / "sbatch", f'echo x >> {count}; echo "sbatch: error: no such account" >&2; exit 1'
    )
    provider: Any = slurm_config().executors[0]._provider  # type: ignore[attr-defined] # not in the base class
    provider.script_dir = str(tmp_path)

    messages = []
    for _ in range(4):
        with pytest.raises(ConfigError) as caught:
            provider.submit("run", 1, "block")
        messages.append(caught.value.message)

    assert messages[:2] == ["no such account"] * 2
    assert "waiting" in messages[2]
    assert count.read_text().split() == ["x", "x"]


def test_jobs_are_added_by_demand_and_given_back(commands: Path) -> None:
    config = slurm_config(nodes=2, min_nodes=2, max_nodes=7, workers_per_node=3, idle_seconds=5)
    executor: Any = config.executors[0]

    assert (executor.provider.init_blocks, executor.provider.min_blocks) == (1, 1)
    assert executor.provider.max_blocks == 3
    assert executor.workers_per_node == 3
    assert (config.strategy, config.max_idletime) == ("htex_auto_scale", 5)
    assert (executor.heartbeat_period, executor.heartbeat_threshold) == (5, 60)
    assert executor.drain_period == 3300
    assert executor.status_polling_interval == 10


def test_no_web_service_is_asked_for_the_address(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    everywhere: Any = slurm_config().executors[0]
    one: Any = slurm_config(address="10.1.2.3").executors[0]

    assert everywhere.address is None
    assert everywhere.all_addresses
    assert one.address == "10.1.2.3"
    assert one.all_addresses in ({"10.1.2.3"}, "10.1.2.3")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"nodes": 0}, "nodes"),
        ({"workers_per_node": 0}, "workers_per_node"),
        ({"gpus_per_node": 0}, "gpus_per_node"),
        ({"cores_per_node": -1}, "cores_per_node"),
        ({"walltime": "1h"}, "walltime"),
        ({"account": "my project"}, "account"),
        ({"partition": ""}, "partition"),
        ({"qos": "a;b"}, "qos"),
        ({"scheduler_options": "-C gpu"}, "#SBATCH"),
        ({"heartbeat_threshold": 3}, "heartbeat_threshold"),
        ({"address": "login1"}, "address"),
        ({"launcher": "mpiexec"}, "launcher"),
        ({"launcher": "single", "nodes": 2}, "single"),
        ({"max_nodes": 2, "nodes": 3}, "max_nodes"),
        ({"idle_seconds": 0}, "idle_seconds"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        slurm_config(**settings)


def test_without_parsl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parsl", None)

    with pytest.raises(ConfigError, match=r"pip install scaleinfer\[hpc\]"):
        slurm_config()
