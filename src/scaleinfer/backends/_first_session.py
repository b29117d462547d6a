"""Names conversations, so that FIRST keeps each on the replica that has its KV cache."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import orjson

from scaleinfer.requests import plain

if TYPE_CHECKING:
    from scaleinfer.requests import Request

__all__ = ["SESSION_HEADER", "session_of"]

SESSION_HEADER = "x-alcf-session-id"
_CHARACTERS = 32
"""Of the 128 that the gateway takes."""


def session_of(request: Request) -> str | None:
    """Return the name of the conversation that a request is a turn of; `None` if it is none.

    All turns of a conversation begin with the same messages, up to the first of the user's. So
    the branches of an agent that begin alike share a name, and those that do not have their own.
    """
    if not request.messages:
        return None
    beginning = []
    for message in request.messages:
        beginning.append(message)
        if message.get("role") == "user":
            break
    try:
        data = orjson.dumps(beginning, default=plain, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return None
    return hashlib.sha256(data).hexdigest()[:_CHARACTERS]
