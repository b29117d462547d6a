"""Requests to a running model that FIRST gives up waiting for: some are too long for it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from scaleinfer.errors import Permanent

if TYPE_CHECKING:
    from scaleinfer.errors import EndpointError
    from scaleinfer.requests import Request

__all__ = ["LateTries"]

_TRIES = 2
_MOST_KNOWN = 10_000


class LateTries:
    """Counts how often the gateway gave up each request with a 408."""

    def __init__(self) -> None:
        self._tries: Counter[bytes] = Counter()

    def tried(self, request: Request, error: EndpointError) -> EndpointError:
        """Return what one more 408 means: after two, that the request takes longer than allowed."""
        if len(self._tries) > _MOST_KNOWN:
            self._tries.clear()
        key = request.digest()
        self._tries[key] += 1
        if self._tries[key] < _TRIES:
            return error
        del self._tries[key]
        return Permanent(
            f"{error.message} That was its try number {_TRIES}.",
            hint="The gateway gives up after 300 s: lower max_tokens.",
            endpoint=error.endpoint,
            status=error.status,
            body=error.body,
        )
