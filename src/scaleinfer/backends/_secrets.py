"""Keeps credentials out of errors, should a server repeat them in what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scaleinfer.backends._wire import WireResponse

__all__ = ["Secrets"]

_PUBLIC_HEADERS = frozenset(
    {"content-type", "accept", "user-agent", "endpoint-load-metrics-format"}
)
_SHORTEST = 8  # shorter values occur in texts by chance


class Secrets:
    """What must not be seen in an error.

    Args:
        headers: Headers of every call; all but the well-known ones may be credentials.
        others: Further values, query parameters for instance.
    """

    def __init__(self, headers: Mapping[str, str], others: Iterable[str] = ()) -> None:
        self._known: set[bytes] = set()
        for name, value in headers.items():
            if name.lower() not in _PUBLIC_HEADERS:
                self.add(value.removeprefix("Bearer "))
        for value in others:
            self.add(value)

    def add(self, value: str) -> None:
        """Keep one more value out."""
        if len(value) >= _SHORTEST:
            self._known.add(value.encode())

    def taken_out(self, response: WireResponse) -> WireResponse:
        """Return a response whose body does not hold them."""
        body = response.body
        for secret in self._known:
            if secret in body:
                body = body.replace(secret, b"[secret]")
        return response if body is response.body else replace(response, body=body)
