"""Workers on a real Slurm through Parsl: three nodes, each in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet._parsl import ParslLauncher
from scaleinfer.fleet._slurm import slurm_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.services.slurm import SlurmCluster

pytestmark = pytest.mark.timeout(120)

_PATIENCE = 60.0
# What the nodes run: a function that takes a string and returns one, found there by its name.
shell = subprocess.getoutput


@pytest.fixture(autouse=True)
def nothing_left_on_the_cluster(slurm: SlurmCluster) -> Iterator[None]:
    """Fail a test after which a job is queued or a process runs on a node."""
    yield
    try:
        until(lambda: not slurm.jobs() and not slurm.processes())
    finally:
        slurm.cancel_jobs()
        slurm.wait_idle()


@pytest.fixture
def launch(tmp_path: Path, slurm: SlurmCluster) -> Iterator[Callable[..., ParslLauncher]]:
    """Makes launchers, closed at the end, whose folder is the test's own."""
    made: list[ParslLauncher] = []

    def make(function: Callable[[str], str] = shell, **settings: Any) -> ParslLauncher:
        near = {"address": slurm.address, "run_dir": tmp_path, "poll_seconds": 1, "idle_seconds": 2}
        soon = {"heartbeat_period": 2, "heartbeat_threshold": 10}
        config = slurm_config(**{"walltime": "00:10:00", **near, **soon, **settings})
        made.append(ParslLauncher(config, function=function))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_worker_on_each_of_three_nodes_and_close_ends_those_that_run(
    launch: Callable[..., ParslLauncher], slurm: SlurmCluster, tmp_path: Path
) -> None:
    launcher = launch(nodes=3)
    assert (launcher.name, launcher.max_workers) == ("slurm", 3)

    # A node is given one at a time, and each waits for the other two.
    (tmp_path / "met").mkdir()
    meet = f"cd {tmp_path}/met; touch $(hostname); until [ $(ls | wc -l) = 3 ]; do sleep 0.1; done"
    names = [launcher.start(f"{meet}; hostname") for _ in range(3)]
    assert sorted(name.result(_PATIENCE) for name in names) == ["node1", "node2", "node3"]

    endless = launcher.start("exec sleep 1000")
    until(lambda: "sleep" in names_of(slurm.processes()))
    launcher.close()

    assert isinstance(endless.exception(0), WorkerLost)
    with pytest.raises(ConfigError, match="closed"):
        launcher.start("hostname")


def names_of(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it may end meanwhile
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def test_an_idle_job_is_given_back_and_a_cancelled_one_fails_its_worker(
    launch: Callable[..., ParslLauncher], slurm: SlurmCluster, tmp_path: Path
) -> None:
    launcher = launch(nodes=1, max_nodes=2)
    began = tmp_path / "began"
    lost = launcher.start(f"touch {began}; exec sleep 1000")
    short = launcher.start("hostname")
    node = short.result(_PATIENCE)
    until(began.exists)
    until(lambda: len(slurm.jobs()) == 1)
    assert not lost.done()

    slurm.run("scancel", *slurm.jobs())

    error = lost.exception(_PATIENCE)
    assert isinstance(error, WorkerLost)
    (other,) = {"node1", "node2"} - {node}
    assert other in str(error)
    assert str(tmp_path) in str(error)
    assert launcher.start("echo again").result(_PATIENCE) == "again"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"partition": "closed", "account": "m1"}, "Invalid account or account/partition"),
    ],
)
def test_a_job_that_slurm_refuses_is_reported_in_its_words(
    launch: Callable[..., ParslLauncher], settings: dict[str, str], words: str
) -> None:
    launcher = launch(**settings)

    error = launcher.start("hostname").exception(_PATIENCE)

    assert isinstance(error, ConfigError)
    assert words in str(error)
    assert isinstance(launcher.start("hostname").exception(_PATIENCE), ConfigError)


def test_a_job_that_starts_no_worker_is_reported_with_its_error_and_log(
    launch: Callable[..., ParslLauncher], tmp_path: Path
) -> None:
    launcher = launch(worker_init="echo no such module: nonesuch >&2; exit 1")

    error = launcher.start("hostname").exception(_PATIENCE)

    assert isinstance(error, ConfigError)
    assert "no such module: nonesuch" in str(error)
    assert str(tmp_path) in str(error)


def test_a_job_that_waits_is_cancelled_though_the_interchange_has_died(
    launch: Callable[..., ParslLauncher], slurm: SlurmCluster
) -> None:
    launcher = launch(scheduler_options="#SBATCH --hold")
    waiting = launcher.start("hostname")
    until(slurm.jobs)
    (executor,) = launcher._config.executors
    process = executor.interchange_proc  # type: ignore[attr-defined] # HighThroughputExecutor's
    process.kill()

    error = waiting.exception(_PATIENCE)

    assert isinstance(error, WorkerLost)
    assert "interchange" in str(error)


def test_a_killed_client_leaves_no_process_and_no_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    began = tmp_path / "began"
    script = tmp_path / "client.py"
    script.write_text(f"""
from scaleinfer.fleet._parsl import ParslLauncher
from scaleinfer.fleet._slurm import slurm_config
config = slurm_config(
    address={slurm.address!r},
    run_dir={str(tmp_path)!r},
    heartbeat_period=2,
    heartbeat_threshold=10,
)
# No process of its own: a real worker ends those that it starts, a shell would not.
launcher = ParslLauncher(config, function=eval)
launcher.start("open({str(began)!r}, 'w').close() or __import__('time').sleep(1000)").result()
""")
    client = subprocess.Popen([sys.executable, script])
    until(began.exists)
    (interchange,) = children(client.pid)

    os.kill(client.pid, signal.SIGKILL)
    client.wait()

    until(lambda: not Path(f"/proc/{interchange}").exists())
    until(lambda: not slurm.jobs())


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if "interchange" in Path(f"/proc/{pid}/cmdline").read_text()]
