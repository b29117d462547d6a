from __future__ import annotations

from email.utils import parsedate_to_datetime

import orjson
import pytest

from scaleinfer.testing import Fault
from scaleinfer.testing._delivery import Delivery, End, deliver, deliver_events, deliver_fault

BODY = b'{"choices": [{"text": "0123456789"}]}'


def split(delivery: Delivery) -> tuple[str, dict[str, str], bytes]:
    data = b"".join(part for _, part in delivery.parts)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines), body


def json(fault: Fault | None = None, *, keep_alive: bool = True) -> Delivery:
    return deliver(200, BODY, keep_alive=keep_alive, fault=fault, ok=True)


def test_a_good_answer() -> None:
    delivery = json()
    first, headers, body = split(delivery)
    assert first == "HTTP/1.1 200 OK"
    assert headers == {"content-type": "application/json", "content-length": str(len(BODY))}
    assert body == BODY
    assert (delivery.end, delivery.ok) == (End.KEEP, True)


def test_the_client_wants_the_connection_closed() -> None:
    delivery = json(keep_alive=False)
    assert split(delivery)[1]["connection"] == "close"
    assert delivery.end is End.CLOSE


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_truncate_announces_more_than_it_sends(at: float) -> None:
    delivery = json(Fault.truncate(at=at))
    _, headers, body = split(delivery)
    assert int(headers["content-length"]) == len(BODY) > len(body)
    assert BODY.startswith(body)
    assert (delivery.end, delivery.ok) == (End.CLOSE, False)


def test_a_stall_in_the_middle() -> None:
    delivery = json(Fault.stall(at=0.5))
    assert split(delivery)[2] == BODY[: len(BODY) // 2]
    assert (delivery.end, delivery.ok) == (End.HANG, False)


def test_malformed_json_in_proper_http() -> None:
    delivery = json(Fault.malformed())
    _, headers, body = split(delivery)
    assert int(headers["content-length"]) == len(body)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)
    assert (delivery.end, delivery.ok) == (End.KEEP, False)


def test_wrong_content_type_leaves_the_answer_as_it_is() -> None:
    delivery = json(Fault.wrong_content_type("text/plain"))
    _, headers, body = split(delivery)
    assert (headers["content-type"], body) == ("text/plain", BODY)
    assert delivery.ok


def test_slow_drip_sends_all_of_it_in_time() -> None:
    delivery = json(Fault.slow_drip(size=10, seconds=0.5))
    assert split(delivery)[2] == BODY
    _, *drips = delivery.parts
    assert [at for at, _ in drips] == [0.0, 0.5, 1.0, 1.5]
    assert delivery.ok


def unchunk(body: bytes) -> tuple[bytes, bool]:
    """Return the data of a chunked body and whether it came to its end."""
    data = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        if not size.strip() or len(rest) < int(size, 16) + 2:
            return data, False
        length = int(size, 16)
        if length == 0:
            return data, True
        data, body = data + rest[:length], rest[length + 2 :]
    return data, False


def test_events() -> None:
    delivery = deliver_events([b"{}", b"[1]"], interval=0.5, keep_alive=True)
    _, headers, body = split(delivery)
    assert headers["content-type"] == "text/event-stream"
    assert unchunk(body) == (b"data: {}\n\ndata: [1]\n\ndata: [DONE]\n\n", True)
    assert [at for at, _ in delivery.parts] == [0.0, 0.0, 0.5, 1.0]


def test_events_cut_off() -> None:
    fault = Fault.truncate()
    delivery = deliver_events([b"{}", b"[1]"], interval=0.0, keep_alive=True, fault=fault)
    assert not unchunk(split(delivery)[2])[1]
    assert (delivery.end, delivery.ok) == (End.CLOSE, False)


def test_a_malformed_event_among_good_ones() -> None:
    events = [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    delivery = deliver_events(events, interval=0.0, keep_alive=True, fault=Fault.malformed())
    data, whole = unchunk(split(delivery)[2])
    assert whole
    assert data == b'data: {"a":1}\n\ndata: {"b\n\ndata: {"c":3}\n\ndata: [DONE]\n\n'
    assert not delivery.ok


def fault(rule: Fault) -> Delivery:
    return deliver_fault(rule, dialect="openai", keep_alive=True, unix_time=1_000_000.25)


@pytest.mark.parametrize(
    ("rule", "end"),
    [(Fault.drop(), End.CLOSE), (Fault.reset(), End.RESET), (Fault.stall(), End.HANG)],
)
def test_without_a_byte(rule: Fault, end: End) -> None:
    assert fault(rule) == Delivery(0, (), end, ok=False)


def test_a_status_has_an_error_object() -> None:
    first, headers, body = split(fault(Fault.status(503)))
    assert first == "HTTP/1.1 503 Service Unavailable"
    assert "retry-after" not in headers
    assert orjson.loads(body)["error"]["type"] == "server_error"


def test_retry_after_forms() -> None:
    def headers(rule: Fault) -> dict[str, str]:
        return split(fault(rule))[1]

    assert headers(Fault.status(429, retry_after=0.5))["retry-after"] == "0.5"
    as_ms = Fault.status(429, retry_after=0.5, retry_after_form="ms")
    assert headers(as_ms)["retry-after-ms"] == "500"
    as_date = Fault.status(429, retry_after=1.0, retry_after_form="date")
    moment = parsedate_to_datetime(headers(as_date)["retry-after"])
    assert moment.timestamp() == 1_000_002


def test_a_redirect_with_headers_and_body_of_ones_own() -> None:
    rule = Fault.status(302, headers={"Location": "/login", "Content-Type": "text/html"}, body="go")
    first, headers, body = split(fault(rule))
    assert first == "HTTP/1.1 302 Found"
    assert (headers["Location"], headers["content-type"], body) == ("/login", "text/html", b"go")


def test_html_is_a_200() -> None:
    first, headers, body = split(fault(Fault.html()))
    assert first == "HTTP/1.1 200 OK"
    assert headers["content-type"].startswith("text/html")
    assert b"Sign in" in body
