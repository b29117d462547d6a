"""A request on its way through the simulated server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scaleinfer.testing._delivery import NO_ANSWER, End
from scaleinfer.testing._faults import NOTHING

if TYPE_CHECKING:
    from scaleinfer.testing._ledger import Entry
    from scaleinfer.testing._view import RequestView

__all__ = ["HeaderTexts", "Headers", "Job", "Output", "RawRequest"]


class Headers(NamedTuple):
    """A request's headers without secrets: to look up, and to keep."""

    by_name: dict[str, str]
    kept: tuple[tuple[str, str], ...]


class HeaderTexts:
    """Headers as text. The same ones come again and again, so they are cached.

    Args:
        keep: Whether the ledger is to have them.
    """

    _MOST = 4096

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._cache: dict[tuple[tuple[bytes, bytes], ...], Headers] = {}

    def parse(self, raw: tuple[tuple[bytes, bytes], ...]) -> Headers:
        """Return headers (names in lower case, no secrets) as text."""
        found = self._cache.get(raw)
        if found is None:
            pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)
            kept = tuple(pair for pair in pairs if pair[0] != "content-length")
            found = Headers(dict(pairs), kept if self._keep else ())
            if len(self._cache) >= self._MOST:
                self._cache.clear()
            self._cache[raw] = found
        return found


class RawRequest(NamedTuple):
    """A request as it came from the socket.

    Attributes:
        method: `POST`, `GET`, ...
        path: Without the query.
        headers: Names in lower case, secrets left out.
        authorization: Value of the Authorization header; never kept.
        body: The body.
        keep_alive: False if the connection is to be closed after the answer.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    authorization: bytes | None = None
    body: bytes = b""
    keep_alive: bool = True


class Job:
    """One request on its way through the server.

    Attributes:
        client: Whatever the shell wants to find again: the connection.
        due: When `Service.advance` has something to do; `None` while it waits for a slot.
        trapped: The connection is to be closed when the next request arrives.
        done: It has its end.
    """

    # Defaults of the class: most of them stay, and setting each would cost more than the rest.
    verdict = NOTHING
    delivery = NO_ANSWER
    due: float | None = None
    started = 0.0
    sent = 0
    served = False
    trapped = False
    done = False

    def __init__(
        self, client: Any, view: RequestView, entry: Entry | None, keep_alive: bool
    ) -> None:
        self.client = client
        self.view = view
        self.entry = entry
        self.keep_alive = keep_alive


class Output(NamedTuple):
    """What the shell is to do for a job now: write `data`; at an `end`, act on it."""

    data: bytes
    end: End | None
