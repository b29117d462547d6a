"""Globus Compute's launcher without Globus: what is refused early, and what errors become."""

from __future__ import annotations

import inspect
import json
import uuid
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import globus_sdk
import pytest
from globus_compute_sdk.errors import TaskExecutionFailed, VersionMismatch
from globus_compute_sdk.serialize import PureSourceTextInspect

from scaleinfer import __version__
from scaleinfer.errors import BudgetExceeded, ConfigError, WorkerLost
from scaleinfer.fleet._globus_compute import GlobusComputeLauncher
from scaleinfer.fleet._globus_node import read_answer, run_on_node
from scaleinfer.fleet._globus_session import explain

if TYPE_CHECKING:
    from pathlib import Path

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


def echo(spec: str) -> str:
    return f"did {spec}"


def fail(spec: str) -> str:
    raise ValueError(spec)


def refuse(spec: str) -> str:
    raise BudgetExceeded("0.10 USD are spent", hint="Raise usd=.")


def answer_of(entry: str, spec: str = "it") -> str:
    """Run the function as a node does: from its text alone."""
    strategy = PureSourceTextInspect()
    travelled = strategy.deserialize(strategy.serialize(run_on_node))
    return str(travelled(entry, spec))


def read(answer: str) -> str:
    return read_answer(answer, where="endpoint E", version=__version__)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Importable functions to run, as a node has them."""
    name = f"entries_{uuid.uuid4().hex}"
    source = "\n".join(inspect.getsource(function) for function in (echo, fail, refuse))
    head = "from scaleinfer.errors import BudgetExceeded\n"
    (tmp_path / f"{name}.py").write_text(head + source)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_summary_comes_back(module: str) -> None:
    assert read(answer_of(f"{module}:echo")) == "did it"


def test_an_exception_becomes_a_lost_worker_with_its_traceback(module: str) -> None:
    with pytest.raises(WorkerLost, match="ValueError: it") as caught:
        read(answer_of(f"{module}:fail"))
    assert "endpoint E" in str(caught.value)
    assert any("raise ValueError(spec)" in note for note in caught.value.__notes__)


def test_our_own_errors_keep_their_type_and_advice(module: str) -> None:
    with pytest.raises(BudgetExceeded, match=r"0\.10 USD are spent \(node ") as caught:
        read(answer_of(f"{module}:refuse"))
    assert caught.value.hint == "Raise usd=."


@pytest.mark.parametrize("entry", ["no_such_package_here:run", "json:no_such_function"])
def test_what_cannot_be_imported_names_what_is_installed(entry: str) -> None:
    with pytest.raises(ConfigError, match="no_such") as caught:
        read(answer_of(entry))
    assert f"scaleinfer {__version__} on node" in str(caught.value)
    assert "worker_init" in caught.value.hint


def node(**changes: Any) -> str:
    about = {"node": "n1", "python": "/py", "python_version": "3.12.1", "scaleinfer": __version__}
    return json.dumps(about | changes)


def test_a_node_without_scaleinfer_is_told_what_to_install() -> None:
    with pytest.raises(ConfigError, match="not installed on node n1 of endpoint E") as caught:
        read(node(scaleinfer=None, missing="No module named 'scaleinfer'"))
    assert f"/py -m pip install scaleinfer=={__version__}" in caught.value.hint


def test_a_failure_under_another_version_says_so() -> None:
    failed = {"type": "KeyError", "message": "'lease'", "traceback": "..."}
    with pytest.raises(WorkerLost) as caught:
        read(node(scaleinfer="0.0.1", failed=failed))
    assert "The node has scaleinfer 0.0.1" in caught.value.hint
    with pytest.raises(WorkerLost) as same:
        read(node(failed=failed))
    assert not same.value.hint


@pytest.mark.parametrize("text", ["", "null", "{}", "[1]", "plain"])
def test_an_answer_that_is_none_is_a_lost_worker(text: str) -> None:
    with pytest.raises(WorkerLost, match="no worker gives"):
        read(text)


def refused(status: int, code: str, words: str) -> globus_sdk.GlobusAPIError:
    import requests

    response = requests.Response()
    response.status_code = status
    response.headers["Content-Type"] = "application/json"
    response._content = json.dumps({"code": code, "reason": words}).encode()
    response.request = requests.Request("POST", "https://compute.api.globus.org/v3").prepare()
    return globus_sdk.GlobusAPIError(response)


def too_old() -> Exception:
    mismatch: Exception = VersionMismatch("too old")  # type: ignore[no-untyped-call] # the SDK's
    return mismatch


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (refused(404, "ENDPOINT_NOT_FOUND", "x"), ConfigError, "knows no such endpoint"),
        (refused(403, "FORBIDDEN", "not yours"), ConfigError, "not yours"),
        (refused(422, "INVALID", "no such option"), ConfigError, "no such option"),
        (refused(429, "TOO_MANY", "slow down"), WorkerLost, "slow down"),
        (refused(503, "DOWN", "maintenance"), WorkerLost, "503"),
        (too_old(), ConfigError, "too old"),
        (ConnectionResetError("gone"), WorkerLost, "ConnectionResetError: gone"),
        (ConfigError("as it is"), ConfigError, "as it is"),
    ],
    ids=str,
)
def test_errors_of_the_service(error: Exception, kind: type[Exception], says: str) -> None:
    explained = explain(error, "endpoint E")
    assert type(explained) is kind
    assert says in str(explained)
    assert explained is error or explained.__cause__ is error


REMOTE = """\
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    run()
parsl.executors.high_throughput.errors.ManagerLost: Task failure due to loss of manager b1 on
host n7
"""


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (REMOTE, WorkerLost, "ManagerLost: Task failure due to loss of manager b1 on host n7"),
        ("Code serializer X disabled by current\n configuration", ConfigError, "source text"),
        ("invalid config\n  engine: NoSuch\n", WorkerLost, "invalid config engine: NoSuch"),
        ("", WorkerLost, "no reason was given"),
    ],
)
def test_errors_of_the_endpoint(text: str, kind: type[Exception], says: str) -> None:
    explained = explain(TaskExecutionFailed(text), "endpoint E")
    assert type(explained) is kind
    assert says in str(explained)
    assert text in explained.__notes__


def test_bad_arguments_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match="'polaris' is not the id"):
        GlobusComputeLauncher("polaris")
    with pytest.raises(ConfigError, match="must be JSON"):
        GlobusComputeLauncher(ENDPOINT, user_endpoint_config={"account": object()})
    with pytest.raises(ConfigError, match="twice"):
        GlobusComputeLauncher(ENDPOINT, worker_init="a", user_endpoint_config={"worker_init": "b"})
    named = GlobusComputeLauncher(uuid.UUID(ENDPOINT), max_workers=3)
    assert (named.name, named.max_workers) == (f"Globus Compute endpoint {ENDPOINT}", 3)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who never logged in."""
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("stranger")
def test_without_a_login_nobody_is_asked_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("asked for a login")

    monkeypatch.setattr("builtins.input", ask)
    launcher = GlobusComputeLauncher(ENDPOINT)
    error = launcher.start("{}").exception(timeout=30)
    launcher.close()
    assert isinstance(error, ConfigError)
    assert "nobody is logged in" in str(error)
    assert 'python -c "from globus_compute_sdk import Client; Client()"' in error.hint
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("stranger")
def test_a_login_that_ends_later_is_the_same_error() -> None:
    from scaleinfer.fleet._globus_login import our_client

    client = our_client()
    with pytest.raises(ConfigError, match="nobody is logged in"):
        client.app.login()
    client.app.close()


@pytest.mark.usefixtures("stranger")
def test_half_a_client_identity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "s")
    launcher = GlobusComputeLauncher(ENDPOINT)
    error = launcher.start("{}").exception(timeout=30)
    launcher.close()
    assert isinstance(error, ConfigError)
    assert "GLOBUS_COMPUTE_CLIENT_ID" in str(error)


def test_a_worker_cancelled_before_it_was_sent_is_not_sent() -> None:
    launcher = GlobusComputeLauncher(ENDPOINT, client=object(), burst_seconds=60.0)
    future: Future[str] = launcher.start("{}")
    assert future.cancel()
    launcher.close()
    with pytest.raises(CancelledError):
        future.result(timeout=0)


def test_close_without_start_and_twice_does_nothing() -> None:
    launcher = GlobusComputeLauncher(ENDPOINT)
    launcher.close()
    launcher.close()
    with pytest.raises(ConfigError, match="closed"):
        launcher.start("{}")
