"""The simulated gateway's batch routes: exact bodies, quota, early and failed results."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import orjson
import pytest

from scaleinfer.testing import BatchApi, Fault, FirstCluster, FirstModel, FirstToken, Ledger
from scaleinfer.testing._first_gateway import Gateway, GatewayRules
from scaleinfer.testing._first_service import FirstService
from scaleinfer.testing._job import Head
from scaleinfer.testing._settings import Settings

ROOT = "/resource_server"
SUBMIT = f"{ROOT}/sophia/vllm/v1/batches"
BATCHES = f"{ROOT}/v1/batches"


class Asker:
    """A client of a gateway whose cluster's file system is a folder."""

    def __init__(
        self, folder: Path, api: BatchApi | None = None, tokens: dict[str, FirstToken] | None = None
    ) -> None:
        self.folder = folder
        clusters = (
            FirstCluster(name="sophia", models=(FirstModel(name="m"),)),
            FirstCluster(
                name="metis", framework="api", direct=True, models=(FirstModel(name="x"),)
            ),
        )
        gateway = Gateway(clusters, tokens, GatewayRules(requests_per_second=1000))
        settings = Settings(models=("m", "x"), batches=api)
        self.of = FirstService(settings, Ledger(), gateway, epoch=1e9)

    def __call__(
        self, method: str, path: str, body: Any = None, now: float = 0.0, token: str = "any"
    ) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        head = Head(method, path, ((b"authorization", f"Bearer {token}".encode()),))
        head.query = query
        data = b"" if body is None else orjson.dumps(body)
        job = self.of.arrive(head, data, self, now)
        assert job.due is not None
        sent, _ = self.of.advance(job, job.due)
        said = sent.partition(b"\r\n\r\n")[2]
        parsed = orjson.loads(said) if b"application/json" in sent else said.decode()
        return job.delivery.status, parsed

    def file(self, name: str = "in", rows: int = 3, url: str = "/v1/chat/completions") -> str:
        path = self.folder / f"{name}.jsonl"
        lines = []
        for number in range(rows):
            messages = [{"role": "user", "content": f"{name} {number}"}]
            body = {"model": "m", "messages": messages}
            lines.append({"custom_id": str(number), "method": "POST", "url": url, "body": body})
        path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
        return str(path)

    def submit(self, name: str = "in", now: float = 0.0, **more: Any) -> tuple[int, Any]:
        body = {
            "input_file": self.file(name),
            "model": "m",
            "output_folder_path": f"{self.folder}/out/",
        }
        token = more.pop("token", "any")
        return self("POST", SUBMIT, body | more, now, token)


def code(said: tuple[int, Any]) -> tuple[int, str]:
    return said[0], said[1]["error"]["code"]


def test_from_a_file_to_a_file(tmp_path: Path) -> None:
    ask = Asker(tmp_path, BatchApi(seconds=6.0, validating_s=1.0))
    status, card = ask.submit()
    assert status == 200
    assert set(card) == {
        "batch_id", "input_file", "model", "output_folder_path", "task_ids", "status",
    }  # fmt: skip
    name, where = card["batch_id"], f"{BATCHES}/{card['batch_id']}"
    assert ask("GET", where) == (200, "pending")
    assert ask("GET", where, now=2.0) == (200, "running")
    early = ask("GET", f"{where}/result", now=2.0)
    assert early[1]["error"] == {
        "code": "batch_ongoing",
        "message": "Batch not completed yet. Results not ready.",
        "info": {},
    }
    assert ask("GET", where, now=7.0) == (200, "completed")
    _, said = ask("GET", f"{where}/result", now=7.0)
    assert isinstance(said, str)
    assert said.startswith("{'results_file': ")
    result = ast.literal_eval(said)
    assert (result["num_responses"], result["lines_processed"], result["duration_sec"]) == (3, 3, 6)
    rows = [orjson.loads(line) for line in Path(result["results_file"]).read_bytes().splitlines()]
    assert {row["custom_id"] for row in rows} == {"0", "1", "2"}
    assert ask("GET", BATCHES, now=7.0)[1][0]["batch_id"] == name
    assert ask("GET", f"{BATCHES}?status=pending", now=7.0) == (200, [])
    assert ask.of.ledger.counts() == {f"in {number}": 1 for number in range(3)}


