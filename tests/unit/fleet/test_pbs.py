"""The Parsl configuration for PBS Pro, and the script that Parsl hands to qsub.

No PBS runs here: `qsub` and `mpiexec` are shell scripts that show what they were given.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.fleet._pbs import pbs_config


@pytest.fixture(scope="module", autouse=True)
def parsl_imported() -> None:
    """Parsl imports the Globus SDK, which starts a thread that lives as long as the process."""
    import parsl  # noqa: F401 # no test is to blame for the thread


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH with a `qsub` that notes its arguments and takes every job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder / "qsub", f'echo "$@" > {tmp_path}/qsub; echo 7.pbs-server')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def submitted(config: Any, tmp_path: Path) -> Path:
    provider = config.executors[0].provider
    provider.script_dir = str(tmp_path)
    assert provider.submit("echo a worker", 1, "block") == "7.pbs-server"
    (script,) = (path for path in tmp_path.glob("block.*") if path.suffix != ".nodes")
    return script


def test_the_script_asks_for_what_was_set(commands: Path, tmp_path: Path) -> None:
    config = pbs_config(
        nodes=2,
        account="MyProject",
        queue="debug",
        walltime="00:30:00",
        worker_init="module load frameworks",
        cpus_per_node=208,
        select_options="ngpus=6",
        filesystems="flare:home",
        scheduler_options="#PBS -M me@site",
    )

    lines = submitted(config, tmp_path).read_text().splitlines()

    for asked in (
        "#PBS -l walltime=00:30:00",
        "#PBS -l select=2:ncpus=208:ngpus=6",
        "#PBS -l place=scatter",
        "#PBS -l filesystems=flare:home",
        "#PBS -M me@site",
        "module load frameworks",
    ):
        assert asked in lines, asked
    assert "-q debug -A MyProject" in (tmp_path / "qsub").read_text()


def test_the_script_starts_one_unbound_process_on_each_node(commands: Path, tmp_path: Path) -> None:
    """The script itself is run, with a stand-in mpiexec; PBS may list a node many times."""
    write(commands / "mpiexec", f'echo "$@" > {tmp_path}/mpiexec; for last; do :; done; sh "$last"')
    script = submitted(pbs_config(nodes=2), tmp_path)
    (tmp_path / "nodefile").write_text("x4102\nx4101\nx4102\n")

    shown = subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env=os.environ | {"PBS_NODEFILE": str(tmp_path / "nodefile")},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "a worker" in shown.stdout
    given = (tmp_path / "mpiexec").read_text().split()
    assert given[:6] == ["--cpu-bind", "none", "--ppn", "1", "-n", "2"]
    hosts = Path(tmp_path, given[given.index("--hostfile") + 1])
    assert hosts.read_text().split() == ["x4101", "x4102"]


def test_jobs_are_added_by_demand_and_given_back(commands: Path) -> None:
    config = pbs_config(nodes=1, max_nodes=5, walltime="06:00:00")
    executor: Any = config.executors[0]

    assert (executor.provider.init_blocks, executor.provider.max_blocks) == (0, 5)
    assert config.strategy == "htex_auto_scale"
    assert executor.drain_period == 6 * 3600 - 300
    assert executor.status_polling_interval == 15


def test_a_refused_job_is_reported_in_qsubs_words(commands: Path, tmp_path: Path) -> None:
    write(commands / "qsub", 'echo "qsub: Request rejected. Reason: no allocation" >&2; exit 1')
    provider: Any = pbs_config().executors[0]._provider  # type: ignore[attr-defined] # not in the base class
    provider.script_dir = str(tmp_path)

    with pytest.raises(ConfigError, match=r"^Request rejected. Reason: no allocation"):
        provider.submit("run", 1, "block")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"nodes": 0}, "nodes"),
        ({"cpus_per_node": 0}, "cpus_per_node"),
        ({"walltime": "90"}, "walltime"),
        ({"account": "a b"}, "account"),
        ({"queue": "debug; id"}, "queue"),
        ({"filesystems": "home flare"}, "filesystems"),
        ({"select_options": "ngpus=4\n#PBS -A other"}, "select_options"),
        ({"mpiexec_options": "--ppn 1\nid"}, "mpiexec_options"),
        ({"scheduler_options": "#SBATCH -N 1"}, "#PBS"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        pbs_config(**settings)
