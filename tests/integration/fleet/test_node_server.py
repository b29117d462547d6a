"""Real servers under a worker's care: started, watched, lost, killed, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from scaleinfer import parallel_map
from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet._ports import foreign_listener, free_port
from scaleinfer.fleet._serving import Serving, ServingChange
from scaleinfer.fleet.node_server import NodeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from scaleinfer.testing import SimulatedServer

pytestmark = pytest.mark.anyio

PATIENCE = 40.0
SIMULATED = [sys.executable, "-m", "scaleinfer.testing", "--port", "{port}"]
# It starts a simulated server and two processes beside it, one of which leaves the session.
FAMILY = """
import os, subprocess, sys
sleep = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
         "print('up', flush=True); time.sleep(600)"]
for session in (False, True):
    child = subprocess.Popen(sleep, start_new_session=session, stdout=subprocess.PIPE)
    child.stdout.readline()
subprocess.run([sys.executable, "-m", "scaleinfer.testing", "--port", sys.argv[1]])
"""
# What it forks, if told to, keeps its pipes open after its death.
WORKER = """
import asyncio, json, os, sys, time
from scaleinfer.fleet._serving import Serving
from scaleinfer.fleet.node_server import NodeServer

async def main():
    server = NodeServer.from_dict(json.loads(sys.argv[1]))
    async with Serving(server, 0, sys.argv[2]) as serving:
        await serving.ready()
        forked = 0
        if sys.argv[3] == "fork" and not (forked := os.fork()):
            os.close(1)
            time.sleep(600)
        print(forked, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def simulated(*options: str, **settings: Any) -> NodeServer:
    quick: dict[str, Any] = {
        "check_every": 0.1,
        "check_timeout": 1.0,
        "ready_timeout": 50.0,
        "name": "simulated",
    }
    return NodeServer([*SIMULATED, *options], **quick | settings)


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def gone(processes: list[psutil.Process]) -> None:
    """The kernel may take a moment to forget a process that was killed."""

    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async with asyncio.timeout(PATIENCE):
        while any(map(lives, processes)):  # noqa: ASYNC110 - not our children, so nobody tells us
            await asyncio.sleep(0.02)


class Changes:
    """Keeps what happened, and waits for what will."""

    def __init__(self) -> None:
        self.seen: list[ServingChange] = []
        self._more = asyncio.Event()

    def __call__(self, change: ServingChange) -> None:
        self.seen.append(change)
        self._more.set()

    @property
    def states(self) -> list[str]:
        return [change.state for change in self.seen]

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition(self.states):
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def keep(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Opens servers, and closes them."""
    async with AsyncExitStack() as stack:

        async def open_one(
            server: NodeServer, index: int = 0, **options: Any
        ) -> tuple[Serving, Changes]:
            changes = Changes()
            serving = Serving(server, index, tmp_path, on_change=changes, **options)
            return await stack.enter_async_context(serving), changes

        yield open_one


async def test_started_fed_and_stopped(keep: Callable[..., Any], tmp_path: Path) -> None:
    serving, changes = await keep(simulated())
    before = serving.statistics()
    assert (before.state, before.pid, before.ready_s) == ("stopped", None, None)
    assert await serving.ready() > 0
    during = serving.statistics()
    assert during.state == "ready"
    assert during.ready_s is not None
    assert during.restarts == 0
    assert serving.base_url == f"http://127.0.0.1:{during.port}/v1"
    results = await parallel_map(["a", "b"], "{}", base_url=serving.base_url, progress=False)
    assert [result.ok for result in results] == [True, True]
    assert during.pid in {child.pid for child in below(os.getpid())}
    ours = below(os.getpid())
    await serving.aclose()
    await gone(ours)
    assert changes.states == ["starting", "ready"]
    assert serving.statistics().state == "stopped"
    log = serving.log.read_text()
    assert serving.log.parent == tmp_path
    assert socket.gethostname() in serving.log.name
    assert f"--port {during.port}" in log
    assert f"http://127.0.0.1:{during.port}/v1" in log.splitlines()[-1]  # the server's own


async def test_one_for_each_device(keep: Callable[..., Any]) -> None:
    server = simulated(per_node=3, pin={"ZE_AFFINITY_MASK": "{index}"}, env={"SEEN": "{port}"})
    servings = [(await keep(server, index))[0] for index in range(3)]
    await asyncio.gather(*(serving.ready() for serving in servings))
    stands = [serving.statistics() for serving in servings]
    assert len({one.port for one in stands}) == 3
    for index, one in enumerate(stands):
        assert one.pid is not None
        seen = psutil.Process(one.pid).environ()
        assert (seen["ZE_AFFINITY_MASK"], seen["SEEN"]) == (str(index), str(one.port))
    await asyncio.gather(*(serving.aclose() for serving in servings))


async def test_killed_in_the_middle(keep: Callable[..., Any]) -> None:
    serving, changes = await keep(simulated())
    await serving.ready()
    first, url = serving.statistics(), serving.base_url
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await changes.until(lambda states: states.count("ready") == 2)
    assert changes.states == ["starting", "ready", "down", "starting", "ready"]
    assert "was ended by signal 9" in changes.seen[2].message
    second = serving.statistics()
    assert second.restarts == 1
    assert second.pid != first.pid
    assert serving.base_url == url
    assert second.ready_s == first.ready_s


async def test_its_guard_killed(keep: Callable[..., Any]) -> None:
    serving, changes = await keep(simulated())
    await serving.ready()
    family = below(os.getpid())
    guard = psutil.Process(serving.statistics().pid).parent()
    assert guard is not None
    guard.kill()
    await changes.until(lambda states: states.count("ready") == 2)
    assert "guard" in changes.seen[2].message
    await gone(family)


async def test_one_that_hangs_is_killed_and_started_again(keep: Callable[..., Any]) -> None:
    serving, changes = await keep(simulated(check_timeout=0.3, failed_checks=2))
    await serving.ready()
    pid = serving.statistics().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await changes.until(lambda states: states.count("ready") == 2)
    assert "stopped answering" in changes.seen[2].message
    assert not psutil.pid_exists(pid)


async def test_one_that_hangs_is_stopped(keep: Callable[..., Any]) -> None:
    serving, _ = await keep(simulated(stop_timeout=0.2, check_every=60.0))
    await serving.ready()
    family = below(os.getpid())
    os.kill(serving.statistics().pid, signal.SIGSTOP)
    await serving.aclose()
    await gone(family)


async def test_nothing_of_a_family_is_left(keep: Callable[..., Any]) -> None:
    server = NodeServer([sys.executable, "-c", FAMILY, "{port}"], stop_timeout=0.5, name="family")
    serving, changes = await keep(server)
    await serving.ready()
    family = below(serving.statistics().pid)
    assert len(family) == 3
    os.kill(serving.statistics().pid, signal.SIGKILL)
    await changes.until(lambda states: "down" in states)
    await gone(family)
    await changes.until(lambda states: states.count("ready") == 2)
    family = below(os.getpid())
    assert len(family) == 5
    await serving.aclose()
    await gone(family)


@pytest.mark.parametrize("fork", ["fork", "none"])
async def test_worker_killed(tmp_path: Path, fork: str) -> None:
    server = NodeServer([sys.executable, "-c", FAMILY, "{port}"], stop_timeout=0.5, name="family")
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, json.dumps(server.to_dict()), str(tmp_path), fork,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert worker.stdout is not None
    forked = int(await worker.stdout.readline())
    family = [process for process in below(worker.pid) if process.pid != forked]
    assert len(family) == 5
    worker.kill()
    await worker.communicate()
    try:
        await gone(family)
    finally:
        if forked:
            os.kill(forked, signal.SIGKILL)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program", "--api-key", "hush"], r"cannot be run: No such file"),
        ([sys.executable, "-c", "raise SystemExit('no model')"], r"exit status 1 .*no model"),
        ([sys.executable, "-c", "print('bye')"], r"exit status 0 before .*bye.*foreground"),
        ([sys.executable, "-m", "scaleinfer.testing", "--nonsense"], r"status 2 .*--nonsense"),
        (
            [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)", "--token=hush"],
            r"signal 11 .*token=\*\*\*.*\(nothing\)",
        ),
    ],
)
async def test_a_command_that_cannot_serve(
    keep: Callable[..., Any], command: list[str], said: str
) -> None:
    serving, changes = await keep(NodeServer(command, name="broken"))
    with pytest.raises(ConfigError) as caught:
        await serving.ready()
    text = " ".join(str(caught.value).split())
    assert f"Server broken 0 on node {socket.gethostname()}" in text
    assert re.search(said, text), text
    assert "hush" not in text
    assert changes.states[-1] == "failed"
    assert changes.seen[-1].error is caught.value
    assert serving.statistics().state == "failed"
    if "cannot be run" not in said:
        assert str(serving.log) in text


async def test_never_healthy(keep: Callable[..., Any]) -> None:
    command = [sys.executable, "-uc", "import time; print('loading'); time.sleep(600)"]
    serving, _ = await keep(NodeServer(command, name="slow", ready_timeout=0.7, health="/ping"))
    with pytest.raises(ConfigError, match=r"did not become healthy 0.7 s after") as caught:
        await serving.ready()
    assert "  loading\n" in caught.value.message
    assert "/ping with status 200" in caught.value.hint


async def test_given_up_after_its_restarts(keep: Callable[..., Any], tmp_path: Path) -> None:
    flag = tmp_path / "served"
    code = (
        "import pathlib, sys; from scaleinfer.testing.__main__ import main; "
        f"flag = pathlib.Path({str(flag)!r}); flag.exists() and sys.exit(7); flag.touch(); "
        "main(['--port', sys.argv[1]])"
    )
    server = NodeServer([sys.executable, "-c", code, "{port}"], name="once", restarts=2)
    serving, changes = await keep(server)
    await serving.ready()
    os.kill(serving.statistics().pid, signal.SIGKILL)
    await changes.until(lambda states: "failed" in states)
    assert changes.states == ["starting", "ready"] + ["down", "starting"] * 2 + ["failed"]
    error = changes.seen[-1].error
    assert isinstance(error, WorkerLost)
    assert "exit status 7 after 2 restarts without becoming ready" in str(error)
    assert await serving.ready() > 0


async def test_a_port_in_use_is_left(keep: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], free_port()])
        serving, changes = await keep(simulated(), ports=lambda: next(ports))
        await serving.ready()
        assert serving.statistics().port != taken.getsockname()[1]
        assert serving.statistics().restarts == 0
        assert changes.states == ["starting", "down", "starting", "ready"]


async def test_a_healthy_stranger_on_its_port_is_not_taken_for_it(
    keep: Callable[..., Any], server: SimulatedServer
) -> None:
    port = httpx.URL(server.base_url).port
    assert port is not None
    assert not foreign_listener(port, os.getpid())
    serving, changes = await keep(
        NodeServer([sys.executable, "-c", "import time; time.sleep(600)"], name="mute"),
        ports=lambda: port,
    )
    with pytest.raises(ConfigError, match="another process has its port on every port"):
        await serving.ready()
    assert "ready" not in changes.states


async def test_closed_while_it_starts(keep: Callable[..., Any]) -> None:
    serving, changes = await keep(simulated())
    waiting = asyncio.create_task(serving.ready())
    await changes.until(lambda states: states == ["starting"])
    family = below(os.getpid())
    await serving.aclose()
    await gone(family)
    with pytest.raises(WorkerLost, match="was stopped"):
        await waiting
    await serving.aclose()


async def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    serving = Serving(simulated(log_folder=tmp_path / "file" / "below"), 0)
    with pytest.raises(ConfigError, match="log_folder"):
        await serving.open()
    with pytest.raises(ConfigError, match="not opened"):
        await serving.ready()


@pytest.mark.timeout(180)
async def test_the_embedded_model(keep: Callable[..., Any], local_model: Path) -> None:
    server = NodeServer(
        [sys.executable, "-m", "scaleinfer.cli", "serve", "--port", "{port}"],
        env={"SCALEINFER_DATA": str(local_model.parent.parent)},
        name="embedded",
        ready_timeout=150.0,
    )
    serving, _ = await keep(server)
    await serving.ready()
    asked = ["What is the capital of France?"]
    [answer] = await parallel_map(
        asked, "{}", base_url=serving.base_url, sampling={"max_tokens": 12}, progress=False
    )
    assert answer.text is not None
    assert "Paris" in answer.text
    await serving.aclose()
