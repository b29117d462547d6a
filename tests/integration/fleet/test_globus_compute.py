"""Workers through the real Globus Compute SDK and endpoint, over a stand-in of the web service."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

# Imported here, for it starts a thread that lives as long as the process.
import globus_compute_sdk
import pytest
from tests.services import globus_compute
from tests.services.globus_compute import GlobusCompute, compute

from scaleinfer import __version__, parallel_map
from scaleinfer.errors import ConfigError, WorkerLost
from scaleinfer.fleet import Fleet
from scaleinfer.fleet._globus_compute import GlobusComputeLauncher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from scaleinfer.testing import SimulatedServer

__all__ = ["compute"]

pytestmark = pytest.mark.timeout(180)

# An endpoint starts one process per configuration, which takes seconds: most tests share one.
INIT = "export PROBE_INIT='set it'"

PROBE = '''
import json, os, pathlib, sys, time

def meet(spec):
    """Wait until as many workers as expected run at once."""
    asked = json.loads(spec)
    folder = pathlib.Path(asked["folder"])
    (folder / str(asked["rank"])).write_text("here")
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < asked["expected"]:
        if time.monotonic() > deadline:
            raise TimeoutError("alone")
        time.sleep(0.05)
    return json.dumps({"rank": asked["rank"], "pid": os.getpid()})

def until_told(spec):
    asked = json.loads(spec)
    pathlib.Path(asked["begun"]).write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while not pathlib.Path(asked["stop"]).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "told"

def versions(spec):
    import scaleinfer
    return json.dumps([scaleinfer.__version__, os.environ.get("PROBE_INIT")])

def fail(spec):
    raise ValueError("no such model: " + spec)

def refuse(spec):
    from scaleinfer.errors import ConfigError
    raise ConfigError("the server ended at once; log /scratch/w.log", hint="Read the log.")

def leave(spec):
    sys.exit("enough")
'''


@pytest.fixture
def sdk(compute: GlobusCompute) -> Iterator[globus_compute_sdk.Client]:
    """A client of the SDK, logged in."""
    client = globus_compute.client()
    yield client
    globus_compute.close(client)


@pytest.fixture
def launch(
    compute: GlobusCompute, sdk: globus_compute_sdk.Client
) -> Iterator[Callable[..., GlobusComputeLauncher]]:
    """Make launchers at the endpoint that a test need not close."""
    (compute.modules / "probe.py").write_text(PROBE)
    made: list[GlobusComputeLauncher] = []

    def make(probe: str = "", **settings: Any) -> GlobusComputeLauncher:
        endpoint = settings.pop("endpoint_id", compute.endpoint_id)
        usual: dict[str, Any] = {"client": sdk, "close_seconds": 20.0, "worker_init": INIT}
        usual["entry"] = f"probe:{probe}"
        made.append(GlobusComputeLauncher(endpoint, **(usual | settings)))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()


def error_of(future: Future[str]) -> BaseException:
    error = future.exception(timeout=90)
    assert error is not None
    return error


def test_four_workers_run_at_once_and_travel_together(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher], tmp_path: Path
) -> None:
    before = len(compute.batches())
    launcher = launch("meet", max_workers=4)
    specs = [
        json.dumps({"rank": rank, "folder": str(tmp_path), "expected": 4}) for rank in range(4)
    ]
    futures = [launcher.start(spec) for spec in specs]
    answers = [json.loads(future.result(timeout=90)) for future in futures]
    assert [answer["rank"] for answer in answers] == [0, 1, 2, 3]
    assert len({answer["pid"] for answer in answers}) == 4
    calls = compute.batches()[before:]
    assert sum(calls) == 4
    # The SDK takes what is there when it wakes: at most the first goes alone.
    assert len(calls) <= 2


def test_a_node_imports_scaleinfer_and_runs_worker_init(
    launch: Callable[..., GlobusComputeLauncher],
) -> None:
    launcher = launch("versions")
    assert json.loads(launcher.start("").result(timeout=90)) == [__version__, "set it"]


def test_what_a_worker_raises_comes_back_with_its_node(
    launch: Callable[..., GlobusComputeLauncher],
) -> None:
    failed = error_of(launch("fail").start("llama"))
    assert isinstance(failed, WorkerLost)
    assert "ValueError: no such model: llama" in str(failed)
    assert "node " in str(failed)
    assert any("in fail" in note for note in failed.__notes__)

    refused = error_of(launch("refuse").start(""))
    assert isinstance(refused, ConfigError)
    assert "the server ended at once; log /scratch/w.log (node " in str(refused)
    assert "Read the log." in str(refused)

    left = error_of(launch("leave").start(""))
    assert isinstance(left, WorkerLost)
    assert "SystemExit: enough" in str(left)


def test_a_node_without_scaleinfer_is_named(
    compute: GlobusCompute, sdk: globus_compute_sdk.Client
) -> None:
    launcher = GlobusComputeLauncher(
        compute.endpoint_id, user_endpoint_config={"bare": True, "workers": 1}, client=sdk
    )
    error = error_of(launcher.start("{}"))
    launcher.close()
    assert isinstance(error, ConfigError)
    assert "scaleinfer is not installed on node" in str(error)
    assert compute.endpoint_id in str(error)
    assert f"-m pip install scaleinfer=={__version__}" in str(error)


def test_a_node_whose_scaleinfer_cannot_run_a_worker_is_named(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher]
) -> None:
    error = error_of(launch("no_such_function").start("{}"))
    assert isinstance(error, ConfigError)
    assert f"scaleinfer {__version__} on node" in str(error)
    assert "no_such_function" in str(error)


def test_an_endpoint_that_is_offline_or_unknown_is_an_error_at_once(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher]
) -> None:
    asleep = str(uuid.uuid4())
    compute.register_offline(asleep)
    offline = error_of(launch("fail", endpoint_id=asleep).start(""))
    assert isinstance(offline, ConfigError)
    assert f"{asleep} is offline" in str(offline)
    assert "globus-compute-endpoint start" in str(offline)

    nowhere = str(uuid.uuid4())
    unknown = error_of(launch("fail", endpoint_id=nowhere).start(""))
    assert isinstance(unknown, ConfigError)
    assert nowhere in str(unknown)
    assert "no such endpoint" in str(unknown)


def test_an_endpoint_that_cannot_start_its_workers_says_why(
    launch: Callable[..., GlobusComputeLauncher],
) -> None:
    error = error_of(launch("fail", user_endpoint_config={"engine": "NoSuchEngine"}).start(""))
    assert isinstance(error, WorkerLost)
    assert "NoSuchEngine" in str(error)


def test_a_token_that_is_refused_is_a_config_error(compute: GlobusCompute) -> None:
    import globus_sdk

    stranger = globus_compute_sdk.Client(
        local_compute_services=True, authorizer=globus_sdk.AccessTokenAuthorizer("wrong")
    )
    launcher = GlobusComputeLauncher(compute.endpoint_id, client=stranger)
    error = error_of(launcher.start(""))
    launcher.close()
    globus_compute.close(stranger)
    assert isinstance(error, ConfigError)
    assert "401" in str(error)


def test_a_refused_call_fails_its_workers_and_spoils_nothing(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher]
) -> None:
    launcher = launch("versions")
    compute.refuse_submits(1)
    refused = error_of(launcher.start(""))
    assert isinstance(refused, ConfigError)
    assert "refused, as the test asked" in str(refused)
    assert json.loads(launcher.start("").result(timeout=90))[0] == __version__


def test_close_lets_go_of_a_worker_that_does_not_end(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher], tmp_path: Path
) -> None:
    launcher = launch("until_told", close_seconds=0.5)
    begun, stop = tmp_path / "begun", tmp_path / "stop"
    future = launcher.start(json.dumps({"begun": str(begun), "stop": str(stop)}))
    while not begun.exists() and not future.done():
        time.sleep(0.05)
    assert not future.cancel()
    launcher.close()
    error = error_of(future)
    assert isinstance(error, WorkerLost)
    assert "had not ended" in str(error)
    launcher.close()
    with pytest.raises(ConfigError, match="closed"):
        launcher.start("")
    # Its late result finds nobody, and the next launcher gets its own.
    stop.write_text("")
    assert json.loads(launch("versions").start("").result(timeout=90))[0] == __version__


def test_close_waits_for_a_worker_that_ends(
    launch: Callable[..., GlobusComputeLauncher], tmp_path: Path
) -> None:
    launcher = launch("until_told", close_seconds=60.0)
    begun, stop = tmp_path / "begun", tmp_path / "stop"
    future = launcher.start(json.dumps({"begun": str(begun), "stop": str(stop)}))
    while not begun.exists() and not future.done():
        time.sleep(0.05)
    closing = threading.Thread(target=launcher.close)
    closing.start()
    stop.write_text("")
    closing.join(60)
    assert future.result(timeout=0) == "told"


def test_the_users_own_executor_is_left_alone(
    sdk: globus_compute_sdk.Client, launch: Callable[..., GlobusComputeLauncher]
) -> None:
    default = globus_compute_sdk.Executor._default_task_group_id
    serializer = sdk.fx_serializer
    launch("versions").start("").result(timeout=90)
    assert globus_compute_sdk.Executor._default_task_group_id == default
    assert sdk.fx_serializer is serializer


SCRIPT = """
import json, pathlib, sys, time
from scaleinfer.fleet._globus_compute import GlobusComputeLauncher
from tests.services.globus_compute import client