def test_one_active_batch_for_each_user(tmp_path: Path) -> None:
    tokens = {"a": FirstToken("ada"), "b": FirstToken("bob")}
    ask = Asker(tmp_path, BatchApi(seconds=5.0), tokens)
    name = ask.submit("one", token="a")[1]["batch_id"]
    assert code(ask.submit("two", token="a")) == (400, "quota_exceeded")
    assert code(ask.submit("one", token="a")) == (400, "batch_ongoing")
    assert ask.submit("three", token="b")[0] == 200
    assert ask.submit("two", token="a", now=5.0)[0] == 200
    assert code(ask("GET", f"{BATCHES}/{name}", token="b")) == (404, "batch_not_found")
    assert [card["status"] for card in ask("GET", BATCHES, token="a", now=5.0)[1]] == [
        "completed", "running",
    ]  # fmt: skip


def test_without_a_folder_the_job_runs_and_nobody_knows_of_it(tmp_path: Path) -> None:
    ask = Asker(tmp_path)
    body = {"input_file": ask.file(), "model": "m"}
    assert code(ask("POST", SUBMIT, body)) == (500, "internal_error")
    assert ask("GET", BATCHES, now=1.0) == (200, [])
    assert ask.of.ledger.counts() == {f"in {number}": 1 for number in range(3)}


def test_a_batch_fails_with_its_job(tmp_path: Path) -> None:
    ask = Asker(tmp_path, BatchApi(seconds=10.0, expires_s=5.0))
    where = f"{BATCHES}/{ask.submit()[1]['batch_id']}"
    assert ask("GET", where, now=5.0) == (200, "failed")
    status, said = ask("GET", f"{where}/result", now=5.0)
    assert (status, said["error"]["code"]) == (400, "batch_failed")
    assert said["error"]["message"].startswith("('Batch failed: ")


def test_input_is_not_looked_at_before_the_batch_begins(tmp_path: Path) -> None:
    ask = Asker(tmp_path, BatchApi(validating_s=1.0))
    status, card = ask.submit(input_file="/nowhere/in.jsonl")
    assert status == 200
    assert ask("GET", f"{BATCHES}/{card['batch_id']}", now=1.0) == (200, "failed")


def test_rows_can_be_missing_and_fail(tmp_path: Path) -> None:
    left_out, failed = Fault.drop(match="in 0"), Fault.status(500, match="in 1")
    ask = Asker(tmp_path, BatchApi(faults=(left_out, failed)))
    where = f"{BATCHES}/{ask.submit()[1]['batch_id']}/result"
    result = ast.literal_eval(ask("GET", where, now=1.0)[1])
    rows = [orjson.loads(line) for line in Path(result["results_file"]).read_bytes().splitlines()]
    assert {row["custom_id"]: row["response"]["status_code"] for row in rows} == {
        "1": 500,
        "2": 200,
    }


@pytest.mark.parametrize(
    ("path", "more", "status", "said"),
    [
        (SUBMIT, {"completion_window": "24h"}, 422, "invalid_request"),
        (SUBMIT, {"model": "none"}, 404, "endpoint_not_found"),
        (SUBMIT.replace("sophia", "polaris"), {}, 404, "cluster_not_found"),
        (f"{ROOT}/metis/api/v1/batches", {"model": "x"}, 400, "unsupported_endpoint"),
    ],
)
def test_what_cannot_be_submitted(
    tmp_path: Path, path: str, more: dict[str, Any], status: int, said: str
) -> None:
    ask = Asker(tmp_path)
    body = {"input_file": ask.file(), "model": "m", "output_folder_path": "/o"} | more
    assert code(ask("POST", path, body)) == (status, said)
