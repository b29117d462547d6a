"""How an answer goes over the wire: its bytes, when each is due, and how it ends."""

from __future__ import annotations

import math
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import orjson

from scaleinfer.testing._refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scaleinfer.testing._faults import Fault
    from scaleinfer.testing._refusals import Dialect

__all__ = [
    "JSON_TYPE",
    "Delivery",
    "End",
    "Part",
    "deliver",
    "deliver_events",
    "deliver_fault",
    "deliver_refusal",
]

JSON_TYPE, _HTML, _EVENTS = "application/json", "text/html; charset=utf-8", "text/event-stream"
_LOGIN_PAGE = (
    "<!DOCTYPE html><html><head><title>Sign in</title></head>"
    '<body><form action="/login">Please sign in to continue.</form></body></html>'
)


class End(Enum):
    """What becomes of the connection after the last byte."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()
    HANG = auto()


Part: TypeAlias = tuple[float, bytes]
"""Seconds after the answer's start, and the bytes that are due then."""


class Delivery(NamedTuple):
    """All that is sent to one request.

    Attributes:
        status: HTTP status; 0 if nothing is sent.
        parts: The bytes in order of time.
        end: What becomes of the connection then.
        ok: True if this is a usable answer.
    """

    status: int
    parts: tuple[Part, ...]
    end: End
    ok: bool = False


NO_ANSWER = Delivery(0, (), End.HANG)


def _head(
    status: int,
    content_type: str,
    length: int | None,
    keep_alive: bool,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    phrase = _PHRASES.get(status, "Unknown")
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"HTTP/1.1 {status} {phrase}", f"content-type: {content_type}", size]
    if not keep_alive:
        lines.append("connection: close")
    if headers:
        lines.extend(f"{name}: {value}" for name, value in headers.items())
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
# Nearly every answer has this head; it is worth not to put it together anew each time.
_USUAL_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


def deliver(
    status: int,
    body: bytes,
    *,
    keep_alive: bool,
    fault: Fault | None = None,
    ok: bool = False,
    content_type: str = JSON_TYPE,
    headers: Mapping[str, str] | None = None,
) -> Delivery:
    """Return the delivery of a body, spoiled by `fault` if there is one."""
    end = End.KEEP if keep_alive else End.CLOSE
    usual = fault is None and not headers and content_type is JSON_TYPE
    if usual and keep_alive and status == HTTPStatus.OK:
        return Delivery(status, ((0.0, _USUAL_HEAD % len(body) + body),), end, ok)
    if fault is not None:
        if fault.kind == "malformed":
            body = body[: _share(fault.at, len(body))]
        elif fault.kind == "wrong_content_type":
            content_type = fault.body or "text/plain"
    head = _head(status, content_type, len(body), keep_alive, headers)
    whole = Delivery(status, ((0.0, head), (0.0, body)), end, ok)
    return whole if fault is None else _spoil(whole, fault)


def deliver_events(
    events: Iterable[bytes],
    *,
    interval: float,
    keep_alive: bool,
    fault: Fault | None = None,
    headers: Mapping[str, str] | None = None,
) -> Delivery:
    """Return the delivery of server-sent events, one every `interval` seconds."""
    data = [*events, b"[DONE]"]
    content_type = _EVENTS
    if fault is not None and fault.kind == "malformed":
        middle = (len(data) - 1) // 2
        data[middle] = data[middle][: _share(fault.at, len(data[middle]))]
    elif fault is not None and fault.kind == "wrong_content_type":
        content_type = fault.body or "text/plain"
    chunks = [b"%x\r\ndata: %b\n\n\r\n" % (len(event) + 8, event) for event in data]
    chunks[-1] += b"0\r\n\r\n"
    head = (0.0, _head(200, content_type, None, keep_alive, headers))
    if interval:
        parts: tuple[Part, ...] = (head, *((i * interval, chunk) for i, chunk in enumerate(chunks)))
    else:
        parts = (head, (0.0, b"".join(chunks)))
    whole = Delivery(200, parts, End.KEEP if keep_alive else End.CLOSE, ok=True)
    return whole if fault is None else _spoil(whole, fault)


