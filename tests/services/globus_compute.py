"""Globus Compute on one machine for tests: the real SDK and the real endpoint, no cloud.

A stand-in for the web service (`globus_web.py`), RabbitMQ, and one `globus-compute-endpoint`
whose workers run on this machine. By hand, until Ctrl-C:

    python -m tests.services.globus_compute --install
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.services import globus_web, rabbitmq
from tests.services.process import (
    MissingServiceError,
    Process,
    end_all_that_name,
    in_ci,
    listening,
    wait_for_the_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_INSTALL_SECONDS = 600
_READY_SECONDS = 60.0
_SITE = "SCALEINFER_TEST_SITE"
# Adds the tests' own packages behind the endpoint's, so that a worker finds scaleinfer while
# the endpoint keeps the versions it pins.
_PTH = f"import os, site; list(map(site.addsitedir, filter(None, [os.environ.get('{_SITE}')])))\n"
_CONFIG = """\
display_name: scaleinfer tests
email: nobody@example.org
local_compute_services: true
heartbeat_period: 2
"""
_TEMPLATE = """\
heartbeat_period: 2
idle_heartbeats_soft: 0
engine:
  type: {{ engine | default("GlobusComputeEngine") }}
  address: 127.0.0.1
  encrypted: false
  max_workers_per_node: {{ workers | default(4) }}
  cores_per_worker: 0.000001
  heartbeat_period: 2
  heartbeat_threshold: 10
  job_status_kwargs: {strategy_period: 0.5}
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 0
    max_blocks: 1
    worker_init: |
      {% if not (bare | default(false)) %}export @NAME@='@SITE@'{% endif %}

      eval {{ worker_init | default('""') }}
"""


@dataclass(frozen=True)
class GlobusCompute:
    """A running endpoint and the service that tasks reach it through.

    Attributes:
        endpoint_id: The endpoint's id.
        modules: A folder on the workers' import path, for functions of a test.
        folder: Everything the services write.
    """

    endpoint_id: str
    modules: Path
    folder: Path

    def register_offline(self, endpoint_id: str) -> None:
        """Make an endpoint known that never comes online."""
        _rest("PUT", f"/v3/endpoints/{endpoint_id}", {"endpoint_name": "asleep"})

    def refuse_submits(self, count: int) -> None:
        """Have the service refuse the next batches."""
        _rest("POST", f"/control?refuse={count}")

    def batches(self) -> list[int]:
        """Say how many tasks each accepted submit call carried."""
        sizes: list[int] = _rest("POST", "/control")["batches"]
        return sizes


def client() -> Any:
    """Make an SDK client that is logged in to the stand-in."""
    import globus_sdk
    from globus_compute_sdk import Client

    return Client(
        local_compute_services=True,
        authorizer=globus_sdk.AccessTokenAuthorizer(globus_web.TOKEN),
    )


def close(client: Any) -> None:
    """Close the connections that a client of `client()` keeps alive."""
    for part in (client._compute_web_client.v2, client._compute_web_client.v3):
        part.close()


def _rest(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", globus_web.PORT, timeout=10)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {globus_web.TOKEN}"}
        connection.request(method, path, json.dumps(body or {}), headers)
        return json.loads(connection.getresponse().read())


def cache_folder() -> Path:
    """Return where the endpoint's environment is kept between runs."""
    base = os.environ.get("SCALEINFER_TEST_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaleinfer-tests"


def install(*, allowed: bool | None = None) -> Path:
    """Make sure that RabbitMQ and the endpoint are there; return the endpoint's environment.

    The endpoint pins other versions than scaleinfer needs, so it has an environment of its own
    (some 60 MB), made once.

    Args:
        allowed: Whether things may be installed; None means in CI only.

    Raises:
        MissingServiceError: something is missing, and may not or cannot be installed.
    """
    rabbitmq.install(allowed=allowed)
    wanted = f"globus-compute-endpoint=={version('globus-compute-sdk')}"
    python = "{}.{}".format(*sys.version_info)
    home = cache_folder() / f"{wanted.replace('==', '-')}-py{python}"
    complete = home / "complete"
    if complete.exists():
        return home
    if not (in_ci() if allowed is None else allowed):
        raise MissingServiceError(
            f"{wanted} is missing: python -m tests.services.globus_compute --install"
        )
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        _make_environment(home, wanted)
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", "") or ""
        raise MissingServiceError(
            f"{wanted} cannot be installed: {error} {words[-1000:]}"
        ) from error
    (home / "lib" / f"python{python}" / "site-packages" / "scaleinfer_tests.pth").write_text(_PTH)
    complete.touch()
    return home


def _make_environment(home: Path, wanted: str) -> None:
    python = str(home / "bin" / "python")
    if uv := shutil.which("uv"):
        commands = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(home)],
            [uv, "pip", "install", "--quiet", "--python", python, wanted],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(home)],
            [python, "-m", "pip", "install", "--quiet", wanted],
        ]
    for command in commands:
        subprocess.run(
            command, check=True, timeout=_INSTALL_SECONDS, capture_output=True, text=True
        )


