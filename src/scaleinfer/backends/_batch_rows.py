"""The lines of OpenAI's batch files, as OpenAI, vLLM and FIRST write them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._batch_base import BatchAnswer
from scaleinfer.backends._completion import parse_completion
from scaleinfer.backends._dialect import error_from_response
from scaleinfer.backends._wire import WireResponse
from scaleinfer.errors import EndpointError, PromptError, Transient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scaleinfer.backends._request_body import BodyWriter
    from scaleinfer.requests import Request
    from scaleinfer.results import Completion

__all__ = ["answers_in", "chunks_of", "input_line"]

_OK = 200
_CHUNK = 500
_NOT_WORKED_ON = frozenset({"batch_expired", "batch_cancelled"})
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def input_line(
    bodies: BodyWriter, custom_id: str, route: str, request: Request, model: str | None
) -> bytes:
    """Return a request as a line of an input file.

    Raises:
        PromptError: It cannot be written as JSON.
    """
    try:
        body = bodies.write(request, model)
    except orjson.JSONEncodeError as error:
        raise PromptError(f"the prompt cannot be written as JSON: {error}.") from error
    head = {"custom_id": custom_id, "method": "POST", "url": route}
    return orjson.dumps(head)[:-1] + b',"body":' + body + b"}\n"


def answers_in(data: bytes, *, endpoint: str, batch: str, model: str) -> Iterator[BatchAnswer]:
    """Yield what the lines of an output or error file say of rows that were worked on.

    Args:
        data: The file.
        endpoint: Name of the endpoint, for errors.
        batch: The server's name for the batch.
        model: The model that was asked, for errors.
    """
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            custom_id = row["custom_id"]
            response = row.get("response")
            error = row.get("error")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            custom_id, response, error = "", None, {"message": "a line that is not JSON"}
        if response is None and isinstance(error, dict) and error.get("code") in _NOT_WORKED_ON:
            continue
        outcome = _outcome(response, error, endpoint, model)
        if not isinstance(outcome, EndpointError):
            outcome.batch = batch
        yield BatchAnswer(str(custom_id), outcome)


def chunks_of(answers: Iterator[BatchAnswer]) -> Iterator[list[BatchAnswer]]:
    """Yield some answers at a time, so that the event loop can breathe in between."""
    chunk: list[BatchAnswer] = []
    for answer in answers:
        chunk.append(answer)
        if len(chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _outcome(response: Any, error: Any, endpoint: str, model: str) -> Completion | EndpointError:
    if not isinstance(response, dict):
        said = error.get("message") if isinstance(error, dict) else error
        return Transient(f"{endpoint} did not answer the row: {said}", endpoint=endpoint)
    status, body = response.get("status_code", _OK), response.get("body")
    status = status if isinstance(status, int) else _OK
    wire = WireResponse(status, _NO_HEADERS, orjson.dumps(body))
    if status != _OK:
        return error_from_response(wire, endpoint=endpoint, model=model)
    try:
        return parse_completion(wire, endpoint=endpoint, chat=_is_chat(body))
    except EndpointError as failed:
        return failed


def _is_chat(body: Any) -> bool:
    try:
        return "message" in body["choices"][0]
    except (KeyError, IndexError, TypeError):
        return True
