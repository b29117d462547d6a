"""The simulated server's batch API, without sockets: the clock is passed in."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from scaleinfer.errors import ConfigError
from scaleinfer.testing import BatchApi, Fault, SimulatedServer
from scaleinfer.testing._batch_files import form_parts
from scaleinfer.testing._job import Head
from scaleinfer.testing._service import Service

BOUNDARY = "frontier"
CHAT = "/v1/chat/completions"


def line(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": "sim-model", "messages": [{"role": "user", "content": f"row {number}"}]}
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body} | fields


class Client:
    """A service and who asks it; every method says when."""

    def __init__(self, **api: Any) -> None:
        settings: dict[str, Any] = {"batches": BatchApi(**api)}
        self.server = SimulatedServer(**settings)
        self.ledger = self.server.ledger
        self.service = Service(self.server.settings, self.ledger, epoch=1000.0)

    def ask(
        self, now: float, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        head = Head(method, path, [(b"content-type", kind.encode())])
        head.query = query
        job = self.service.arrive(head, body, None, now)
        data, _ = self.service.advance(job, now)
        status = int(data.split(b" ", 2)[1])
        content = data.partition(b"\r\n\r\n")[2]
        return status, orjson.loads(content) if b"application/json" in data[:200] else content

    def upload(self, rows: list[dict[str, Any]], now: float = 0.0) -> tuple[int, Any]:
        data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
        form = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        ).encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self.ask(now, "POST", "/v1/files", form, kind)

    def create(self, rows: list[dict[str, Any]], now: float = 0.0, **more: Any) -> tuple[int, Any]:
        status, file = self.upload(rows, now)
        assert status == 200, file
        asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"} | more
        return self.ask(now, "POST", "/v1/batches", orjson.dumps(asked))

    def batch(self, now: float, number: int = 1) -> Any:
        status, batch = self.ask(now, "GET", f"/v1/batches/batch_sim{number}")
        assert status == 200
        return batch

    def lines(self, now: float, name: str | None) -> list[dict[str, Any]]:
        if name is None:
            return []
        status, content = self.ask(now, "GET", f"/v1/files/{name}/content")
        assert status == 200
        return [orjson.loads(one) for one in content.splitlines()]


def test_a_batch_goes_through_its_states_and_is_answered_row_by_row() -> None:
    client = Client(validating_s=1, seconds=10, finalizing_s=2)
    _, made = client.create([line(n) for n in range(10)], metadata={"run": "x"})
    assert made["status"] == "validating"
    assert made["request_counts"]["total"] == 0
    seen = [client.batch(now) for now in (0.5, 6.0, 12.0, 13.0)]
    states = [batch["status"] for batch in seen]
    assert states == ["validating", "in_progress", "finalizing", "completed"]
    assert [batch["request_counts"]["completed"] for batch in seen] == [0, 5, 10, 10]
    assert seen[2]["output_file_id"] is None
    assert seen[3]["metadata"] == {"run": "x"}
    rows = client.lines(13.0, seen[3]["output_file_id"])
    assert {row["custom_id"] for row in rows} == {f"c{n}" for n in range(10)}
    assert [row["custom_id"] for row in rows] != [f"c{n}" for n in range(10)]
    answer = next(row for row in rows if row["custom_id"] == "c3")["response"]
    assert answer["status_code"] == 200
    assert answer["body"]["choices"][0]["message"]["content"] == "echo: row 3"
    assert client.ledger.counts() == {f"row {n}": 1 for n in range(10)}


def test_cancelled_and_expired_batches_keep_what_they_had_answered() -> None:
    client = Client(seconds=10, cancelling_s=2, expires_s=8)
    client.create([line(n) for n in range(10)])
    client.create([line(n + 100) for n in range(10)])
    _, cancelling = client.ask(4.0, "POST", "/v1/batches/batch_sim1/cancel")
    assert cancelling["status"] == "cancelling"
    cancelled, expired = client.batch(6.0), client.batch(9.0, 2)
    assert (cancelled["status"], expired["status"]) == ("cancelled", "expired")
    assert len(client.lines(9.0, cancelled["output_file_id"])) == 4
    assert len(client.lines(9.0, expired["output_file_id"])) == 8
    late = client.lines(9.0, expired["error_file_id"])
    assert [row["error"]["code"] for row in late] == ["batch_expired"] * 2
    assert sum(client.ledger.counts().values()) == 12
    status, _ = client.ask(9.0, "POST", "/v1/batches/batch_sim1/cancel")
    assert status == 409


def test_rows_go_wrong_by_script() -> None:
    faults = (
        Fault.drop(match="row 1"),
        Fault.status(500, match="row 2"),
        Fault.malformed(match="row 3"),
    )
    client = Client(faults=faults, in_order=True)
    client.create([line(n) for n in range(5)])
    batch = client.batch(0.0)
    assert batch["status"] == "completed"
    _, content = client.ask(0.0, "GET", f"/v1/files/{batch['output_file_id']}/content")
    good = [text for text in content.splitlines() if text.endswith(b"}")]
    assert [orjson.loads(text)["custom_id"] for text in good] == ["c0", "c4"]
    assert len(content.splitlines()) == 3
    (failed,) = client.lines(0.0, batch["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("c2", 500)
    assert client.ledger.counts() == {
        "row 0": 1, "row 1": 0, "row 2": 0, "row 3": 0, "row 4": 1,
    }  # fmt: skip


def test_what_is_too_much_is_refused() -> None:
    client = Client(seconds=10, max_rows=3, max_bytes=2000, max_open=1, max_enqueued_tokens=1000)
    status, refused = client.upload([line(n) for n in range(50)])
    assert (status, refused["error"]["code"]) == (413, "file_too_large")
    client.create([line(n) for n in range(4)])
    failed = client.batch(0.0)
    assert (failed["status"], failed["errors"]["data"][0]["code"]) == ("failed", "too_many_tasks")
    assert client.ledger.arrived == 0
    assert client.create([line(0)])[0] == 200
    status, refused = client.create([line(1)])
    assert (status, refused["error"]["code"]) == (429, "quota_exceeded")
    tight = Client(max_enqueued_tokens=1)
    tight.create([line(0)])
    assert tight.batch(0.0)["errors"]["data"][0]["code"] == "token_limit_exceeded"


@pytest.mark.parametrize(
    ("rows", "code", "number"),
    [
        ([line(0), line(0)], "duplicate_custom_id", 2),
        ([line(0), line(1, url="/v1/completions")], "invalid_url", 2),
        ([line(0), line(1, body={"model": "other", "messages": []})], "mismatched_model", 2),
        ([{"no": "row"}], "invalid_json_line", 1),
        ([], "empty_file", None),
    ],
)
def test_a_wrong_file_fails_the_batch_and_says_where(
    rows: list[dict[str, Any]], code: str, number: int | None
) -> None:
    client = Client()
    client.create(rows)
    batch = client.batch(0.0)
    assert batch["status"] == "failed"
    first = batch["errors"]["data"][0]
    assert (first["code"], first["line"]) == (code, number)
    assert client.ledger.arrived == 0


def test_batches_are_listed_newest_first_in_pages() -> None:
    client = Client()
    for number in range(5):
        client.create([line(number)])
    _, page = client.ask(0.0, "GET", "/v1/batches?limit=2")
    assert [batch["id"] for batch in page["data"]] == ["batch_sim5", "batch_sim4"]
    assert page["has_more"]
    _, rest = client.ask(0.0, "GET", "/v1/batches?limit=9&after=batch_sim4")
    assert [batch["id"] for batch in rest["data"]] == [f"batch_sim{n}" for n in (3, 2, 1)]
    assert not rest["has_more"]


def test_without_the_setting_there_is_no_such_api() -> None:
    server = SimulatedServer()
    service = Service(server.settings, server.ledger, epoch=0.0)
    job = service.arrive(Head("GET", "/v1/batches"), b"", None, 0.0)
    assert service.advance(job, 0.0)[0].startswith(b"HTTP/1.1 404")


def test_forms_are_read_whatever_is_in_them() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n it holds --b\r\n--b--\r\n'
    (part,) = form_parts("multipart/form-data; boundary=b", body)
    assert (part.name, part.filename, part.data) == ("x", None, b" it holds --b")
    assert list(form_parts("application/json", body)) == []


@pytest.mark.parametrize("wrong", [{"seconds": -1}, {"max_rows": 0}, {"expires_s": 0}])
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BatchApi(**wrong)
