"""The JSON body of a call: what is the same in every call is written once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.requests import plain
from scaleinfer.structured import instruct, is_strict

if TYPE_CHECKING:
    from scaleinfer.requests import Request, Sampling

__all__ = ["BodyWriter", "in_words", "request_body"]

_MOST_KINDS = 64


def request_body(request: Request, model: str | None) -> dict[str, Any]:
    """Return a call's body as JSON data.

    Args:
        request: What to ask.
        model: Asked if the request names none.
    """
    asked = {"messages": request.messages} if request.prompt is None else {"prompt": request.prompt}
    return {"model": request.model or model, **asked, **_parameters(request)}


def in_words(request: Request) -> Request:
    """Return the request with its schema, if any, put into the messages."""
    if request.schema is None:
        return request
    return replace(request, messages=instruct(request.messages or [], request.schema), schema=None)


class BodyWriter:
    """Writes bodies; a map's requests differ in messages or prompt alone, mostly.

    A request's sampling and schema are known again by identity: they are not changed once
    made.
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], tuple[bytes, bytes, Sampling, Any]] = {}

    def write(self, request: Request, model: str | None) -> bytes:
        """Return a call's body.

        Args:
            request: What to ask.
            model: Asked if the request names none.

        Raises:
            orjson.JSONEncodeError: It cannot be written as JSON.
        """
        prompt = request.prompt
        head, tail = self._around(request, request.model or model, chat=prompt is None)
        return head + _dumps(request.messages if prompt is None else prompt) + tail

    def write_pack(self, request: Request, prompts: list[str], model: str | None) -> bytes:
        """Return the body of a call that asks several prompts as `request` asks its own."""
        head, tail = self._around(request, request.model or model, chat=False)
        return head + _dumps(prompts) + tail

    def _around(self, request: Request, model: str | None, *, chat: bool) -> tuple[bytes, bytes]:
        sampling, schema = request.sampling, request.schema
        kind = (id(sampling), id(schema), model, request.schema_name, chat)
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            field = b"messages" if chat else b"prompt"
            head = b'{"model":' + _dumps(model) + b',"' + field + b'":'
            rest = _dumps(_parameters(request))
            tail = b"}" if rest == b"{}" else b"," + rest[1:]
            # Holding on to both objects keeps their identities from being given away again.
            known = self._kinds[kind] = head, tail, sampling, schema
        return known[0], known[1]


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=plain)
    except orjson.JSONEncodeError:
        # Slower, and seldom needed.
        return orjson.dumps(value, default=plain, option=orjson.OPT_NON_STR_KEYS)


def _parameters(request: Request) -> dict[str, Any]:
    parameters = request.sampling.to_body()
    if request.schema is not None:
        parameters["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": request.schema_name,
                "schema": request.schema,
                "strict": is_strict(request.schema),
            },
        }
    return parameters
