"""What coordinator and workers tell each other: JSON, packed into one string.

An exchange wraps a message into JSON twice more, which would escape every quote of it each time;
so the JSON is compressed and written in base64, which needs no escapes. Nothing is ever
unpickled.
"""

from __future__ import annotations

import base64
import sys
import zlib
from array import array
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import (
    PromptError,
    ScaleInferError,
    error_from_dict,
)
from scaleinfer.requests import Request, Sampling, plain
from scaleinfer.results import Attempt, Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "MOST_CHARACTERS", "PROTOCOL", "AskedForm", "FormReader", "FormWriter", "Pieces", "answer_from",
    "answer_of", "cut", "pack", "unpack",
]  # fmt: skip

PROTOCOL = 1
"""Version of what messages mean; workers and coordinator must agree on it."""
MOST_CHARACTERS = 380_000
"""Of one packed message: the smallest limit of an exchange is 512 KB, wrapping included."""
_MOST_BYTES = 256 * 2**20
_LEVEL = 1
_KEPT_FORMS = 256
_SAMPLING = tuple(f.name for f in fields(Sampling) if f.name != "extra")


def pack(data: Any) -> str:
    """Return JSON data as a string of ASCII characters without quotes."""
    return base64.b64encode(zlib.compress(orjson.dumps(data, default=plain), _LEVEL)).decode()


def unpack(text: str) -> Any:
    """Return the data of a packed message.

    Raises:
        ValueError: It is none, or far too large.
    """
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
        if not inflate.eof:
            raise ValueError("a message of more than 256 MiB, or one that was cut off")
        return orjson.loads(data)
    except (ValueError, zlib.error, TypeError, AttributeError) as error:
        raise ValueError(f"no message of a fleet: {error}") from error


def cut(text: str) -> list[str]:
    """Return a packed message in pieces that fit into one message each."""
    return [text[at : at + MOST_CHARACTERS] for at in range(0, len(text), MOST_CHARACTERS)] or [""]


class Pieces:
    """Puts messages together that came in pieces, and keeps replies that go in pieces."""

    def __init__(self) -> None:
        self._coming: dict[str, list[str]] = {}
        self._kept: dict[str, list[str]] = {}

    def add(self, sender: str, text: str, piece: int, pieces: int) -> str | None:
        """Take a piece; return the whole message if this was its last."""
        if pieces <= 1:
            self._coming.pop(sender, None)
            return text
        if not piece:
            self._coming[sender] = []
        coming = self._coming.get(sender, [])
        if len(coming) != piece:
            # One was lost on the way; the sender will try anew.
            self._coming.pop(sender, None)
            return None
        coming.append(text)
        if piece < pieces - 1:
            return None
        return "".join(self._coming.pop(sender))

    def keep(self, sender: str, pieces: list[str]) -> None:
        """Keep a reply's pieces until the sender's next message."""
        if len(pieces) > 1:
            self._kept[sender] = pieces
        else:
            self._kept.pop(sender, None)

    def kept(self, sender: str, piece: int) -> str:
        """Return a piece of the latest reply; empty if there is none."""
        pieces = self._kept.get(sender, [])
        return pieces[piece] if 0 <= piece < len(pieces) else ""


@dataclass(frozen=True, slots=True)
class AskedForm:
    """What most requests of a map have in common: everything but the words."""

    sampling: Sampling
    schema: dict[str, Any] | None
    schema_name: str
    model: str | None
    once: bool = False


class FormWriter:
    """Writes requests; what many have in common gets a number and is said once a message."""

    def __init__(self) -> None:
        self._by_objects: dict[tuple[int, int, str, str | None, bool], tuple[int, AskedForm]] = {}
        self._numbers: dict[bytes, int] = {}
        self._data: list[bytes] = []

    def request(self, request: Request) -> tuple[int, bytes]:
        """Return the number of the request's form, -1 for one of its own, and its JSON.

        Raises:
            PromptError: It cannot be written as JSON.
        """
        number, form = self._form(request)
        data: list[Any] = [number, request.messages, request.prompt, request.input]
        if number < 0:
            data.append(orjson.Fragment(_form_data(form)))
        try:
            return number, orjson.dumps(data, default=plain, option=orjson.OPT_NON_STR_KEYS)
        except orjson.JSONEncodeError as error:
            raise PromptError(f"the prompt cannot be written as JSON: {error}.") from error

    def forms(self, numbers: Iterable[int]) -> dict[str, Any]:
        """Return the forms with these numbers as JSON data."""
        return {str(number): orjson.Fragment(self._data[number]) for number in numbers}

    def _form(self, request: Request) -> tuple[int, AskedForm]:
        sampling, schema = request.sampling, request.schema
        key = (id(sampling), id(schema), request.schema_name, request.model, request.once)
        known = self._by_objects.get(key)
        if known is not None:
            return known
        form = AskedForm(sampling, schema, request.schema_name, request.model, request.once)
        data = _form_data(form)
        number = self._numbers.get(data, -1)
        if number < 0 and len(self._data) < _KEPT_FORMS:
            number = self._numbers[data] = len(self._data)
            self._data.append(data)
        if len(self._by_objects) >= _KEPT_FORMS:
            self._by_objects.clear()
        # The form is kept with it, so that no other object gets these ids.
        self._by_objects[key] = number, form
        return number, form