endpoint, init, begun, stop = sys.argv[1:]
launcher = GlobusComputeLauncher(
    endpoint, client=client(), entry="probe:until_told", worker_init=init, close_seconds=0.5
)
future = launcher.start(json.dumps({"begun": begun, "stop": stop}))
while not pathlib.Path(begun).exists() and not future.done():
    time.sleep(0.05)
launcher.close()
print(type(future.exception(0)).__name__)
"""


def test_a_process_ends_although_its_worker_does_not(
    compute: GlobusCompute, launch: Callable[..., GlobusComputeLauncher], tmp_path: Path
) -> None:
    begun, stop = tmp_path / "begun", tmp_path / "stop"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), compute.endpoint_id, INIT, begun, stop],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    stop.write_text("")
    assert (done.returncode, done.stdout.strip()) == (0, "WorkerLost"), done.stderr


def test_many_bursts_within_the_sdks_limit_all_arrive(
    launch: Callable[..., GlobusComputeLauncher], tmp_path: Path
) -> None:
    launcher = launch("meet", burst_seconds=0.0)
    futures = []
    for rank in range(5):
        spec = {"rank": rank, "folder": str(tmp_path), "expected": 1}
        futures.append(launcher.start(json.dumps(spec)))
        time.sleep(0.1)
    assert not wait(futures, timeout=120).not_done
    assert [json.loads(future.result())["rank"] for future in futures] == list(range(5))


@pytest.mark.anyio
async def test_a_map_over_workers_that_globus_compute_started(
    launch: Callable[..., GlobusComputeLauncher], server: SimulatedServer
) -> None:
    def launcher(_folder: Path) -> GlobusComputeLauncher:
        return launch(entry="scaleinfer.fleet._entry:run_worker")

    items = [f"item {number}" for number in range(50)]
    async with Fleet(launcher, 2, backend=server.base_url) as fleet:
        await fleet.ready(2, timeout=90)
        results = await parallel_map(items, "{}", fleet=fleet, progress=False)
        workers = {worker.name for worker in fleet.status().workers}
    assert results.texts == [f"echo: {item}" for item in items]
    assert {result.worker for result in results} <= workers
    assert len(workers) == 2
