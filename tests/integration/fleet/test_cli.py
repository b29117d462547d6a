"""`scaleinfer worker` and `scaleinfer runs attach`, as users start them: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import parallel_map
from scaleinfer.cli import main
from scaleinfer.fleet import Fleet, WorkerSpec
from scaleinfer.fleet._serve_exchange import serve_exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from scaleinfer.testing import SimulatedServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SECRET = "of-the-fleet"
SERVE = f"{sys.executable} -m scaleinfer.testing --port {{port}} --latency 0.02"
QUIET: dict[str, Any] = {"progress": False}
Finished = tuple[int, str, str]


async def until(what: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  # another process does it
            await asyncio.sleep(0.05)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncIterator[str]:
    async with serve_exchange(log=tmp_path / "exchange.log") as url:
        yield url


class Command:
    """The command as a process of its own; its output is read while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode())

    async def until(self, words: str) -> str:
        """Wait for a line with these words."""
        await until(lambda: any(words in line for line in self.lines))
        return next(line for line in self.lines if words in line)

    async def ended(self) -> Finished:
        """Return exit code, output and complaints."""
        assert self.process.stderr is not None
        complaints = await asyncio.wait_for(self.process.stderr.read(), 60)
        await self._reading
        code = await self.process.wait()
        self.process._transport.close()  # type: ignore[attr-defined] # it would close it later
        return code, "".join(self.lines), complaints.decode()


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts the command; what still runs in the end is killed."""
    started: list[Command] = []

    async def command(*arguments: str, secret: str = SECRET, text: str = "") -> Command:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scaleinfer.cli", *arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"SCALEINFER_FLEET_SECRET": secret},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        started.append(Command(process))
        return started[-1]

    yield command
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.ended()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Finished]]:
    """Returns what runs the command in this process; for what ends before anything is sent."""
    before = signal.getsignal(signal.SIGTERM)

    def command(*arguments: str) -> Finished:
        code: Any = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    yield command
    signal.signal(signal.SIGTERM, before)


async def test_the_same_line_many_times_makes_workers_of_their_own(
    exchange: str, start: Callable[..., Any], server: SimulatedServer, tmp_path: Path
) -> None:
    line = (
        "worker", "--exchange", exchange, "--fleet", "hand", "--backend", server.base_url,
        "--concurrency", "4", "--walltime", "01:00:00", "--name", "aurora",
        "--log", str(tmp_path / "logs" / "worker.log"),
    )  # fmt: skip
    async with Fleet.attach(exchange, name="hand", secret=SECRET) as fleet:
        commands = [await start(*line) for _ in range(3)]
        await fleet.ready(3, timeout=90)
        results = await parallel_map(range(60), "{}", fleet=fleet, **QUIET)
        workers = fleet.status().workers
    ended = [await command.ended() for command in commands]
    assert ended == [(0, "", "")] * 3
    assert len(results.ok) == 60
    assert all(worker.name.startswith("aurora-") for worker in workers)
    assert all(3500 < worker.facts.until - time.time() < 3600 for worker in workers)
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == sorted(f"worker-{worker.name}.log" for worker in workers)
    assert {worker.facts.log for worker in workers} == {
        str(tmp_path / "logs" / name) for name in logs
    }


async def test_a_worker_from_a_spec_starts_servers_of_its_own(
    exchange: str, start: Callable[..., Any], tmp_path: Path
) -> None:
    spec = WorkerSpec(exchange, "other", secret=SECRET, concurrency=2).to_json()
    async with Fleet.attach(exchange, name="hand", secret=SECRET) as fleet:
        worker = await start(
            "worker", "--spec", "-", "--fleet", "hand", "--server", SERVE, "--per-node", "2",
            "--pin", "DEVICE=0,1", "--pin", "DEVICE=2,3", "--ready-timeout", "60",
            "--log", f"{tmp_path}/", secret="", text=spec,
        )  # fmt: skip
        await fleet.ready(timeout=90)
        results = await parallel_map(range(40), "{}", fleet=fleet, **QUIET)
        status = fleet.status()
    assert (await worker.ended())[0] == 0
    assert len(results.ok) == 40
    assert status.workers[0].limit == 4
    assert len(status.workers[0].facts.endpoints) == 2


async def test_attach_follows_a_fleet_until_it_ends(
    exchange: str, start: Callable[..., Any], server: SimulatedServer, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(WorkerSpec(exchange, "hand", secret=SECRET).to_json())
    where = ("--exchange", exchange, "--fleet", "hand")
    async with Fleet.attach(exchange, name="hand", secret=SECRET) as fleet:
        await start("worker", *where, "--backend", server.base_url)
        await fleet.ready(timeout=90)
        await parallel_map(range(20), "{}", fleet=fleet, **QUIET)
        lines = await start("runs", "attach", *where)
        objects = await start("runs", "attach", *where, "--json", "--every", "0.2")
        once = await start("runs", "attach", "--spec", str(spec), "--once", secret="")
        code, out, err = await once.ended()
        assert (code, err) == (0, "")
        assert out.startswith("hand: 1 worker on 1 node")
        assert "20 answered" in out
        assert fleet.status().workers[0].name in out
        told = json.loads(await objects.until("{"))
        assert told["answered"] == 20
        assert told["workers"][0]["facts"]["pid"] == fleet.status().workers[0].facts.pid
        line = await lines.until("hand: ")
        assert "1 worker on 1 node" in line
        objects.process.send_signal(signal.SIGINT)
        assert (await objects.ended())[0] == 0
    code, _, err = await lines.ended()
    assert (code, err) == (0, "The fleet hand has ended.\n")


async def test_nobody_to_attach_to(exchange: str, start: Callable[..., Any]) -> None:
    async with Fleet.attach(exchange, name="hand", secret=SECRET):
        for fleet, secret in (("other", SECRET), ("hand", "wrong")):
            view = await start(
                "runs", "attach", "--exchange", exchange, "--fleet", fleet, secret=secret
            )
            code, out, err = await view.ended()
            assert (code, out) == (2, "")
            assert f"no fleet '{fleet}' answers" in err
            assert exchange.rpartition("@")[2] in err
            assert exchange.partition("@")[0].rpartition(":")[2] not in err


async def test_a_worker_without_a_coordinator_gives_up(
    exchange: str, start: Callable[..., Any]
) -> None:
    worker = await start(
        "worker", "--exchange", exchange, "--fleet", "none", "--backend", "http://127.0.0.1:9/v1",
        "--model", "m", "--patience", "0",
    )  # fmt: skip
    code, out, err = await worker.ended()
    assert (code, out) == (1, "")
    assert "heard nothing of a coordinator of the fleet 'none'" in err


async def test_a_worker_with_the_wrong_secret_is_refused(
    exchange: str, start: Callable[..., Any]
) -> None:
    async with Fleet.attach(exchange, name="hand", secret=SECRET):
        spec = WorkerSpec(exchange, "hand").to_json()
        worker = await start("worker", "--spec", "-", "--patience", "1", secret="no", text=spec)
        code, _, err = await worker.ended()
    assert code == 1
    assert "hand" in err


async def test_sigterm_ends_a_worker_in_order(
    exchange: str, start: Callable[..., Any], server: SimulatedServer
) -> None:
    async with Fleet.attach(exchange, name="hand", secret=SECRET) as fleet:
        worker = await start(
            "worker", "--exchange", exchange, "--fleet", "hand", "--backend", server.base_url
        )
        await fleet.ready(timeout=90)
        worker.process.send_signal(signal.SIGTERM)
        assert (await worker.ended())[0] == 0
        await until(lambda: not fleet.status().workers)
        assert not fleet.status().lost_workers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fleet", "f"], "Missing --exchange"),
        (["--exchange", "local"], "Missing --fleet"),
        (["--walltime", "1 h"], "neither seconds nor HH:MM:SS"),
        (["--concurrency", "0"], "neither auto nor a positive whole number"),
        (["--pin", "CUDA_VISIBLE_DEVICES"], "NAME=VALUE"),
        (["--per-node", "2", "--health", "/x"], "there is no --server"),
        (["--server", "vllm 'serve"], "cannot be read"),
        (["--server", "vllm serve --port 8000"], "a port of its own"),
        (["--server", "x", "--backend", "local"], "leave out the others"),
        (["--server", "x", "--per-node", "3", "--pin", "A=1", "--pin", "A=2"], "given 2 times"),
        (["--spec", "no_such_file.json"], "no_such_file.json"),
        (["--exchange", "ftp://host:1"], "no exchange"),
        (["--exchange", "redis://127.0.0.1:9"], "nobody listens there"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], words: str, run: Callable[..., Finished], tmp_path: Path
) -> None:
    spec = [] if words.startswith("Missing") or "--spec" in options else ["--fleet", "f"]
    if spec and "--exchange" not in options:
        spec += ["--exchange", "redis://127.0.0.1:9"]
    with contextlib.chdir(tmp_path):
        code, out, err = run("worker", *spec, *options)
    assert (code, out) == (2, "")
    assert words in err


def test_attach_needs_to_know_where(run: Callable[..., Finished]) -> None:
    assert run("runs", "attach", "--fleet", "f")[0] == 2
    code, _, err = run("runs", "attach", "--exchange", "redis://127.0.0.1:9", "--fleet", "f")
    assert code == 2
    assert "nobody listens there" in err
