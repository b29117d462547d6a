"""Reads one HTTP/1.1 response from bytes, however they are cut. No sockets here."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import httptools

from scaleinfer.backends._wire_base import Failure, Headers, WireError, WireResponse

if TYPE_CHECKING:
    from scaleinfer.backends._wire_base import OnBody

__all__ = ["MAX_BODY", "MAX_HEAD", "Heads", "ResponseReader", "decoded"]

MAX_HEAD = 1 << 16
"""Bytes of a response's head; what is sent before it (1xx) counts too."""
MAX_BODY = 1 << 28
"""Bytes of a body. 2,048 embeddings of 3,072 numbers are 125 MB of JSON."""

_HEADS_KEPT = 256
_SHOWN = 40
_FIRST_FINAL = 200
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PARSER_ONLY = -1


class Head(NamedTuple):
    """A head that was parsed. `length` is -1 if the parser has to find the body's end."""

    status: int
    headers: Headers
    length: int
    keep_alive: bool


Heads = dict[bytes, Head]
"""Heads that came before: those of answers of one length differ by the second at most."""


class ResponseReader:
    """Turns the bytes of one connection into responses, one at a time.

    A body of announced length is cut out by hand; everything else (chunks, 1xx, a body that
    ends with the connection, compressed ones) goes through llhttp. Both read heads by llhttp,
    so that a response is the same however its bytes are cut.

    Attributes:
        begun: True once a byte of the response has come.
        keep_alive: True if the connection may serve another request after this response.
        on_body: Called with each piece of a chunked body.
    """

    __slots__ = ("_chunks", "_head", "_heads", "_limit", "_message", "_missing", "begun",
                 "keep_alive", "on_body")  # fmt: skip

    def __init__(self, heads: Heads, *, limit: int = MAX_BODY) -> None:
        self._heads = heads
        self._limit = limit
        self._chunks: list[bytes] = []
        self._head: Head | None = None
        self._message: _Message | None = None
        self._missing = 0
        self.begun = False
        self.keep_alive = False
        self.on_body: OnBody | None = None

    def reset(self, on_body: OnBody | None = None) -> None:
        """Get ready for the next response."""
        self.begun = False
        self.on_body = on_body
        self._message = None

    def feed(self, data: bytes) -> WireResponse | None:
        """Take bytes; return the response once it is whole.

        Raises:
            WireError: This is no HTTP, or larger than is sane.
        """
        if self._missing:
            return self._take(data)
        if not self.begun:
            self.begun = True
            end = data.find(b"\r\n\r\n") + 4
            if 4 <= end <= MAX_HEAD:  # noqa: PLR2004 - the four bytes that were found
                raw = data[:end]
                head = self._heads.get(raw)
                if head is None:
                    head = self._learn(raw)
                length = head.length
                if length >= 0:
                    self.keep_alive = head.keep_alive
                    if len(data) == end + length:
                        return WireResponse(head.status, head.headers, data[end:])
                    return self._expect(head, data[end:])
            self._message = _Message(self._limit, self.on_body)
        assert self._message is not None
        return self._pass_on(self._message, data)

    def eof(self, why: str = "") -> WireResponse:
        """Return the response that ends with the connection.

        Raises:
            WireError: It was not whole.
        """
        if not self.begun:
            text = why or "it was closed before a byte of the response came"
            raise WireError(Failure.BROKEN, text, unanswered=True)
        message = self._message
        if why or message is None or not message.ends_with_connection:
            raise WireError(Failure.BROKEN, why or "it was closed in the middle of the response")
        self.keep_alive = False
        return message.response()

    def _learn(self, raw: bytes) -> Head:
        message = _Message(self._limit)
        try:
            message.feed(raw)
        except WireError:
            return Head(0, Headers(()), _PARSER_ONLY, keep_alive=False)  # the parser says it again
        head = Head(
            message.status, Headers(message.fields), message.plain_length, message.keep_alive
        )
        if len(self._heads) >= _HEADS_KEPT:
            self._heads.clear()
        self._heads[raw] = head
        return head

    def _expect(self, head: Head, rest: bytes) -> WireResponse | None:
        if head.length > self._limit:
            raise _too_large(self._limit)
        self._head, self._chunks, self._missing = head, [], head.length
        return self._take(rest)

    def _take(self, data: bytes) -> WireResponse | None:
        self._missing -= len(data)
        self._chunks.append(data)
        if self._missing > 0:
            return None
        head, self._head = self._head, None
        chunks, self._chunks = self._chunks, []
        extra, self._missing = self._missing, 0
        body = b"".join(chunks)
        assert head is not None
        if extra:
            self.keep_alive = False  # nobody asked for what follows
            body = body[:extra]
        return WireResponse(head.status, head.headers, body)

    def _pass_on(self, message: _Message, data: bytes) -> WireResponse | None:
        message.feed(data)
        if not message.done:
            return None
        self.keep_alive = message.keep_alive and not message.extra
        return message.response()


