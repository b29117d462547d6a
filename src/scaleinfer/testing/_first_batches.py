"""The simulated gateway's batches: files lie on the cluster, which is a folder of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from scaleinfer.testing import _first_refusals as refusals
from scaleinfer.testing._batch_api import BatchService
from scaleinfer.testing._batch_files import read_rows
from scaleinfer.testing._batch_life import BatchLife
from scaleinfer.testing._batch_settings import BatchApi

if TYPE_CHECKING:
    from scaleinfer.testing._first_gateway import Gateway
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._settings import Settings

__all__ = ["FIRST_BATCHES", "ClusterBatches"]

FIRST_BATCHES = BatchApi(max_rows=150_000, max_open=1, expires_s=7 * 86_400.0)
"""The gateway's own numbers, and rows that are answered at once."""

_ROUTE = "/v1/batches"
_FIELDS = ("input_file", "model", "output_folder_path")
_WORDS = {
    "validating": "pending",
    "in_progress": "running",
    "finalizing": "running",
    "completed": "completed",
    "failed": "failed",
    "expired": "failed",
}


class ClusterBatches(BatchService):
    """Batches of all users, on all clusters that take some.

    Input is not looked at before the batch begins. A batch that expires has failed: what it had
    answered lies in its folder, and the gateway does not tell where.

    Args:
        gateway: Who may ask for what.
        api: How batches behave; `max_open` is for each user.
        settings: How the models answer.
        ledger: Where rows are written down, as requests of their own.
        epoch: Unix time at the clock's zero.
    """

    def __init__(
        self,
        gateway: Gateway,
        api: BatchApi,
        settings: Settings,
        ledger: Ledger,
        *,
        epoch: float,
    ) -> None:
        api = replace(api, max_open=api.max_open or 1, expires_s=api.expires_s or 7 * 86_400.0)
        super().__init__(api, settings, ledger, epoch=epoch)
        self._gateway = gateway
        self._users: dict[str, str] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def get(self, parts: list[str], status: str | None, user: str, now: float) -> Any:
        """Return what is under `/v1/batches` and below.

        Args:
            parts: The path below, in pieces.
            status: Only batches of this status are listed.
            user: Who asks; others' batches are not there.
            now: The time.

        Raises:
            FirstRefusal: There is nothing.
        """
        self.advance(now)
        if not parts:
            own = (batch for batch in self._batches.values() if self._users[batch.id] == user)
            cards = [self._card(batch, now) for batch in own]
            return [card for card in cards if status in (None, card["status"])]
        batch = self._batches.get(parts[0])
        if batch is None or self._users[batch.id] != user:
            raise self._gateway.refusal("unknown batch", refusals.unknown_batch(parts[0]))
        said = _WORDS[batch.status(now)]
        if parts[1:] == ["result"]:
            return self._result(batch, said)
        if len(parts) > 1:
            raise refusals.no_page("GET", "/".join([_ROUTE, *parts]))
        return said

    def submit(self, cluster: str, framework: str, data: bytes, user: str, now: float) -> Any:
        """Start a batch.

        Raises:
            FirstRefusal: It is not started, or its number is not told.
        """
        self.advance(now)
        body = _body(data)
        for name in sorted(body.keys() - set(_FIELDS)):
            wrong = refusals.bad_field(name, "Extra inputs are not permitted", "extra_forbidden")
            raise self._gateway.refusal("bad field", wrong)
        for name in _FIELDS[:2]:
            if name not in body:
                wrong = refusals.bad_field(name, "Field required", "missing")
                raise self._gateway.refusal("bad field", wrong)
        place = self._gateway.place(cluster, framework, _ROUTE, str(body["model"]))
        mine = [one for one in self._open if self._users.get(one.id) == user]
        if any(one.request["input_file"] == body["input_file"] for one in mine):
            raise self._gateway.refusal("batch ongoing", refusals.same_file(body["input_file"]))
        assert self._api.max_open is not None
        if len(mine) >= self._api.max_open:
            refused = refusals.too_many_batches(self._api.max_open)
            raise self._gateway.refusal("batches", refused)
        batch = self._begin(body, place.cluster.name, now)
        if "output_folder_path" not in body:
            # Seen at the real one: the job runs, and nobody knows of it.
            raise self._gateway.refusal("no folder", refusals.too_large())
        self._batches[batch.id] = batch
        self._users[batch.id] = user
        self.advance(now)
        return self._card(batch, now, task_ids=str(uuid4()), status="pending")

    def _begin(self, body: dict[str, Any], cluster: str, now: float) -> BatchLife:
        rows, errors = _read(Path(body["input_file"]), self._api.max_rows)
        batch = BatchLife(
            len(self._batches) + 1, body, rows, errors,
            created=now, settings=self._api, client=cluster,
        )  # fmt: skip
        batch.id = str(uuid4())
        self._open.append(batch)
        return batch

    def _card(self, batch: BatchLife, now: float, **more: str) -> dict[str, Any]:
        asked = {name: batch.request.get(name) for name in _FIELDS}
        return {"batch_id": batch.id, **asked, "status": _WORDS[batch.status(now)]} | more

    def _result(self, batch: BatchLife, said: str) -> str:
        if said == "failed":
            why = batch.errors[0]["message"] if batch.errors else "the job has ended"
            raise self._gateway.refusal("batch failed", refusals.batch_failed(why))
        if said != "completed":
            raise self._gateway.refusal("batch early", refusals.batch_early())
        # The real one sends what Python's `str` makes of a dict, as a string of JSON.
        return str(self._results[batch.id])

    def _write_files(self, batch: BatchLife, now: float) -> None:
        folder = Path(batch.request.get("output_folder_path") or "/nowhere")
        if batch.errors or not folder.is_absolute() or "output_folder_path" not in batch.request:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = Path(batch.request["input_file"]).stem
        results = folder / f"{name}_{batch.id[:8]}.results.jsonl"
        progress = folder / f"{name}_{batch.id[:8]}.progress.json"
        lines = [*batch.output, *batch.failures]
        results.write_bytes(b"".join(lines))
        progress.write_bytes(orjson.dumps({"lines_processed": batch.done}))
        seconds = now - batch.began
        tokens = sum(_tokens(line) for line in batch.output)
        self._results[batch.id] = {
            "results_file": str(results),
            "progress_file": str(progress),
            "total_tokens": tokens,
            "num_responses": len(lines),
            "lines_processed": batch.done,
            "duration_sec": seconds,
            "throughput_tokens_per_sec": tokens / seconds if seconds else 0.0,
        }


def _body(data: bytes) -> dict[str, Any]:
    try:
        return dict(orjson.loads(data))
    except (orjson.JSONDecodeError, TypeError, ValueError):
        raise refusals.bad_field(
            "body", "Input should be a valid dictionary", "dict_type"
        ) from None


def _read(path: Path, most: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the rows of an input file, and what is wrong with it."""
    try:
        data = path.read_bytes()
        route = str(orjson.loads(data.partition(b"\n")[0])["url"])
    except OSError as error:
        return [], [{"code": "input", "message": f"{path}: {error.strerror}", "line": None}]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        route = ""
    return read_rows(data, route, most)


def _tokens(line: bytes) -> int:
    try:
        return int(orjson.loads(line)["response"]["body"]["usage"]["total_tokens"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0
