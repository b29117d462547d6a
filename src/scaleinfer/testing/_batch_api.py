"""`/v1/files` and `/v1/batches` of the simulated server."""

from __future__ import annotations

from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from scaleinfer.testing import _refusals
from scaleinfer.testing._answers import Envelope, answer, body_of, usage_of
from scaleinfer.testing._batch_files import form_parts, read_rows
from scaleinfer.testing._batch_life import BatchLife
from scaleinfer.testing._delivery import JSON_TYPE
from scaleinfer.testing._faults import FaultScript
from scaleinfer.testing._pages import COMPLETIONS, authorised
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._responder import script_failed
from scaleinfer.testing._view import RequestView, find_prompts

if TYPE_CHECKING:
    from scaleinfer.testing._batch_life import BatchRow
    from scaleinfer.testing._batch_settings import BatchApi
    from scaleinfer.testing._job import Head
    from scaleinfer.testing._ledger import Ledger
    from scaleinfer.testing._record import Entry
    from scaleinfer.testing._settings import Settings

__all__ = ["BatchService"]

_MOST_LISTED = 100
_BINARY = "application/octet-stream"
_LEAVES_OUT = frozenset({"drop", "reset", "stall"})


class _File(NamedTuple):
    name: str
    purpose: str
    data: bytes
    created: float


