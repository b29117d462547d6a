"""Recorded results in the shape of an OpenAI batch's output file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from scaleinfer._answers import Answer
from scaleinfer.results import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scaleinfer.journal import StoredResult

__all__ = ["exported"]


def exported(rows: Iterable[StoredResult], created: float) -> Iterator[dict[str, Any]]:
    """Yield results as lines of an OpenAI batch's output file.

    Args:
        rows: The results.
        created: Unix time that the answers are given.
    """
    for row in rows:
        yield _exported(row, int(created))


def _exported(row: StoredResult, created: int) -> dict[str, Any]:
    # An item without a prompt may have no key.
    name = "/".join(filter(None, (row.key or f"item {row.index}", row.question)))
    custom = f"{name}#{row.occurrence}" if row.occurrence else name
    identity = hashlib.blake2b(custom.encode(), digest_size=12).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{identity}", "custom_id": custom}
    data = row.payload
    error = data.get("error")
    if error is not None:
        told = {"code": error.get("type"), "message": error.get("message", "")}
        return line | {"response": None, "error": told}
    body = _embedded(data) if "vector" in data else _completed(data, identity, created)
    response = {"status_code": 200, "request_id": f"req_{identity}", "body": body}
    return line | {"response": response, "error": None}


def _completed(data: dict[str, Any], identity: str, created: int) -> dict[str, Any]:
    texts = data.get("choices") or [data.get("text")]
    choices = []
    for number, text in enumerate(texts):
        message: dict[str, Any] = {"role": "assistant", "content": text}
        choice = {"index": number, "message": message, "finish_reason": data.get("finish_reason")}
        if number == 0:
            if data.get("tool_calls") is not None:
                message["tool_calls"] = data["tool_calls"]
            choice["logprobs"] = data.get("logprobs")
        choices.append(choice)
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": created,
        "model": data.get("model"),
        "choices": choices,
        "usage": _usage(data),
    }


def _embedded(data: dict[str, Any]) -> dict[str, Any]:
    vector = list(Answer.from_data(data).value)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": data.get("model"),
        "usage": _usage(data),
    }


def _usage(data: dict[str, Any]) -> dict[str, Any]:
    usage = Usage(*data.get("usage", ()))
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
