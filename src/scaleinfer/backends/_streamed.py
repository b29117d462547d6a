"""An answer that comes in pieces (server-sent events), and the whole that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._wire_base import WireResponse
from scaleinfer.errors import Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.errors import EndpointError

__all__ = ["Streamed", "asking_for_pieces"]

_FIELDS = b',"stream":true,"stream_options":{"include_usage":true}}'


class Streamed:
    """Puts the pieces of a chat completion together.

    Args:
        on_text: Told of the first choice's text as it comes.

    Attributes:
        told: Characters that it was told.
    """

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self.told = 0
        self._on_text = on_text
        self._line = b""
        self._choices: dict[int, dict[str, Any]] = {}
        self._whole: dict[str, Any] = {}
        self._events = 0

    def feed(self, data: bytes) -> None:
        """Take bytes, however they are cut; lines that hold no event are passed over."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def whole(self, response: WireResponse, *, endpoint: str) -> WireResponse:
        """Return the response as it would be had it come in one piece.

        Args:
            response: The response, status 200.
            endpoint: Name of the endpoint, for errors.

        Raises:
            EndpointError: The answer is not whole.
        """
        self.feed(b"\n")
        if not self._events:
            return response  # a server that does not know of pieces answers at once
        choices = [choice for _, choice in sorted(self._choices.items())]
        body = orjson.dumps(self._whole | {"choices": choices})
        ended = choices and all(one["finish_reason"] is not None for one in choices)
        if not ended and "error" not in self._whole:
            raise self.broken(
                Transient(f"{endpoint} ended its answer in the middle.", endpoint=endpoint)
            )
        return WireResponse(response.status, response.headers, body)

    def broken(self, error: EndpointError) -> EndpointError:
        """Return what a failure means: text that was given out cannot be taken back."""
        if not self.told:
            return error
        return Permanent(
            f"the answer broke off after {self.told} characters: {error.message}",
            endpoint=error.endpoint,
            status=error.status,
        )

    def _take(self, data: bytes) -> None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return  # [DONE], a comment
        if not isinstance(event, dict):
            return
        self._events += 1
        for name in ("model", "usage", "error"):
            if event.get(name) is not None:
                self._whole[name] = event[name]
        for choice in event.get("choices") or ():
            self._add(choice)

    def _add(self, piece: dict[str, Any]) -> None:
        number = piece.get("index") or 0
        choice = self._choices.setdefault(
            number, {"message": {"content": ""}, "finish_reason": None}
        )
        if piece.get("finish_reason") is not None:
            choice["finish_reason"] = piece["finish_reason"]
        if piece.get("logprobs") is not None:
            known = choice.setdefault("logprobs", {"content": []})
            known["content"] += piece["logprobs"].get("content") or []
        delta = piece.get("delta") or {}
        text = delta.get("content")
        if text:
            choice["message"]["content"] += text
            if number == 0:
                self.told += len(text)
                self._on_text(text)
        if delta.get("refusal"):
            refused = choice["message"].get("refusal") or ""
            choice["message"]["refusal"] = refused + delta["refusal"]
        for call in delta.get("tool_calls") or ():
            _add_call(choice["message"].setdefault("tool_calls", []), call)


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    number = piece.get("index", len(calls))
    while len(calls) <= number:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[number], piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""


def asking_for_pieces(body: bytes) -> bytes:
    """Return a request's body with the fields that ask for pieces, and for the usage."""
    return body[:-1] + _FIELDS
