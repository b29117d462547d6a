"""FIRST's batch API against a stand-in for its routes: exact bodies, files in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from scaleinfer import parallel_map
from scaleinfer.backends import BatchState, FirstBatches
from scaleinfer.batch import Batch
from scaleinfer.errors import ConfigError, EndpointError, Permanent, RateLimited, Transient
from scaleinfer.requests import Request
from scaleinfer.testing import SimulatedServer

pytestmark = pytest.mark.anyio

REQUEST = Request([{"role": "user", "content": "hi"}])


def refused(status: int, code: str, message: str = "no") -> EndpointError:
    body = orjson.dumps({"error": {"code": code, "message": message, "info": {}}}).decode()
    kind = Permanent if status < 500 else Transient
    return kind(message, status=status, body=body)


class Gateway:
    """The routes, with the bodies that were seen; works on files as the cluster would."""

    endpoint = "https://first"

    def __init__(self, *, answered: int | None = None) -> None:
        self.batches: dict[str, dict[str, Any]] = {}
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.status: Any = "pending"
        self.refusal: EndpointError | None = None
        self.result_as: str = "repr"
        self.answered = answered
        self.lists_as = "list"

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        self.posts.append((path, body))
        if self.refusal is not None:
            raise self.refusal
        name = f"batch-{len(self.batches) + 1}"
        self.batches[name] = body
        return {"batch_id": name, "task_ids": "t", "status": "pending", **body}

    async def get(self, path: str) -> Any:
        if path == "/v1/batches":
            rows = [{"batch_id": name, **body} for name, body in self.batches.items()]
            return rows if self.lists_as == "list" else {"batches": rows}
        name, _, what = path.removeprefix("/v1/batches/").partition("/")
        if name not in self.batches:
            raise refused(404, "batch_not_found")
        if not what:
            return self.status
        if self.status == "failed":
            raise refused(400, "batch_failed", "('Batch failed: walltime', 400)")
        if self.status != "completed":
            raise refused(400, "batch_ongoing", "Batch not completed yet.")
        return self.result(self.batches[name])

    def result(self, body: dict[str, Any]) -> Any:
        folder = Path(body["output_folder_path"])
        folder.mkdir(exist_ok=True)
        path = folder / "a.results.jsonl"
        rows = [orjson.loads(line) for line in Path(body["input_file"]).read_bytes().splitlines()]
        answer = {"choices": [{"message": {"content": "ok"}}], "response_time": 1.0}
        lines = [
            {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": answer}}
            for row in rows[: self.answered]
        ]
        path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
        said = {"results_file": str(path), "num_responses": len(lines), "duration_sec": 0.056}
        if self.result_as == "object":
            return {"results_file": str(path), "metrics": {"num_responses": len(lines)}}
        return repr(said) if self.result_as == "repr" else orjson.dumps(said).decode()


def batches(gateway: Gateway, folder: Path, **more: Any) -> FirstBatches:
    return FirstBatches(gateway, folder=folder, model="org/m", **more)


async def submitted(first: FirstBatches, token: str = "t1", rows: int = 3) -> str:
    lines = [first.line(f"c{number}", REQUEST) for number in range(rows)]
    return await first.create(token, first.group(REQUEST), await first.upload(token, lines))


async def answers(first: FirstBatches, batch: str) -> list[Any]:
    state = await first.poll(batch)
    return [one async for chunk in first.fetch(batch, state) for one in chunk]


async def test_a_batch_is_created_with_exactly_what_the_gateway_wants(tmp_path: Path) -> None:
    gateway = Gateway()
    first = batches(gateway, tmp_path)
    assert await submitted(first) == "batch-1"
    assert gateway.posts == [
        (
            "/sophia/vllm/v1/batches",
            {
                "input_file": f"{tmp_path}/t1.jsonl",
                "model": "org/m",
                "output_folder_path": f"{tmp_path}/t1.out/",
            },
        )
    ]
    row = orjson.loads((tmp_path / "t1.jsonl").read_bytes().splitlines()[0])
    assert (row["custom_id"], row["url"], row["body"]["model"]) == (
        "c0", "/v1/chat/completions", "org/m",
    )  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["t1.jsonl"]


@pytest.mark.parametrize("result_as", ["repr", "json", "object"])
async def test_the_result_is_read_in_every_form(tmp_path: Path, result_as: str) -> None:
    gateway = Gateway(answered=2)
    gateway.result_as = result_as
    first = batches(gateway, tmp_path)
    batch = await submitted(first)
    assert (await first.poll(batch)).phase == "validating"
    gateway.status = "completed"
    found = await answers(first, batch)
    assert [one.custom_id for one in found] == ["c0", "c1"]
    assert found[0].outcome.text == "ok"


async def test_files_travel_by_the_users_own_functions(tmp_path: Path) -> None:
    cluster: dict[str, bytes] = {}

    async def stage(data: bytes, path: str) -> None:
        cluster[path] = data
        (tmp_path / Path(path).name).write_bytes(data)

    def fetch(path: str) -> bytes:
        return Path(path).read_bytes()

    gateway = Gateway()
    first = batches(gateway, tmp_path, stage=stage, fetch=fetch)
    batch = await submitted(first)
    assert list(cluster) == [f"{tmp_path}/t1.jsonl"]
    gateway.status = "completed"
    assert len(await answers(first, batch)) == 3


async def test_what_goes_wrong_on_the_way_may_pass(tmp_path: Path) -> None:
    def broken(*arguments: Any) -> Any:
        raise OSError("no route")

    gateway = Gateway()
    first = batches(gateway, tmp_path, stage=broken, fetch=broken)
    with pytest.raises(Transient, match=r"staging .*t1\.jsonl failed: OSError: no route"):
        await submitted(first)
    here = batches(gateway, tmp_path)
    batch = await submitted(here)
    gateway.status = "completed"
    state = BatchState("completed")
    with pytest.raises(Transient, match="fetching"):
        async for _ in first.fetch(batch, state):
            pass


async def test_refusals_of_a_create(tmp_path: Path) -> None:
    gateway = Gateway()
    first = batches(gateway, tmp_path)
    gateway.refusal = refused(400, "quota_exceeded", "Quota of 1 active batch exceeded.")
    with pytest.raises(RateLimited):
        await submitted(first)
    gateway.refusal = None
    batch = await submitted(first)
    # The same file again: it was accepted, whatever the answer to the first try was.
    gateway.refusal = refused(400, "batch_ongoing")
    assert await submitted(first) == batch
    gateway.refusal = refused(404, "endpoint_not_found")
    with pytest.raises(Permanent):
        await submitted(first, "t2")


@pytest.mark.parametrize("lists_as", ["list", "object"])
async def test_a_batch_is_found_by_its_input_file(tmp_path: Path, lists_as: str) -> None:
    gateway = Gateway()
    gateway.lists_as = lists_as
    first = batches(gateway, tmp_path)
    await submitted(first, "t1")
    await submitted(first, "t2")
    assert await first.find("t2") == "batch-2"
    assert await first.find("t3") is None


async def test_states(tmp_path: Path) -> None:
    gateway = Gateway()
    first = batches(gateway, tmp_path)
    assert (await first.poll("unknown")).phase == "gone"
    batch = await submitted(first)
    gateway.status = {"status": "running"}
    assert (await first.poll(batch)).phase == "in_progress"
    gateway.status = "failed"
    state = await first.poll(batch)
    assert (state.phase, state.begun) == ("failed", True)
    assert "walltime" in state.problems[0].message
    assert await answers(first, batch) == []
    gateway.status = "melting"
    with pytest.raises(Transient, match="melting"):
        await first.poll(batch)
    await first.cancel(batch)  # it cannot; and says nothing


async def test_what_a_failed_job_left_behind_is_taken(tmp_path: Path) -> None:
    gateway = Gateway(answered=2)
    first = batches(gateway, tmp_path)
    batch = await submitted(first)
    gateway.result(gateway.batches[batch])
    gateway.status = "failed"
    assert [one.custom_id for one in await answers(first, batch)] == ["c0", "c1"]
    gateway.batches.clear()
    state = BatchState("failed", begun=True)
    assert [chunk async for chunk in first.fetch(batch, state)] == []


async def test_a_result_that_is_not_there(tmp_path: Path) -> None:
    gateway = Gateway()
    first = batches(gateway, tmp_path)
    batch = await submitted(first)
    gateway.status = "completed"
    gateway.result = lambda body: {"results_file": f"{tmp_path}/none"}  # type: ignore[method-assign]
    with pytest.raises(Permanent) as caught:
        await answers(first, batch)
    assert caught.value.status == 404
    gateway.result = lambda body: "not a result"  # type: ignore[method-assign]
    with pytest.raises(Transient, match="names no results file"):
        await answers(first, batch)


async def test_a_map_goes_through_it(tmp_path: Path, journal: Path) -> None:
    gateway = Gateway(answered=39)
    gateway.status = "completed"
    mode = Batch(via=batches(gateway, tmp_path), poll_s=(0.01, 0.1))
    async with SimulatedServer() as server:
        results = await parallel_map(
            range(40), "Item {}", base_url=server.base_url, mode=mode, journal=journal,
            progress=False,
        )  # fmt: skip
        assert results.texts == ["ok"] * 40
        assert server.ledger.arrived == 0
    assert len(gateway.posts) == 2  # the second for the row that was left out
    assert results[39].batch == "batch-2"


def test_arguments_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="both stage"):
        FirstBatches(Gateway(), folder="/x", model="m", stage=lambda data, path: None)
    with pytest.raises(ConfigError, match=re.escape("path on the cluster")):
        FirstBatches(Gateway(), folder="relative", model="m")