class _Message:
    """One response by way of llhttp, whose callbacks these are; 1xx are passed over."""

    def __init__(self, limit: int, on_body: OnBody | None = None) -> None:
        self._on_body = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._limit = limit
        self._seen = 0
        self._body: list[bytes] = []
        self._size = 0
        self._headed = False
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.keep_alive = False
        self.done = False
        self.extra = False

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise WireError(Failure.BROKEN, "the server switched to another protocol") from None
        except httptools.HttpParserError as error:
            if not self.done:
                shown = data[:_SHOWN]
                raise WireError(
                    Failure.BROKEN, f"what came is no HTTP/1.1 ({error}): {shown!r}"
                ) from None
            self.extra = True
        if self._size > self._limit:
            raise _too_large(self._limit)
        if not self._headed and not self.done:
            self._seen += len(data)
            if self._seen > MAX_HEAD:
                raise WireError(Failure.BROKEN, f"the head has more than {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        if self.done:
            self.extra = True
            return
        self.fields = []
        self._headed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed and not self.done:  # later ones are trailers
            self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.done:
            return
        self.status = self._parser.get_status_code()
        self.keep_alive = self._parser.should_keep_alive()
        self._headed = True

    def on_body(self, body: bytes) -> None:
        if not self.done:
            self._body.append(body)
            self._size += len(body)
            if self._on_body is not None and self.status >= _FIRST_FINAL:
                self._on_body(body)

    def on_message_complete(self) -> None:
        if self.status < _FIRST_FINAL:
            self._headed = False
        else:
            self.done = True

    @property
    def plain_length(self) -> int:
        """Bytes of the body, if only its announced length says where it ends; else -1."""
        if self.status < _FIRST_FINAL:
            return _PARSER_ONLY
        if self.done:  # no body at all
            return 0
        fields = dict(self.fields)
        length = fields.get(b"content-length", b"").strip()
        if not length.isdigit() or b"transfer-encoding" in fields or b"content-encoding" in fields:
            return _PARSER_ONLY
        return int(length)

    @property
    def ends_with_connection(self) -> bool:
        """True if the end of the connection is the end of the body."""
        names = {name for name, _ in self.fields}
        return self._headed and not names & {b"content-length", b"transfer-encoding"}

    def response(self) -> WireResponse:
        headers = Headers(self.fields)
        body = b"".join(self._body)
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in {"", "identity"}:
            body = decoded(body, encoding, self._limit)
        return WireResponse(self.status, headers, body)


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """Return what a server compressed, though it was asked not to."""
    if encoding not in _ENCODINGS:
        raise WireError(Failure.BROKEN, f"the body is encoded as {encoding}, which was not asked")
    decoder = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        plain = decoder.decompress(body, limit)
    except zlib.error as error:
        raise WireError(Failure.BROKEN, f"the body is no {encoding}: {error}") from None
    if decoder.unconsumed_tail:
        raise _too_large(limit)
    if body and not decoder.eof:
        raise WireError(Failure.BROKEN, f"the {encoding} body is cut off")
    return plain


def _too_large(limit: int) -> WireError:
    return WireError(Failure.BROKEN, f"the response is larger than {limit >> 20} MiB")
