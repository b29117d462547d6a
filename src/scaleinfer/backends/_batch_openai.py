"""OpenAI's batch API: `/v1/files` and `/v1/batches`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, cast, get_args

import orjson

from scaleinfer.backends._batch_base import (
    BatchBackend,
    BatchLimits,
    BatchPhase,
    BatchProblem,
    BatchState,
)
from scaleinfer.backends._batch_rows import answers_in, chunks_of, input_line
from scaleinfer.backends._request_body import BodyWriter, in_words
from scaleinfer.errors import EndpointError, Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from scaleinfer.backends._batch_base import BatchAnswer
    from scaleinfer.backends.openai import OpenAIBackend
    from scaleinfer.requests import Request

__all__ = ["OpenAIBatches"]

_OFFICIAL = "https://api.openai.com/"
_HALF = 0.5
_UPLOAD_TIMEOUT, _TIMEOUT = 600.0, 60.0
_PAGE = 100
_MOST_PAGES = 20
_METADATA = "scaleinfer"
_NO_ROUTE = frozenset({404, 405, 501})
_PHASES = frozenset(get_args(BatchPhase))


class OpenAIBatches(BatchBackend):
    """The batch API of one OpenAI-compatible server.

    Args:
        backend: The adapter to the server; its address, key and headers are used.
        limits: What the server takes; default OpenAI's own limits.
    """

    def __init__(self, backend: OpenAIBackend, limits: BatchLimits | None = None) -> None:
        self.endpoint = backend.endpoint
        self.limits = limits or BatchLimits()
        self.discount = _HALF if backend.endpoint.startswith(_OFFICIAL) else None
        self._backend = backend
        self._bodies = BodyWriter()

    def group(self, request: Request) -> str:
        """Return what requests must have in common; see `BatchBackend.group`."""
        route = "/v1/chat/completions" if request.prompt is None else "/v1/completions"
        return f"{route} {request.model or self._backend.model or ''}"

    def line(self, custom_id: str, request: Request) -> bytes:
        """Return a line of an input file; see `BatchBackend.line`."""
        route = self.group(request).partition(" ")[0]
        if not self._backend.json_schema:
            request = in_words(request)
        return input_line(self._bodies, custom_id, route, request, self._backend.model)

    async def available(self) -> bool:
        """Ask for the list of batches; see `BatchBackend.available`."""
        try:
            await self._backend.request("batches?limit=1", timeout=_TIMEOUT)
        except EndpointError as error:
            if error.status in _NO_ROUTE:
                return False
            raise
        return True

    async def upload(self, token: str, lines: list[bytes]) -> str:
        """Upload an input file; see `BatchBackend.upload`."""
        kind, form = _form(f"{token}.jsonl", b"".join(lines))
        return _text(await self._json("files", form, kind, timeout=_UPLOAD_TIMEOUT), "id")

    async def create(self, token: str, group: str, upload: str) -> str:
        """Create the batch; see `BatchBackend.create`."""
        asked = {
            "input_file_id": upload,
            "endpoint": group.partition(" ")[0],
            "completion_window": "24h",
            "metadata": {_METADATA: token},
        }
        return _text(await self._json("batches", orjson.dumps(asked), apart=True), "id")

    async def find(self, token: str) -> str | None:
        """Look through the list of batches; see `BatchBackend.find`."""
        after = ""
        for _ in range(_MOST_PAGES):
            page = await self._json(f"batches?limit={_PAGE}{after}")
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get(_METADATA) == token:
                    return _text(batch, "id")
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={_text(batches[-1], 'id')}"
        return None

    async def poll(self, batch: str) -> BatchState:
        """Ask for the batch; see `BatchBackend.poll`."""
        try:
            data = await self._json(f"batches/{batch}")
        except Permanent as error:
            if error.status in _NO_ROUTE:
                return BatchState("gone")
            raise
        return _state(data, self.endpoint)

    async def fetch(self, batch: str, state: BatchState) -> AsyncGenerator[list[BatchAnswer], None]:
        """Fetch output and error file; see `BatchBackend.fetch`."""
        model = self._backend.model or ""
        for file in state.files:
            response = await self._backend.request(
                f"files/{file}/content", timeout=_UPLOAD_TIMEOUT, apart=True
            )
            answers = answers_in(response.body, endpoint=self.endpoint, batch=batch, model=model)
            for chunk in chunks_of(answers):
                yield chunk

    async def cancel(self, batch: str) -> None:
        """Cancel the batch; see `BatchBackend.cancel`."""
        try:
            await self._json(f"batches/{batch}/cancel", b"{}")
        except EndpointError as error:
            if error.status not in {400, 404, 409}:  # it has its end
                raise

    async def _json(
        self,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        *,
        timeout: float = _TIMEOUT,
        apart: bool = False,
    ) -> dict[str, Any]:
        response = await self._backend.request(
            path, body, content_type, timeout=timeout, apart=apart
        )
        try:
            return dict(orjson.loads(response.body))
        except (orjson.JSONDecodeError, TypeError, ValueError):
            raise _no_answer(self.endpoint, path) from None


def _form(name: str, data: bytes) -> tuple[str, bytes]:
    """Return the content type and body of an upload."""
    boundary = f"scaleinfer-{secrets.token_hex(16)}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", body


def _text(data: dict[str, Any], field: str) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not value:
        raise Transient(f"the batch API's answer has no {field}: {str(data)[:200]}")
    return value


def _state(data: dict[str, Any], endpoint: str) -> BatchState:
    phase = data.get("status")
    if phase not in _PHASES:
        raise Transient(f"{endpoint} says that a batch is {phase!r}.", endpoint=endpoint)
    counts = data.get("request_counts") or {}
    errors = data.get("errors") or {}
    listed = errors.get("data") if isinstance(errors, dict) else errors
    return BatchState(
        cast("BatchPhase", phase),
        done=int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
        total=int(counts.get("total") or 0),
        problems=tuple(
            BatchProblem(str(one.get("code") or ""), str(one.get("message") or ""), one.get("line"))
            for one in listed or ()
        ),
        files=tuple(
            file for name in ("output_file_id", "error_file_id") if (file := data.get(name))
        ),
    )


def _no_answer(endpoint: str, path: str) -> Transient:
    return Transient(f"{endpoint}/{path} did not answer with a JSON object.", endpoint=endpoint)
