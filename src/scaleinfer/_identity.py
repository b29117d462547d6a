"""What makes two questions the same, across runs and processes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.errors import PromptError
from scaleinfer.requests import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scaleinfer.prompts import Question
    from scaleinfer.requests import Request

__all__ = ["content_key", "identity_of", "item_key", "own_key"]


def identity_of(own: str | None, request: Request) -> bytes:
    """Return 16 bytes that identify a question in a journal.

    The rendered request and, if the user names items by a key of their own, that key: a
    changed prompt is a new question under either.
    """
    digest = request.digest()
    if own is None:
        return digest
    return hashlib.blake2b(own.encode() + b"\0" + digest, digest_size=16).digest()


def item_key(own: str | None, questions: Mapping[str, Question]) -> str:
    """Return the key an item's result carries: the user's own, else a hash of what is asked."""
    if own is not None:
        return own
    if len(questions) == 1:
        return next(iter(questions.values())).request.digest().hex()
    joined = hashlib.blake2b(digest_size=16)
    for name, question in sorted(questions.items()):
        joined.update(name.encode() + b"\0" + question.request.digest())
    return joined.hexdigest()


def own_key(key: Callable[[Any], Any], item: Any) -> str:
    """Return the user's own key of an item.

    Raises:
        PromptError: It raised, or identifies nothing.
    """
    try:
        value = key(item)
    except Exception as error:
        raise PromptError(f"key raised {type(error).__name__}: {error}") from error
    text = "" if value is None else str(value)
    try:
        usable = text.encode()
    except UnicodeEncodeError:
        usable = b""
    if not usable:
        raise PromptError(f"key returned {value!r}, which identifies nothing.")
    return text


def content_key(item: Any) -> str:
    """Return a hash of an item's content, the same in every process.

    Raises:
        PromptError: The item has no content that could be told.
    """
    try:
        data = orjson.dumps(
            item, default=_content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        )
    except (orjson.JSONEncodeError, TypeError) as error:
        raise PromptError(
            f"a {type(item).__name__} has no content to tell items apart by ({error}).",
            hint="Name items yourself, e.g. key=lambda item: item.id.",
        ) from error
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _content(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        content = dump(mode="json")
        if type(value).__module__.startswith("langchain_core.messages"):
            content.pop("id", None)  # LangGraph gives a message one when it first meets it
        return content
    return plain(value)
