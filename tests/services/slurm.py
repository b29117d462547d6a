"""A real Slurm on this machine: a controller and nodes, each in namespaces of its own.

Every node has its own hostname, its own address and its own loopback, so what runs on it sees a
machine of its own, and taking its link down is a partition. Several clusters may run at once.
By hand:

```console
$ python -m tests.services.slurm start --nodes 3    # prints the line to export
$ python -m tests.services.slurm partition 2
$ python -m tests.services.slurm heal 2
$ python -m tests.services.slurm stop
```

Needs root, Linux and Debian's packages `slurmctld slurmd slurm-client munge iproute2`; where CI is
set, or with `--install`, they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
_NETWORKS = range(1, 64)
_CONTROLLER = 253
_COMMAND_SECONDS = 30.0
_START_SECONDS = 40.0
_STOP_SECONDS = 15.0

_CONF = """\
ClusterName=scaleinfer{network}
SlurmctldHost=controller(10.77.{network}.253)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0,sched_min_interval=100000
EnforcePartLimits=ALL
KillWait=2
MessageTimeout=20
SlurmdTimeout=30
InactiveLimit=0
MinJobAge=300
NodeName=node[1-{nodes}] NodeHostname=node[1-{nodes}] NodeAddr=10.77.{network}.[1-{nodes}] \
Port=17801 CPUs={cpus} CoresPerSocket={cpus} RealMemory=20000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=NO
PartitionName=closed Nodes=ALL MaxTime=60 State=UP AllowAccounts=nobody
"""


class SlurmUnavailableError(RuntimeError):
    """This machine cannot run the test cluster; says why."""


def install() -> None:
    """Install what is missing with apt.

    Raises:
        SlurmUnavailableError: It cannot be installed here.
    """
    if all(shutil.which(program, path=_path()) for program in PROGRAMS):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SlurmUnavailableError(f"needs root and apt to install {' '.join(PACKAGES)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (("update",), ("install", "-y", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise SlurmUnavailableError(f"apt-get {arguments[0]}: {done.stderr.strip()}")


@dataclass
class SlurmCluster:
    """One running cluster.

    Attributes:
        root: Its folder: configuration, logs, state.
        nodes: How many nodes it has; they are `node1`, `node2` and so on.
        cpus: How many cores each claims to have.
        network: The third number of its addresses, `10.77.network.node`.
    """

    root: str
    nodes: int
    cpus: int
    network: int

    @classmethod
    def start(cls, root: Path, nodes: int = 3, cpus: int = 8) -> SlurmCluster:
        """Start a cluster and wait until every node is idle.

        Raises:
            SlurmUnavailableError: This machine lacks something; nothing is left behind.
        """
        missing = [program for program in PROGRAMS if not shutil.which(program, path=_path())]
        if os.geteuid() != 0 or missing:
            raise SlurmUnavailableError(f"needs root and {' '.join(missing) or 'nothing else'}")
        root.mkdir(parents=True, exist_ok=True)
        cluster = cls(str(root), nodes, cpus, _claim_network())
        (root / "cluster.json").write_text(json.dumps(asdict(cluster)))
        try:
            cluster._start_nodes_network()
            cluster._start_daemons()
            cluster.wait_idle(_START_SECONDS)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @classmethod
    def load(cls, root: Path) -> SlurmCluster:
        """Return the cluster that was started in a folder."""
        return cls(**json.loads((root / "cluster.json").read_text()))

    @property
    def conf(self) -> str:
        """What `SLURM_CONF` must be for Slurm's commands."""
        return f"{self.root}/slurm.conf"

    @property
    def address(self) -> str:
        """This machine's address on the nodes' network."""
        return f"10.77.{self.network}.254"

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands, for instance `squeue`, and return what it prints."""
        environment = os.environ | {"SLURM_CONF": self.conf, "PATH": _path()}
        return _run(*command, environment=environment, check=check)

    def jobs(self) -> list[str]:
        """Return the ids of every job that has not ended."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def cancel_jobs(self) -> None:
        """Cancel every job and wait until none is left."""
        if jobs := self.jobs():
            self.run("scancel", *jobs, check=False)
        _wait(lambda: not self.jobs(), _STOP_SECONDS, "jobs to end")

    def partition(self, node: int) -> None:
        """Cut a node off from everything; what runs on it goes on."""
        _run("ip", "link", "set", self._link(node), "down")

    def heal(self, node: int) -> None:
        """Undo `partition`."""
        _run("ip", "link", "set", self._link(node), "up")

    def processes(self, node: int | None = None) -> list[int]:
        """Return the process ids on one node, or on all, Slurm's own left out."""
        found: list[int] = []
        for number in self._numbers() if node is None else (node,):
            inside = _run("ip", "netns", "pids", self._namespace(number), check=False)
            found += [int(pid) for pid in inside.split() if not _name(int(pid)).startswith("slurm")]
        return found

    def wait_idle(self, seconds: float = _STOP_SECONDS) -> None:
        """Wait until every node is up and runs nothing.

        Slurm takes a node out that could not end a job in time, as one that was cut off; it is
        put back.
        """

        def idle() -> bool:
            counts = self.run("sinfo", "-h", "-p", "debug", "-o", "%D", "-t", "idle", check=False)
            if sum(int(count) for count in counts.split()) == self.nodes:
                return True
            out = self.run("sinfo", "-h", "-N", "-o", "%N", "-t", "down,drain,fail", check=False)
            for node in set(out.split()):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return False

        _wait(idle, seconds, f"{self.nodes} idle nodes, see {self.root}/log")

    def stop(self) -> None:
        """End every job and daemon and remove the network."""
        with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
            for node in self._numbers():
                self.heal(node)
            self.cancel_jobs()
        daemons = [int(path.read_text()) for path in Path(self.root, "run").glob("*.pid")]
        for pid in daemons:
            if _name(pid).startswith(("slurm", "munge")):
                _kill(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            _wait(lambda: not any(_name(pid) for pid in daemons), _STOP_SECONDS, "daemons to end")
        for node in (*self._numbers(), _CONTROLLER):
            left = _run("ip", "netns", "pids", self._namespace(node), check=False)
            for pid in map(int, left.split()):
                _kill(pid, signal.SIGKILL)
            _run("ip", "netns", "del", self._namespace(node), check=False)
        _run("ip", "link", "del", f"sib{self.network}", check=False)

    def _numbers(self) -> range:
        return range(1, self.nodes + 1)

    def _namespace(self, node: int) -> str:
        return f"scaleinfer{self.network}-{node}"

    def _link(self, node: int) -> str:
        return f"si{self.network}v{node}"

    def _start_nodes_network(self) -> None:
        bridge = f"sib{self.network}"
        _run("ip", "addr", "add", f"{self.address}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for node in (*self._numbers(), _CONTROLLER):
            space, link = self._namespace(node), self._link(node)
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", link, "master", bridge, "up")
            inside = f"10.77.{self.network}.{node}/24"
            _run("ip", "-n", space, "addr", "add", inside, "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")

    def _start_daemons(self) -> None:
        root = Path(self.root)
        for folder in ("state", "spool", "log", "run"):
            (root / folder).mkdir(exist_ok=True)
        Path(self.conf).write_text(_CONF.format(**asdict(self)))
        key = root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # Forced, as munged wants a user of its own and folders that only that user can write.
        self.run(
            "munged", "--force", f"--key-file={key}", f"--socket={root}/munge.socket",
            f"--pid-file={root}/run/munged.pid", f"--log-file={root}/log/munged.log",
            f"--seed-file={root}/munge.seed",
        )  # fmt: skip
        self._start_daemon(_CONTROLLER, "controller", "slurmctld -i")
        for node in self._numbers():
            (root / "spool" / f"node{node}").mkdir(exist_ok=True)
            self._start_daemon(node, f"node{node}", f"slurmd -N node{node}")

    def _start_daemon(self, number: int, hostname: str, command: str) -> None:
        inside = ("nsenter", f"--net=/run/netns/{self._namespace(number)}", "unshare", "--uts")
        self.run(*inside, "sh", "-c", f"hostname {hostname} && exec {command}")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A cluster of three nodes, with `SLURM_CONF` set; installed first if this is CI."""
    # Parsl imports the Globus SDK, which starts a thread that lives as long as the process.
    import parsl  # noqa: F401 # no test is to blame for the thread

    try:
        if os.environ.get("CI"):
            install()
        cluster = SlurmCluster.start(tmp_path_factory.mktemp("slurm"))
    except SlurmUnavailableError as why:
        pytest.skip(f"no Slurm here: {why}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.conf)
        patch.setenv("PATH", _path())
        yield cluster
    cluster.stop()


def _claim_network() -> int:
    """Make the bridge: that fails if another cluster has the number."""
    for number in _NETWORKS:
        made = subprocess.run(
            ["ip", "link", "add", f"sib{number}", "type", "bridge"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        if made.returncode == 0:
            return number
        if "exists" not in made.stderr:
            raise SlurmUnavailableError(f"cannot make a network: {made.stderr.strip()}")
    raise SlurmUnavailableError("too many test clusters are running")


def _path() -> str:
    """Return where to look for programs: Slurm's daemons are in sbin."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def _run(*command: str, environment: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND_SECONDS,
    )
    if check and done.returncode:
        raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _wait(true: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def _name(pid: int) -> str:
    """Return the name of a process that runs; empty if there is none."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        if "\nState:\tZ" not in status:
            return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _kill(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def main() -> None:
    """Start, stop, partition or heal a cluster by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.services.slurm")
    parser.add_argument("action", choices=("start", "stop", "partition", "heal"))
    parser.add_argument("node", type=int, nargs="?", default=1)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=8)
    parser.add_argument("--install", action="store_true", help="install what is missing with apt")
    default = Path(tempfile.gettempdir()) / "scaleinfer-slurm"
    parser.add_argument("--root", type=Path, default=default)
    options = parser.parse_args()
    if options.action == "start":
        if options.install or os.environ.get("CI"):
            install()
        if (options.root / "cluster.json").exists():
            parser.error(f"{options.root} holds a cluster already; stop it first")
        cluster = SlurmCluster.start(options.root, options.nodes, options.cpus)
        print(f"export SLURM_CONF={cluster.conf}")
        return
    cluster = SlurmCluster.load(options.root)
    if options.action == "stop":
        cluster.stop()
        shutil.rmtree(options.root)
    else:
        {"partition": cluster.partition, "heal": cluster.heal}[options.action](options.node)


if __name__ == "__main__":
    main()