class BatchService:
    """Keeps files and batches; does the rows that are due whenever it is asked.

    All times that are passed in are of one monotonic clock, in seconds.

    Args:
        api: How the API behaves.
        settings: How the server answers.
        ledger: Where rows are written down, as requests of their own.
        epoch: Unix time at the clock's zero.
    """

    def __init__(self, api: BatchApi, settings: Settings, ledger: Ledger, *, epoch: float) -> None:
        self._api = api
        self._settings = settings
        self._ledger = ledger
        self._epoch = epoch
        self._script = FaultScript(api.faults, settings.seed)
        self._files: dict[str, _File] = {}
        self._batches: dict[str, BatchLife] = {}
        self._open: list[BatchLife] = []

    @staticmethod
    def serves(path: str) -> bool:
        """Return whether a path belongs here."""
        return path.startswith(("/v1/files", "/v1/batches"))

    def advance(self, now: float) -> None:
        """Do every row that is due, and write the files of batches that have ended."""
        for batch in self._open[:]:
            due = batch.due_rows(now)
            while batch.done < due:
                self._do(batch, batch.rows[batch.done], now)
                batch.done += 1
            if batch.ended(now):
                self._open.remove(batch)
                self._write_files(batch, now)

    def answer(  # noqa: PLR0911 - one return for each route
        self, head: Head, data: bytes, now: float
    ) -> tuple[str, bytes]:
        """Return the content type and body for a request.

        Raises:
            Refusal: It is answered with an error.
        """
        if not authorised(head, self._settings):
            raise _refusals.wrong_key(head.authorization is not None)
        self.advance(now)
        match [head.method, *head.path.strip("/").split("/")[1:]]:
            case ["POST", "files"]:
                return self._json(self._upload(head, data, now))
            case ["GET", "files", name]:
                return self._json(self._file_card(name))
            case ["DELETE", "files", name]:
                # Numbers are not given out again.
                self._files[name] = self._file(name)._replace(data=b"")
                return self._json({"id": name, "object": "file", "deleted": True})
            case ["GET", "files", name, "content"]:
                return _BINARY, self._file(name).data
            case ["POST", "batches"]:
                return self._json(self._create(head, data, now))
            case ["GET", "batches"]:
                return self._json(self._list(head.query, now))
            case ["GET", "batches", name]:
                return self._json(self._batch(name).to_dict(now, self._epoch))
            case ["POST", "batches", name, "cancel"]:
                return self._json(self._cancel(name, now))
        raise Refusal(HTTPStatus.NOT_FOUND, f"{head.method} {head.path} is not served here.")

    @staticmethod
    def _json(value: Any) -> tuple[str, bytes]:
        return JSON_TYPE, orjson.dumps(value)

    # Files.

    def _upload(self, head: Head, data: bytes, now: float) -> dict[str, Any]:
        parts = {part.name: part for part in form_parts(head.headers.get("content-type", ""), data)}
        if "file" not in parts or "purpose" not in parts:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The form needs the fields file and purpose.")
        file = parts["file"]
        if len(file.data) > self._api.max_bytes:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"File too large: {len(file.data)} bytes, at most {self._api.max_bytes}.",
                code="file_too_large",
            )
        purpose = parts["purpose"].data.decode()
        return self._file_card(self._keep(file.filename or "upload", purpose, file.data, now))

    def _keep(self, name: str, purpose: str, data: bytes, now: float) -> str:
        number = f"file-sim{len(self._files) + 1}"
        self._files[number] = _File(name, purpose, data, now)
        return number

    def _file(self, name: str) -> _File:
        found = self._files.get(name)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"No such File object: {name}", param="id")
        return found

    def _file_card(self, name: str) -> dict[str, Any]:
        file = self._file(name)
        return {
            "id": name,
            "object": "file",
            "bytes": len(file.data),
            "created_at": int(self._epoch + file.created),
            "filename": file.name,
            "purpose": file.purpose,
            "status": "processed",
        }

    # Batches.

    def _create(self, head: Head, data: bytes, now: float) -> dict[str, Any]:
        try:
            request = dict(orjson.loads(data))
        except (orjson.JSONDecodeError, TypeError, ValueError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "The body is not a JSON object.") from None
        endpoint = request.get("endpoint")
        if endpoint not in COMPLETIONS or request.get("completion_window") != "24h":
            raise Refusal(HTTPStatus.BAD_REQUEST, "endpoint or completion_window is not supported.")
        file = self._file(str(request.get("input_file_id")))
        most = self._api.max_open
        if most is not None and len(self._open) >= most:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"At most {most} batches may be enqueued at once.",
                code="quota_exceeded",
            )
        rows, errors = read_rows(file.data, str(endpoint), self._api.max_rows)
        batch = BatchLife(
            len(self._batches) + 1, request, rows, errors,
            created=now, settings=self._api, client=head.client,
        )  # fmt: skip
        self._check_tokens(batch)
        self._batches[batch.id] = batch
        self._open.append(batch)
        self.advance(now)
        return batch.to_dict(now, self._epoch)

    def _check_tokens(self, batch: BatchLife) -> None:
        most = self._api.max_enqueued_tokens
        if most is None:
            return
        batch.tokens = sum(RequestView(row.url, row.body).prompt_tokens for row in batch.rows)
        if batch.tokens + sum(other.tokens for other in self._open) > most:
            message = f"Enqueued token limit reached: {most} tokens."
            batch.errors.append(
                {"code": "token_limit_exceeded", "message": message, "param": None, "line": None}
            )

    def _batch(self, name: str) -> BatchLife:
        found = self._batches.get(name)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, f"No batch found with id '{name}'.")
        return found

    def _list(self, query: str, now: float) -> dict[str, Any]:
        asked = parse_qs(query)
        limit = min(int(asked.get("limit", ["20"])[0]), _MOST_LISTED)
        names = list(reversed(self._batches))
        if "after" in asked:
            after = asked["after"][0]
            names = names[names.index(after) + 1 :] if after in names else []
        shown = names[:limit]
        return {
            "object": "list",
            "data": [self._batches[name].to_dict(now, self._epoch) for name in shown],
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
            "has_more": len(names) > limit,
        }

    def _cancel(self, name: str, now: float) -> dict[str, Any]:
        batch = self._batch(name)
        if batch.ended(now):
            message = f"Cannot cancel a batch with status '{batch.status(now)}'."
            raise Refusal(HTTPStatus.CONFLICT, message)
        batch.cancel(now)
        self.advance(now)
        return batch.to_dict(now, self._epoch)

    def _write_files(self, batch: BatchLife, now: float) -> None:
        if batch.status(now) == "expired":
            for row in batch.rows[batch.done :]:
                error = {
                    "code": "batch_expired",
                    "message": "This request could not be executed before the completion window "
                    "expired.",
                }
                batch.failures.append(_line(batch, row, None, error))
        if not self._api.in_order:
            Random(f"{self._settings.seed} {batch.id}").shuffle(batch.output)
        if batch.output:
            data = b"".join(batch.output)
            batch.output_file = self._keep(f"{batch.id}_output.jsonl", "batch_output", data, now)
        if batch.failures:
            data = b"".join(batch.failures)
            batch.error_file = self._keep(f"{batch.id}_error.jsonl", "batch_output", data, now)

    # Rows.

    def _do(self, batch: BatchLife, row: BatchRow, now: float) -> None:
        view = RequestView(row.url, row.body, elapsed=now - batch.created)
        try:
            view.prompts = self._prompts(view)
        except Exception as error:
            self._fail(batch, row, script_failed(error))
            return
        time = self._epoch + now
        entry = self._ledger.arrive(view.prompts, time, model=view.model, client=batch.client)
        view.attempt, entry.started = entry.attempt, time
        status, ok = 0, False
        try:
            status, ok = self._answer(batch, row, view, entry)
        except Refusal as refusal:
            status = refusal.status
            self._fail(batch, row, refusal)
        except Exception as error:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            self._fail(batch, row, script_failed(error))
        self._ledger.finish(entry, time, status=status, ok=ok)

    def _prompts(self, view: RequestView) -> tuple[str, ...]:
        if self._settings.prompt_of is not None:
            return (self._settings.prompt_of(view.body),)
        return find_prompts(view, self._ledger.knows)

    def _answer(
        self, batch: BatchLife, row: BatchRow, view: RequestView, entry: Entry
    ) -> tuple[int, bool]:
        """Answer a row; return the status that it has and whether the answer is usable."""
        self._refuse(view)
        verdict = self._script.decide(view)
        entry.fault, fault = verdict.name, verdict.fault
        if fault is not None and fault.kind in _LEAVES_OUT:
            return 0, False
        if fault is not None and fault.kind == "status":
            raise Refusal(fault.code, "The row failed (simulated fault).")
        choices = answer(view, self._settings)
        usage = usage_of(view, choices)
        entry.prompt_tokens = usage["prompt_tokens"]
        entry.completion_tokens = usage["completion_tokens"]
        created, model = int(entry.started), view.model or self._settings.models[0]
        if fault is not None and fault.kind == "empty_choices":
            choices = []
        body = body_of(Envelope(self._ledger.arrived, created, model, usage), choices, view)
        line = _line(batch, row, {"status_code": 200, "request_id": row.custom_id, "body": body})
        if fault is not None and choices:
            batch.output.append(line[: len(line) // 2] + b"\n")
            return HTTPStatus.OK, False
        batch.output.append(line)
        return HTTPStatus.OK, bool(choices)

    def _refuse(self, view: RequestView) -> None:
        settings = self._settings
        if view.model and view.model not in settings.models:
            raise _refusals.unknown_model(view.model)
        limit = settings.max_prompt_tokens
        if limit is not None and (tokens := view.prompt_tokens) > limit:
            raise _refusals.too_long(limit, tokens, chat=view.chat)

    def _fail(self, batch: BatchLife, row: BatchRow, refusal: Refusal) -> None:
        body = refusal.body(self._settings.dialect)
        response = {"status_code": refusal.status, "request_id": row.custom_id, "body": body}
        batch.failures.append(_line(batch, row, response))


def _line(
    batch: BatchLife,
    row: BatchRow,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None = None,
) -> bytes:
    return orjson.dumps(
        {
            "id": f"batch_req_{batch.id}_{row.custom_id}",
            "custom_id": row.custom_id,
            "response": response,
            "error": error,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
