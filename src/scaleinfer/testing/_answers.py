"""What the simulated model says: texts, and the bodies they travel in."""

from __future__ import annotations

import math
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from scaleinfer.testing import _refusals
from scaleinfer.testing._chance import draw
from scaleinfer.testing._embeddings import embeddings_body
from scaleinfer.testing._schema import UnsupportedSchemaError, generate
from scaleinfer.testing._view import CHARACTERS_PER_TOKEN, count_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleinfer.testing._settings import Settings
    from scaleinfer.testing._view import RequestView

__all__ = ["Choice", "Envelope", "answer", "body_of", "events_of", "usage_of"]

_OFF = (False, "refuse")
_SCHEMA_FIELDS = frozenset({"response_format", "structured_outputs", "guided_json"})


class Choice(NamedTuple):
    """One choice of an answer.

    Attributes:
        text: Its text.
        finish_reason: `stop`, `length`, `tool_calls` or what the script says.
        message: Further fields of the message, such as `tool_calls`.
    """

    text: str
    finish_reason: str
    message: dict[str, Any]


class Envelope(NamedTuple):
    """What an answer says about itself.

    Attributes:
        number: Position in the ledger, for the answer's id.
        created: Unix time.
        model: The model that answers.
        usage: Usage as the body states it.
    """

    number: int
    created: int
    model: str
    usage: dict[str, Any]


def answer(view: RequestView, settings: Settings) -> list[Choice]:
    """Return the choices for a request: `n` for each of its prompts.

    Raises:
        Refusal: The request asks for what this server does not do.
    """
    if view.embedding:
        return [Choice("", "stop", {}) for _ in view.prompts]
    body = view.body
    schema = None if body.keys().isdisjoint(_SCHEMA_FIELDS) else _schema_of(body)
    if schema is not None and settings.json_schema in _OFF:
        raise _refusals.no_response_format()
    if settings.json_schema == "ignore":
        schema = None
    choices: list[Choice] = []
    several = body.get("n")
    each = several if isinstance(several, int) and several > 0 else 1
    for prompt in view.prompts:
        view.text = prompt
        for _ in range(each):
            view.choice = len(choices)
            choices.append(_choice(view, settings, schema))
    return choices


def _choice(view: RequestView, settings: Settings, schema: dict[str, Any] | None) -> Choice:
    scripted = settings.answer(view) if settings.answer is not None else None
    if isinstance(scripted, dict):
        message = dict(scripted)
        text = message.pop("content", None) or ""
        usual = "tool_calls" if message.get("tool_calls") else "stop"
        return Choice(text, message.pop("finish_reason", usual), message)
    if scripted is not None:
        text = scripted
    elif schema is not None:
        text = _json_text(view, settings.seed, schema)
    else:
        text = _echo(view, settings.answer_tokens)
    most = view.body.get("max_completion_tokens") or view.body.get("max_tokens")
    if isinstance(most, int) and count_tokens(text) > most:
        return Choice(text[: most * CHARACTERS_PER_TOKEN], "length", {})
    return Choice(text, "stop", {})


def _echo(view: RequestView, tokens: int | None) -> str:
    text = f"echo: {view.text}" if view.choice == 0 else f"echo {view.choice}: {view.text}"
    if tokens is None:
        return text
    wanted = tokens * CHARACTERS_PER_TOKEN
    return (text + " " + text * math.ceil(wanted / len(text)))[:wanted]