def _spoil(whole: Delivery, fault: Fault) -> Delivery:
    """Return a delivery (head first) with a fault in its body."""
    head, *body = whole.parts
    if fault.kind in ("truncate", "stall"):
        most = _share(fault.at, sum(len(data) for _, data in body))
        cut = (head, *_first(body, most))
        end = End.HANG if fault.kind == "stall" else End.CLOSE
        return whole._replace(parts=cut, end=end, ok=False)
    if fault.kind == "slow_drip":
        data = b"".join(part for _, part in body)
        pieces = (data[i : i + fault.size] for i in range(0, len(data), fault.size))
        drips = ((i * fault.seconds, piece) for i, piece in enumerate(pieces))
        return whole._replace(parts=(head, *drips))
    return whole._replace(ok=whole.ok and fault.kind == "wrong_content_type")


def _share(at: float | None, length: int) -> int:
    """Return how many bytes a share is; never all of them."""
    return min(int((at or 0.0) * length), max(length - 1, 0))


def _first(parts: list[Part], most: int) -> list[Part]:
    kept = []
    for at, data in parts:
        if most <= 0:
            break
        kept.append((at, data[:most]))
        most -= len(data)
    return kept


def deliver_fault(
    fault: Fault, *, dialect: Dialect, keep_alive: bool, unix_time: float
) -> Delivery:
    """Return what a fault sends in place of any answer.

    Args:
        fault: One that strikes early (`Fault.early`).
        dialect: How the error object is worded.
        keep_alive: False if the client wants the connection closed.
        unix_time: Now, for the date in Retry-After.
    """
    match fault.kind:
        case "drop":
            return Delivery(0, (), End.CLOSE)
        case "reset":
            return Delivery(0, (), End.RESET)
        case "stall":
            return NO_ANSWER
        case "html":
            page = (_LOGIN_PAGE if fault.body is None else fault.body).encode()
            return _closed(200, _HTML, page, keep_alive)
    headers = {**_retry_after(fault, unix_time), **fault.headers}
    given = next((v for k, v in headers.items() if k.lower() == "content-type"), None)
    headers = {k: v for k, v in headers.items() if k.lower() != "content-type"}
    if fault.body is not None:
        body = fault.body.encode()
    else:
        phrase = _PHRASES.get(fault.code, "error")
        refusal = Refusal(fault.code, f"{phrase} (simulated fault)")
        body = orjson.dumps(refusal.body(dialect))
    return _closed(fault.code, given or JSON_TYPE, body, keep_alive, headers)


def _closed(
    status: int,
    content_type: str,
    body: bytes,
    keep_alive: bool,
    headers: Mapping[str, str] | None = None,
) -> Delivery:
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        body = b""
    data = _head(status, content_type, len(body), keep_alive, headers) + body
    return Delivery(status, ((0.0, data),), End.KEEP if keep_alive else End.CLOSE)


def _retry_after(fault: Fault, unix_time: float) -> dict[str, str]:
    if fault.retry_after is None:
        return {}
    match fault.retry_after_form:
        case "seconds":
            return {"retry-after": f"{fault.retry_after:g}"}
        case "date":
            return {
                "retry-after": formatdate(math.ceil(unix_time + fault.retry_after), usegmt=True)
            }
        case "ms":
            return {"retry-after-ms": f"{fault.retry_after * 1000:g}"}


def deliver_refusal(refusal: Refusal, *, dialect: Dialect, keep_alive: bool) -> Delivery:
    """Return the delivery of an error."""
    body = orjson.dumps(refusal.body(dialect))
    return deliver(refusal.status, body, keep_alive=keep_alive, headers=refusal.headers)
