"""What makes two questions the same, across runs and processes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaleinfer.prompts import Question
    from scaleinfer.requests import Request

__all__ = ["identity_of", "item_key"]


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
