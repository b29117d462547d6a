"""What every wire client is: bytes out, bytes in, errors as four kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CONNECT_TIMEOUT",
    "STALE_WITHIN",
    "Failure",
    "Headers",
    "OnBody",
    "Wire",
    "WireError",
    "WireResponse",
    "WireStatistics",
]

T = TypeVar("T")
OnBody = Callable[[bytes], None]

CONNECT_TIMEOUT = 10.0
"""Seconds for one connection to be made, name lookup and TLS included."""

STALE_WITHIN = 1.0
"""Seconds in which an idle connection shows that the server had closed it: a round trip."""


class Failure(Enum):
    """What went wrong below HTTP."""

    CONNECT = "connect"
    """No connection: refused, no such host, no route."""
    TLS = "tls"
    """A connection, but no trust."""
    TIMEOUT = "timeout"
    """No answer in time."""
    BROKEN = "broken"
    """The connection ended in the middle, or what came is not HTTP."""


class WireError(Exception):
    """A call that brought no HTTP response.

    Attributes:
        failure: What kind of failure it was.
        unanswered: True if the connection ended before a byte of answer came.
    """

    def __init__(self, failure: Failure, message: str, *, unanswered: bool = False) -> None:
        super().__init__(message)
        self.failure = failure
        self.unanswered = unanswered


class Headers(Mapping[str, str]):
    """A response's header fields; names in any case. Text is made when first asked for.

    Fields of one name are joined by commas (RFC 9110, section 5.3).

    Args:
        fields: Names in lower case and values, as they came.
    """

    __slots__ = ("_fields", "_texts")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self._fields = fields
        self._texts: dict[str, str] | None = None

    def _parsed(self) -> dict[str, str]:
        texts = self._texts
        if texts is None:
            texts = {}
            for raw, value in self._fields:
                name, text = raw.decode("latin-1"), value.decode("latin-1")
                texts[name] = f"{texts[name]}, {text}" if name in texts else text
            self._texts = texts
        return texts

    def __getitem__(self, name: str) -> str:
        return self._parsed()[name.lower()]

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str, /) -> str: ...
    @overload
    def get(self, key: str, default: T, /) -> str | T: ...
    def get(self, key: str, default: object = None, /) -> object:
        """Return the field's value, or `default` if it did not come."""
        return self._parsed().get(key.lower(), default)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._parsed()

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())

    def __repr__(self) -> str:
        return f"Headers({self._parsed()!r})"


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WireStatistics:
    """What a wire holds and has done so far.

    Attributes:
        open: Connections that are open now, the idle ones included.
        idle: Connections without a call.
        waiting: Calls that wait for a connection, or for it to be made.
        connects: Connections made so far.
        reused: Calls that were sent over a connection that had served before.
        waited_s: Seconds that calls waited for a connection, summed over the calls.
        bytes_sent: Bytes of requests; heads are counted where the client shows them.
        bytes_received: Bytes of responses; heads are counted where the client shows them.
    """

    open: int = 0
    idle: int = 0
    waiting: int = 0
    connects: int = 0
    reused: int = 0
    waited_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class Wire(Protocol):
    """An HTTP client for one endpoint, bound to one event loop.

    Cancelling the awaiting task closes the connection (with HTTP/2, resets the stream), so
    that the server stops its work. Redirects are not followed.
    """

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float | None,
        on_body: OnBody | None = None,
    ) -> WireResponse:
        """Send a body and return the response.

        Args:
            url: Where to; within the endpoint the wire was opened for.
            body: What to send.
            headers: Header fields; those that frame the message are the wire's own.
            timeout: Seconds from the moment the call has a connection to the whole response;
                None for no limit.
            on_body: Called with pieces of the body as they come, if it comes in pieces.

        Raises:
            WireError: There was no response.
            ConfigError: A header, or the URL, cannot be sent.
        """

    async def get(self, url: str, headers: Mapping[str, str], timeout: float) -> WireResponse:
        """Fetch a URL.

        Raises:
            WireError: There was no response.
            ConfigError: A header, or the URL, cannot be sent.
        """

    def statistics(self) -> WireStatistics:
        """Return what the wire holds and has done so far."""

    async def aclose(self) -> None:
        """Close every connection; calls in flight end with `WireError`."""