def _schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema asked for, in OpenAI's form or in vLLM's own; `{}` for any object."""
    form = body.get("response_format")
    if isinstance(form, dict):
        if form.get("type") == "json_schema":
            return (form.get("json_schema") or {}).get("schema") or {}
        if form.get("type") == "json_object":
            return {}
    structured = body.get("structured_outputs")
    asked = structured.get("json") if isinstance(structured, dict) else body.get("guided_json")
    if isinstance(asked, str):
        asked = orjson.loads(asked)
    return asked if isinstance(asked, dict) else None


def _json_text(view: RequestView, seed: int, schema: dict[str, Any]) -> str:
    if not schema:
        return orjson.dumps({"echo": view.text}).decode()
    luck = draw(seed, f"json {view.choice}", view.text, view.attempt)
    try:
        return orjson.dumps(generate(schema, Random(luck))).decode()
    except (UnsupportedSchemaError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise _refusals.Refusal(
            HTTPStatus.BAD_REQUEST,
            f"Invalid schema for response_format: the simulated server cannot satisfy it ({error})",
            param="response_format",
        ) from error


def usage_of(view: RequestView, choices: list[Choice]) -> dict[str, Any]:
    """Return the usage of an answer, as its body states it."""
    completion = 0
    for choice in choices:
        completion += count_tokens(choice.text)
    prompt = view.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def body_of(envelope: Envelope, choices: list[Choice], view: RequestView) -> dict[str, Any]:
    """Return the body of an answer that is not streamed."""
    if view.embedding:
        return embeddings_body(envelope, view, empty=not choices)
    chat = view.chat
    make = _chat_choice if chat else _plain_choice
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-sim{envelope.number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": envelope.created,
        "model": envelope.model,
        "choices": [make(i, choice, view) for i, choice in enumerate(choices)],
        "usage": envelope.usage,
    }


def _chat_choice(index: int, choice: Choice, view: RequestView) -> dict[str, Any]:
    content = None if choice.message.get("tool_calls") and not choice.text else choice.text
    return {
        "index": index,
        "message": {"role": "assistant", "content": content, **choice.message},
        "logprobs": {"content": _logprobs(choice.text, view)}
        if view.body.get("logprobs")
        else None,
        "finish_reason": choice.finish_reason,
    }


def _plain_choice(index: int, choice: Choice, view: RequestView) -> dict[str, Any]:
    asked = view.body.get("logprobs")
    return {
        "index": index,
        "text": choice.text,
        "logprobs": None if asked is None or asked is False else _plain_logprobs(choice.text, view),
        "finish_reason": choice.finish_reason,
    }


def _logprobs(text: str, view: RequestView) -> list[dict[str, Any]]:
    """Return made-up log probabilities, the same for the same token at the same place."""
    several = view.body.get("top_logprobs") or 0
    return [
        {
            **(chosen := _logprob(token, place)),
            "top_logprobs": [chosen, *(_logprob(f"alt{k}", place, k) for k in range(1, several))]
            if several
            else [],
        }
        for place, token in enumerate(_tokens(text))
    ]


def _logprob(token: str, place: int, rank: int = 0) -> dict[str, Any]:
    value = -rank - draw(0, "logprob", token, place)
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def _plain_logprobs(text: str, view: RequestView) -> dict[str, Any]:
    tokens = list(_tokens(text))
    values = [_logprob(token, place)["logprob"] for place, token in enumerate(tokens)]
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": [{t: v} for t, v in zip(tokens, values, strict=True)],
        "text_offset": [CHARACTERS_PER_TOKEN * place for place in range(len(tokens))],
    }


def _tokens(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHARACTERS_PER_TOKEN):
        yield text[start : start + CHARACTERS_PER_TOKEN]


def events_of(
    envelope: Envelope, choices: list[Choice], view: RequestView
) -> Iterator[dict[str, Any]]:
    """Return the chunks of a streamed answer: one a token, one choice after the other.

    The first chunk of a chat's choice has its role, the last its finish reason; usage comes
    at the very end if `stream_options.include_usage` asks for it.
    """
    chat = view.chat
    frame = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-sim{envelope.number}",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": envelope.created,
        "model": envelope.model,
    }
    for index, choice in enumerate(choices):
        for part in _deltas(choice) if chat else _pieces(choice):
            yield {**frame, "choices": [{"index": index, "logprobs": None, **part}]}
    options = view.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield {**frame, "choices": [], "usage": envelope.usage}


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for token in _tokens(choice.text):
        yield {"delta": {"content": token}, "finish_reason": None}
    calls = choice.message.get("tool_calls") or ()
    for number, call in enumerate(calls):
        delta = {"tool_calls": [{"index": number, **call}]}
        yield {"delta": delta, "finish_reason": None}
    yield {"delta": {}, "finish_reason": choice.finish_reason}


def _pieces(choice: Choice) -> Iterator[dict[str, Any]]:
    for token in _tokens(choice.text):
        yield {"text": token, "finish_reason": None}
    yield {"text": "", "finish_reason": choice.finish_reason}
