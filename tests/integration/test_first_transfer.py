"""`GlobusTransfer` against a stand-in for the Transfer API, and FIRST's batches over it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer import parallel_map
from scaleinfer.backends import FirstBackend, FirstLimits, GlobusTransfer
from scaleinfer.batch import Batch
from scaleinfer.errors import AuthError, ConfigError, EndpointError, Permanent, Transient
from scaleinfer.testing import BatchApi, FirstCluster, FirstModel, SimulatedFirst

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

MODEL = "openai/gpt-oss-120b"


class TransferApi:
    """Globus Transfer as far as it is used: two collections, copies that take some looks.

    Attributes:
        looks: How often a task is still `ACTIVE` when it is asked for.
        trouble: `nice_status` of every task, which then never ends by itself.
        status: Answer everything with this status.
    """

    def __init__(self, roots: dict[str, Path]) -> None:
        self.roots = roots
        self.looks = 1
        self.trouble = ""
        self.status = 200
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.tokens: set[str] = set()
        self._left: dict[str, int] = {}
        self.url = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if self.status != 200:
            return self.status, {"code": "Refused", "message": "not now", "request_id": "r"}
        match [method, *path.removeprefix("/v0.10/").split("/")]:
            case ["GET", "submission_id"]:
                return 200, {"value": f"submission-{len(self.submitted)}"}
            case ["POST", "transfer"]:
                self.submitted.append(body)
                task = f"task-{len(self.submitted)}"
                self._left[task] = self.looks
                return 202, {"task_id": task, "code": "Accepted"}
            case ["GET", "task", task]:
                return 200, self._look(task)
            case ["POST", "task", task, "cancel"]:
                self.cancelled.append(task)
                return 200, {"code": "Canceled"}
        return 404, {"code": "NotFound", "message": path, "request_id": "r"}

    def _look(self, task: str) -> dict[str, Any]:
        if self.trouble:
            return {"status": "ACTIVE", "nice_status": self.trouble, "is_ok": False}
        self._left[task] -= 1
        if self._left[task] >= 0:
            return {"status": "ACTIVE", "nice_status": "OK", "is_ok": True}
        asked = self.submitted[int(task.partition("-")[2]) - 1]
        (item,) = asked["DATA"]
        source = self._file(asked["source_endpoint"], item["source_path"])
        if not source.exists():
            return {"status": "FAILED", "fatal_error": {"code": "FILE_NOT_FOUND"}}
        target = self._file(asked["destination_endpoint"], item["destination_path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return {"status": "SUCCEEDED", "is_ok": None}

    def _file(self, collection: str, path: str) -> Path:
        return self.roots[collection] / path.lstrip("/")


@contextmanager
def serving(api: TransferApi) -> Iterator[TransferApi]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            api.tokens.add(self.headers.get("Authorization", ""))
            status, said = api.answer(self.command, self.path, body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815 - the base class names them so

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        api.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TransferApi]:
    for name in ("GLOBUS_TRANSFER_TOKEN", "FIRST_CLIENT_ID", "FIRST_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(TransferApi({"mine": Path("/"), "eagle": tmp_path / "eagle"})) as running:
        yield running


def transfer(api: TransferApi, tmp_path: Path, **settings: Any) -> GlobusTransfer:
    usual: dict[str, Any] = {"token": "t", "poll_s": 0.02, "base_url": api.url}
    return GlobusTransfer("mine", "eagle", local_folder=tmp_path / "here", **usual | settings)


async def test_there_and_back(api: TransferApi, tmp_path: Path) -> None:
    moves = transfer(api, tmp_path)
    await moves.stage(b"rows", "/project/ada/in.jsonl")
    assert (tmp_path / "eagle/project/ada/in.jsonl").read_bytes() == b"rows"
    assert await moves.fetch("/project/ada/in.jsonl") == b"rows"
    assert list((tmp_path / "here").iterdir()) == [], "nothing is left on the way"
    first, second = api.submitted
    assert (first["source_endpoint"], first["destination_endpoint"]) == ("mine", "eagle")
    assert (second["source_endpoint"], second["destination_endpoint"]) == ("eagle", "mine")
    assert first["submission_id"] == "submission-0"
    assert first["verify_checksum"] is True
    assert "+00:00" in first["deadline"]
    assert api.tokens == {"Bearer t"}


async def test_paths_as_the_collections_name_them(api: TransferApi, tmp_path: Path) -> None:
    moves = transfer(
        api, tmp_path, local_path="/~/here", destination_root="/eagle/", token=lambda: "new"
    )
    api.roots["mine"] = tmp_path / "mine"
    api.trouble = "CONNECT_FAILED"
    with pytest.raises(Transient, match="CONNECT_FAILED"):
        await moves.stage(b"x", "/eagle/project/in.jsonl")
    (item,) = api.submitted[0]["DATA"]
    assert item["source_path"].startswith("/~/here/")
    assert item["destination_path"] == "/project/in.jsonl"
    assert api.cancelled == ["task-1"]
    assert api.tokens == {"Bearer new"}
    with pytest.raises(ConfigError, match="not below /eagle"):
        await moves.fetch("/grand/project/in.jsonl")


async def test_a_file_that_is_not_there(api: TransferApi, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await transfer(api, tmp_path).fetch("/project/none")


async def test_one_that_takes_too_long_is_cancelled(api: TransferApi, tmp_path: Path) -> None:
    api.looks = 1000
    with pytest.raises(Transient, match="not done in 0 s"):
        await transfer(api, tmp_path, timeout_s=0.1).stage(b"x", "/in")
    assert api.cancelled == ["task-1"]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthError), (403, AuthError), (400, Permanent), (404, Permanent)]
)
async def test_refusals(
    api: TransferApi, tmp_path: Path, status: int, kind: type[EndpointError]
) -> None:
    api.status = status
    with pytest.raises(kind, match=f"Globus Transfer answered {status}: not now") as caught:
        await transfer(api, tmp_path).stage(b"x", "/in")
    assert caught.value.status == status
    assert list((tmp_path / "here").iterdir()) == []


async def test_no_token(api: TransferApi, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="no token for Globus Transfer") as caught:
        await transfer(api, tmp_path, token=None).stage(b"x", "/in")
    assert "GLOBUS_TRANSFER_TOKEN" in caught.value.hint
    assert not api.tokens


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="poll_s"):
        GlobusTransfer("a", "b", local_folder="/x", poll_s=0)
    with pytest.raises(ConfigError, match="two collections"):
        GlobusTransfer("a", "", local_folder="/x")


async def test_a_map_in_batches_over_it(
    api: TransferApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_TRANSFER_TOKEN", "t")
    cluster = FirstCluster(name="sophia", models=(FirstModel(name=MODEL),))
    # The stand-in for the cluster reads this machine's files, so its collection has their names.
    api.roots["eagle"] = Path("/")
    async with SimulatedFirst([cluster], batches=BatchApi(seconds=0.1)) as first:
        backend = FirstBackend(
            "sophia/vllm", model=MODEL, base_url=first.base_url, token="any",
            limits=FirstLimits(),
        )  # fmt: skip
        moves = transfer(api, tmp_path, token=None)
        results = await parallel_map(
            range(40), "Is {}?", backend=backend, progress=False,
            mode=Batch(
                folder=tmp_path / "eagle", stage=moves.stage, fetch=moves.fetch, poll_s=(0.1, 0.3)
            ),
        )  # fmt: skip
        assert len(results.ok) == 40
        assert len(api.submitted) == 2
        assert first.refused == {}
