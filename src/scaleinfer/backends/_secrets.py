"""Keeps credentials out of errors, should a server repeat them in what it says."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from urllib.parse import SplitResult

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
            if name.lower().endswith("authorization"):
                # A server may repeat it without the name of its scheme.
                self.add(value.partition(" ")[2])
        for value in others:
            self.add(value)

    def add_userinfo(self, parts: SplitResult) -> None:
        """Keep an address' user and password out, also as the header that they become."""
        if parts.username is None:
            return
        user, password = unquote(parts.username), unquote(parts.password or "")
        for value in (user, password, parts.password or ""):
            self.add(value)
        self.add(b64encode(f"{user}:{password}".encode()).decode())

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
