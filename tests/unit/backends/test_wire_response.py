"""Reading HTTP/1.1 responses from bytes that are cut anywhere."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._wire_base import Failure, Headers, WireError, WireResponse
from scaleinfer.backends._wire_response import MAX_HEAD, Heads, ResponseReader, decoded

JSON = b'{"choices": []}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + JSON
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n"
    b'5\r\n{"cho\r\n5;note=1\r\nices"\r\n5\r\n: []}\r\n0\r\nX-Trailer: 9\r\n\r\n'
)
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + PLAIN
NO_BODY = b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"
EMPTY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\ncontent-length: 0\r\n\r\n"
CLOSING = PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
OLD = PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
SMALL = gzip.compress(JSON, mtime=0)
GZIPPED = (
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(SMALL) + SMALL
)
UNTIL_END = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + JSON

WHOLE = {
    "plain": (PLAIN, 200, JSON, True),
    "chunked": (CHUNKED, 200, JSON, True),
    "1xx before": (EARLY, 200, JSON, True),
    "no body": (NO_BODY, 204, b"", True),
    "empty": (EMPTY, 429, b"", True),
    "closing": (CLOSING, 200, JSON, False),
    "HTTP/1.0": (OLD, 200, JSON, False),
    "gzip": (GZIPPED, 200, JSON, True),
}


def read(pieces: list[bytes], heads: Heads | None = None) -> tuple[WireResponse, bool]:
    """Feed pieces; the response must come with the last of them, and no earlier."""
    reader = ResponseReader({} if heads is None else heads)
    for piece in pieces[:-1]:
        assert reader.feed(piece) is None
    response = reader.feed(pieces[-1])
    assert response is not None
    return response, reader.keep_alive


def feed_all(reader: ResponseReader, data: bytes, piece: int) -> None:
    """Feed all of it in pieces, of which none may complete a response."""
    for start in range(0, len(data), piece):
        assert reader.feed(data[start : start + piece]) is None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_in_one_piece(name: str) -> None:
    data, status, body, keep_alive = WHOLE[name]
    response, kept = read([data])
    assert (response.status, response.body, kept) == (status, body, keep_alive)


@given(name=st.sampled_from(sorted(WHOLE)), places=st.lists(st.integers(0, 1000), max_size=8))
def test_cuts_change_nothing(name: str, places: list[int]) -> None:
    data, *_ = WHOLE[name]
    whole, kept = read([data])
    heads: Heads = {}
    for _ in range(2):  # the second time the head may be known
        pieces, again = read(cut(data, places), heads)
        assert (pieces.status, pieces.body, again) == (whole.status, whole.body, kept)
        assert dict(pieces.headers) == dict(whole.headers)


@pytest.mark.parametrize("name", WHOLE)
def test_byte_by_byte(name: str) -> None:
    data, status, body, _ = WHOLE[name]
    response, _ = read([bytes([byte]) for byte in data])
    assert (response.status, response.body) == (status, body)


@given(names=st.lists(st.sampled_from(sorted(WHOLE)), min_size=2, max_size=6))
def test_one_reader_reads_many(names: list[str]) -> None:
    reader = ResponseReader({})
    for name in names:
        data, status, body, _ = WHOLE[name]
        reader.reset()
        response = reader.feed(data)
        assert response is not None
        assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize("name", ["plain", "chunked", "no body", "empty"])
@pytest.mark.parametrize("extra", [b"x", PLAIN, b"\0\0\0", b"HTTP/1.1 200"])
def test_what_nobody_asked_for_ends_the_connection(name: str, extra: bytes) -> None:
    data, status, body, _ = WHOLE[name]
    response, kept = read([data + extra])
    assert (response.status, response.body, kept) == (status, body, False)


@given(size=st.integers(1, len(UNTIL_END)))
def test_a_body_that_ends_with_the_connection(size: int) -> None:
    reader = ResponseReader({})
    for piece in (UNTIL_END[:size], UNTIL_END[size:]):
        assert not piece or reader.feed(piece) is None
    response = reader.eof()
    assert (response.status, response.body) == (200, JSON)
    assert not reader.keep_alive


@given(name=st.sampled_from(["plain", "chunked", "1xx before", "gzip"]), data=st.data())
def test_a_connection_that_ends_too_early(name: str, data: st.DataObject) -> None:
    whole, *_ = WHOLE[name]
    reader = ResponseReader({})
    size = data.draw(st.integers(1, len(whole) - 1))
    assert reader.feed(whole[:size]) is None
    with pytest.raises(WireError) as caught:
        reader.eof()
    assert caught.value.failure is Failure.BROKEN
    assert not caught.value.unanswered


def test_a_connection_that_ends_without_a_byte() -> None:
    with pytest.raises(WireError, match="before a byte") as caught:
        ResponseReader({}).eof()
    assert caught.value.unanswered


def test_a_reset_is_not_the_end_of_a_body() -> None:
    reader = ResponseReader({})
    reader.feed(UNTIL_END)
    with pytest.raises(WireError, match="Connection reset by peer"):
        reader.eof("Connection reset by peer")


GARBAGE = {
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "no version": b"HTTP/7.3 200 OK\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no length at all": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "endless number": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nwhat is this\r\nContent-Length: 0\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nab",
    "unknown encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\na",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab",
    "half a gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n"
    + SMALL[:20],
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_what_is_no_response(name: str, piece: int) -> None:
    with pytest.raises(WireError) as caught:
        feed_all(ResponseReader({}), GARBAGE[name], piece)
    assert caught.value.failure is Failure.BROKEN
    assert not caught.value.unanswered


def test_a_bad_head_is_bad_every_time() -> None:
    heads: Heads = {}
    for _ in range(2):
        with pytest.raises(WireError, match=r"no HTTP/1\.1"):
            ResponseReader(heads).feed(GARBAGE["no colon"])


@pytest.mark.parametrize("piece", [100, MAX_HEAD * 2])
def test_an_endless_head(piece: int) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20_000))
    assert len(head) > 2 * MAX_HEAD
    with pytest.raises(WireError, match="the head has more than 65536 bytes"):
        feed_all(ResponseReader({}), head, piece)


def test_endless_early_hints() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n"
    with pytest.raises(WireError, match="head"):
        feed_all(ResponseReader({}), hint * (3 * MAX_HEAD // len(hint)), len(hint))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n" + bytes(2_000_000),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2_000_000),
    ],
)
def test_a_body_beyond_the_limit(data: bytes) -> None:
    with pytest.raises(WireError, match="larger than 1 MiB"):
        ResponseReader({}, limit=1 << 20).feed(data)


def test_a_body_that_unpacks_beyond_the_limit() -> None:
    with pytest.raises(WireError, match="larger than 1 MiB"):
        decoded(zlib.compress(bytes(1 << 24)), "deflate", 1 << 20)


def test_deflate() -> None:
    assert decoded(zlib.compress(JSON), "deflate", 1 << 20) == JSON


def test_heads_are_remembered_within_bounds() -> None:
    heads: Heads = {}
    for i in range(1000):
        data = b"HTTP/1.1 200 OK\r\nX-Request-Id: %d\r\nContent-Length: 0\r\n\r\n" % i
        response, _ = read([data], heads)
        assert response.headers["x-request-id"] == str(i)
    assert len(heads) <= 256


def test_headers_are_found_in_any_case() -> None:
    headers = Headers([(b"retry-after", b"3"), (b"via", b"a"), (b"via", b"b"), (b"x", b"\xe9")])
    assert headers["Retry-After"] == headers.get("RETRY-AFTER") == "3"
    assert headers["Via"] == "a, b"
    assert headers["x"] == "é"
    assert "VIA" in headers
    assert headers.get("nothing") is None
    assert headers.get("nothing", "else") == "else"
    assert list(headers) == ["retry-after", "via", "x"]
    assert len(headers) == 3
    assert "retry-after" in repr(headers)