class FormReader:
    """Builds requests from what a `FormWriter` wrote."""

    def __init__(self) -> None:
        self._forms: dict[int, AskedForm] = {}

    def learn(self, data: dict[str, Any]) -> None:
        """Take note of the forms in a message."""
        for number, form in data.items():
            if int(number) not in self._forms:
                self._forms[int(number)] = _form_from(form)

    def request(self, data: Sequence[Any]) -> Request:
        """Return the request."""
        number, messages, prompt, text, *own = data
        form = _form_from(own[0]) if own else self._forms[number]
        request = Request(
            messages, prompt, form.sampling, form.schema, form.schema_name, form.model, text
        )
        request.once = form.once
        return request


def _form_data(form: AskedForm) -> bytes:
    sampling = {
        name: value for name in _SAMPLING if (value := getattr(form.sampling, name)) is not None
    }
    data: dict[str, Any] = {"sampling": sampling, "name": form.schema_name}
    if form.sampling.extra:
        sampling["extra"] = dict(form.sampling.extra)
    if form.schema is not None:
        data["schema"] = form.schema
    if form.model is not None:
        data["model"] = form.model
    if form.once:
        data["once"] = True
    return orjson.dumps(data, default=plain, option=orjson.OPT_NON_STR_KEYS)


def _form_from(data: dict[str, Any]) -> AskedForm:
    return AskedForm(
        Sampling.of(data["sampling"]),
        data.get("schema"),
        data["name"],
        data.get("model"),
        data.get("once", False),
    )


_OK_FIELDS = ("choices", "tool_calls", "logprobs", "batch")


def answer_of(outcome: Completion | ScaleInferError, attempts: Sequence[Attempt]) -> list[Any]:
    """Return what came of a request, and the calls made for it, as JSON data."""
    calls = [_attempt_data(attempt) for attempt in attempts]
    if isinstance(outcome, ScaleInferError):
        return [1, outcome.to_dict(), calls]
    answer: list[Any] = [
        0, outcome.text, outcome.finish_reason, tuple(outcome.usage), outcome.model, calls,
    ]  # fmt: skip
    extra = {name: value for name in _OK_FIELDS if (value := getattr(outcome, name)) is not None}
    if outcome.vector is not None:
        extra["vector"] = _vector_text(outcome.vector)
    if extra:
        answer.append(extra)
    return answer


def answer_from(data: Sequence[Any]) -> tuple[Completion | ScaleInferError, list[Attempt]]:
    """Return what came of a request, and the calls made for it.

    Raises:
        ValueError: The data is nothing that `answer_of` makes.
    """
    try:
        if data[0] == 1:
            return error_from_dict(data[1]), [Attempt(*call) for call in data[2]]
        _, text, reason, usage, model, calls, *more = data
        extra = more[0] if more else {}
        if "vector" in extra:
            extra = extra | {"vector": _vector_from(extra["vector"])}
        completion = Completion(text, reason, Usage(*usage), model, **extra)
        return completion, [Attempt(*call) for call in calls]
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"no answer of a worker: {error}") from error


def _vector_text(vector: array[float]) -> str:
    """Return float32 numbers as text, shorter than their digits."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()


def _vector_from(text: str) -> array[float]:
    vector = array("f", base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def _attempt_data(attempt: Attempt) -> tuple[Any, ...]:
    call = (
        attempt.number, attempt.endpoint, round(attempt.started, 3), round(attempt.latency_s, 4),
        attempt.status, attempt.http_status, attempt.prompt_tokens, attempt.completion_tokens,
    )  # fmt: skip
    return (*call, attempt.error) if attempt.error else call
