"""Embeddings as the simulated model makes them: from the text alone, the same in every run."""

from __future__ import annotations

import math
from array import array
from base64 import b64encode
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any

from scaleinfer.testing._refusals import Refusal, too_long
from scaleinfer.testing._view import count_tokens

if TYPE_CHECKING:
    from scaleinfer.testing._answers import Envelope
    from scaleinfer.testing._view import RequestView

__all__ = ["embeddings_body", "refuse_embedding", "vector_of"]

_DIMENSIONS = 64
_MOST_DIMENSIONS = 4096
_MOST_TEXTS = 2048
"""OpenAI takes no more to a call."""


def vector_of(text: str, dimensions: int = _DIMENSIONS) -> list[float]:
    """Return the simulated embedding of a text: a direction of its own, of length 1."""
    gauss = Random(f"embedding {text}").gauss
    # float32, as every server computes: what is sent as JSON and as base64 is then the same.
    drawn = array("f", [gauss(0.0, 1.0) for _ in range(dimensions)])
    length = math.sqrt(sum(value * value for value in drawn))
    return array("f", [value / length for value in drawn]).tolist()


def embeddings_body(envelope: Envelope, view: RequestView, *, empty: bool) -> dict[str, Any]:
    """Return the body of an answer: an embedding for each text, or none if `empty`."""
    dimensions = view.body.get("dimensions") or _DIMENSIONS
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _coded(text, dimensions, view)}
            for index, text in enumerate(() if empty else view.prompts)
        ],
        "model": envelope.model,
        "usage": {
            "prompt_tokens": envelope.usage["prompt_tokens"],
            "total_tokens": envelope.usage["prompt_tokens"],
        },
    }


def refuse_embedding(view: RequestView, limit: int | None) -> Refusal | None:
    """Return why a call is refused as a whole, which one bad text is enough for.

    Args:
        view: The request.
        limit: Tokens that a text may have.
    """
    dimensions = view.body.get("dimensions")
    good = dimensions is None or (
        isinstance(dimensions, int) and 0 < dimensions <= _MOST_DIMENSIONS
    )
    if not good:
        return _bad(f"Invalid dimensions: {dimensions}.", "dimensions")
    if len(view.prompts) > _MOST_TEXTS:
        return _bad(f"'$.input' must have at most {_MOST_TEXTS} entries.", "input")
    for text in view.prompts:
        if not text:
            return _bad("'$.input' is invalid: input cannot be an empty string.", "input")
        if limit is not None and (tokens := count_tokens(text)) > limit:
            return too_long(limit, tokens, chat=False)
    return None


def _bad(message: str, param: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message, param=param)


def _coded(text: str, dimensions: int, view: RequestView) -> list[float] | str:
    vector = vector_of(text, dimensions)
    if view.body.get("encoding_format") == "base64":
        return b64encode(array("f", vector).tobytes()).decode()
    return vector
