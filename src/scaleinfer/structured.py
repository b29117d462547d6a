"""Typed answers: a pydantic model becomes a JSON schema, an answer becomes an instance of it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from scaleinfer.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from scaleinfer.requests import Message

__all__ = ["AnswerSchema", "instruct"]

_MOST_ERRORS = 8


class AnswerSchema:
    """A pydantic model as the shape of an answer.

    Args:
        model: The pydantic model class an answer is validated against.

    Attributes:
        name: The model's name.
        json_schema: Its JSON schema, closed (`additionalProperties: false`, every property
            required) wherever that is possible, as servers that enforce schemas want it.

    Raises:
        ConfigError: `model` is no pydantic model class.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        if not (isinstance(model, type) and hasattr(model, "model_json_schema")):
            raise ConfigError(
                f"schema must be a pydantic model class, not {model!r}.",
                hint="Write `class Answer(pydantic.BaseModel): ...` and pass schema=Answer.",
            )
        self.model = model
        self.name = model.__name__
        self.json_schema = closed(model.model_json_schema())

    def parse(self, text: str) -> BaseModel:
        """Return the validated answer.

        Prose or a code fence around the JSON is tolerated: models without constrained
        decoding add them.

        Raises:
            SchemaError: The text holds no JSON, or the JSON does not fit the model.
        """
        from pydantic import ValidationError

        try:
            return self._validated(text, text)
        except ValidationError as error:
            complaint = error
        for inner in _embedded_objects(text):
            try:
                return self._validated(json.dumps(inner), text)
            except ValidationError as error:
                complaint = error
        raise SchemaError(_explain(complaint, text), text=text) from None

    def _validated(self, data: str, text: str) -> BaseModel:
        from pydantic import ValidationError

        try:
            return self.model.model_validate_json(data)
        except ValidationError:
            raise
        except Exception as error:
            # pydantic lets through what a validator raises that is no ValueError.
            raise SchemaError(
                f"a validator of {self.name} raised {type(error).__name__}: {error}", text=text
            ) from error

    def repair(self, messages: list[Message], error: SchemaError, *, cut: bool) -> list[Message]:
        """Return the conversation that shows the model its bad answer and what is wrong.

        Args:
            messages: The conversation so far.
            error: What `parse` found.
            cut: True if the answer was cut off at `max_tokens`.
        """
        complaint = f"That answer is not valid: {error.message}"
        if cut:
            complaint += " It was cut off for its length: use shorter values."
        return [
            *messages,
            {"role": "assistant", "content": error.text},
            {"role": "user", "content": f"{complaint}\n{_instruction(self.json_schema)}"},
        ]


def instruct(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    """Return the messages with the schema asked for in words, for servers that enforce none."""
    last = messages[-1]
    content = last.get("content")
    text = f"\n\n{_instruction(schema)}"
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": text}]
    else:
        content = f"{content or ''}{text}"
    return [*messages[:-1], {**last, "content": content}]


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with every object closed and every property required.

    Constrained decoding then cannot leave a field out, and OpenAI's strict mode accepts it.
    Objects with free keys (`dict[str, X]`) stay open.
    """
    schema = deepcopy(schema)
    _close(schema)
    return schema


def is_strict(schema: Any) -> bool:
    """True if no object in the schema has free keys, so that strict mode is possible."""
    if isinstance(schema, list):
        return all(is_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return False
    return all(is_strict(part) for part in schema.values())


def _close(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _close(part)
        return
    if not isinstance(node, dict):
        return
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type") == "object":
        node.setdefault("additionalProperties", False)
        if node["additionalProperties"] is False:
            node["required"] = list(properties)
    for name, part in node.items():
        if name == "properties" and isinstance(part, dict):
            for sub in part.values():
                _close(sub)
        elif name not in {"default", "enum", "const", "examples"}:
            _close(part)


def _instruction(schema: dict[str, Any]) -> str:
    return (
        "Answer with one JSON object and nothing else. It must satisfy this JSON schema:\n"
        + json.dumps(schema, ensure_ascii=False)
    )


def _embedded_objects(text: str) -> Iterator[Any]:
    """Yield the JSON objects that stand in prose, none from within another."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if text[start + 1 : error.pos].strip():
                # JSON that is cut or broken: an object inside it is not the answer.
                return
            end = start + 1
        except RecursionError:
            return
        else:
            yield found
        start = text.find("{", end)


def _explain(error: Any, text: str) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["type"] == "json_invalid" for problem in problems):
        shown = " ".join(text.split())[:80]
        return f"not valid JSON ({shown!r})." if shown else "the answer is empty."
    parts = [
        f"{'.'.join(str(step) for step in problem['loc']) or 'answer'}: {problem['msg']}"
        for problem in problems[:_MOST_ERRORS]
    ]
    more = len(problems) - _MOST_ERRORS
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "") + "."