@contextmanager
def globus_compute(folder: Path, *, allowed: bool | None = None) -> Iterator[GlobusCompute]:
    """Run everything below `folder`, and leave no process behind.

    Raises:
        MissingServiceError: something is missing, or the port that the SDK fixes is taken.
    """
    home = install(allowed=allowed)
    if listening(globus_web.PORT):
        raise MissingServiceError(f"port {globus_web.PORT} is taken, and the SDK knows no other")
    modules = folder / "modules"
    modules.mkdir(parents=True)
    with rabbitmq.rabbitmq(folder / "rabbitmq") as amqp, _web(folder, amqp):
        endpoint = _endpoint(folder, home, modules)
        try:
            endpoint_id = _wait_online(endpoint, folder / "ep" / "endpoint.json")
            yield GlobusCompute(endpoint_id, modules, folder)
        finally:
            endpoint.stop()
            end_all_that_name(str(folder / "ep"))
            end_all_that_name(str(modules))


@contextmanager
def _web(folder: Path, amqp: str) -> Iterator[None]:
    service = Process(
        [sys.executable, "-m", "tests.services.globus_web", amqp],
        log=folder / "web.log",
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        name="the stand-in web service",
    )
    try:
        service.wait_until(lambda: listening(globus_web.PORT), _READY_SECONDS)
        yield
    finally:
        service.stop()


def _endpoint(folder: Path, home: Path, modules: Path) -> Process:
    """Configure and start the endpoint as a user would, with a client identity."""
    config = folder / "ep"
    config.mkdir()
    site = sysconfig.get_path("purelib")
    template = _TEMPLATE.replace("@NAME@", _SITE).replace("@SITE@", site)
    (config / "config.yaml").write_text(_CONFIG)
    (config / "user_config_template.yaml.j2").write_text(template)
    path = f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    # Started by root, an endpoint clears the environment of the processes that it starts.
    inherited = {
        "PATH": path,
        "GLOBUS_COMPUTE_USER_DIR": str(folder),
        "PYTHONPATH": str(modules),
    }
    (config / "user_environment.yaml").write_text(
        "".join(f"{name}: {json.dumps(value)}\n" for name, value in inherited.items())
    )
    login = {
        "GLOBUS_SDK_SERVICE_URL_AUTH": f"http://localhost:{globus_web.PORT}/auth/",
        "GLOBUS_COMPUTE_CLIENT_ID": "aaaaaaaa-0000-4000-8000-000000000001",
        "GLOBUS_COMPUTE_CLIENT_SECRET": "not-a-secret",
    }
    return Process(
        ["globus-compute-endpoint", "start", config.name],
        log=folder / "endpoint.log",
        env=os.environ | inherited | login | {"HOME": str(folder)},
        name="globus-compute-endpoint",
    )


def _wait_online(endpoint: Process, registered: Path) -> str:
    def name() -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(registered.read_text())["endpoint_id"])
        return ""

    def online() -> bool:
        return bool(name()) and _rest("GET", f"/v2/endpoints/{name()}/status")["status"] == "online"

    endpoint.wait_until(online, _READY_SECONDS)
    return name()


@pytest.fixture(scope="session")
def compute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlobusCompute]:
    """Globus Compute for every test of a session; skips where it is not installed."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(globus_compute(tmp_path_factory.mktemp("globus")))
        except MissingServiceError as missing:
            pytest.skip(str(missing))
        yield running


def main() -> None:
    """Run everything until Ctrl-C."""
    allowed = "--install" in sys.argv or None
    with (
        tempfile.TemporaryDirectory() as folder,
        globus_compute(Path(folder), allowed=allowed) as running,
    ):
        print(f"endpoint {running.endpoint_id}, functions in {running.modules}", flush=True)
        wait_for_the_end()


if __name__ == "__main__":
    main()
