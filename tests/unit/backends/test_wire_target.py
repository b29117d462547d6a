"""Addresses, request heads and proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._wire_target import (
    Target,
    is_loopback,
    parse_url,
    proxy_for,
    request_head,
)
from scaleinfer.errors import ConfigError

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "target", "path"),
    [
        ("http://h:8000/v1/x", Target("h", 8000, False, "h:8000"), "/v1/x"),
        ("https://h", Target("h", 443, True, "h"), "/"),
        ("https://h:443/v1", Target("h", 443, True, "h"), "/v1"),
        ("https://h:80/v1?api-version=1", Target("h", 80, True, "h:80"), "/v1?api-version=1"),
        ("http://[::1]:8000/a", Target("::1", 8000, False, "[::1]:8000"), "/a"),
        ("http://u:p%40@h/a", Target("h", 80, False, "h", "Basic dTpwQA=="), "/a"),
        ("http://bücher.example/a", Target("xn--bcher-kva.example", 80, False,
                                           "xn--bcher-kva.example"), "/a"),
        ("http://h/a b/é%2F?q=ä", Target("h", 80, False, "h"), "/a%20b/%C3%A9%2F?q=%C3%A4"),
        ("uds:///run/v.sock:/v1/x", Target("/run/v.sock", 0, False, "localhost"), "/v1/x"),
        ("unix:///run/v%20w.sock:/", Target("/run/v w.sock", 0, False, "localhost"), "/"),
    ],
)  # fmt: skip
def test_urls(url: str, target: Target, path: str) -> None:
    assert parse_url(url) == (target, path)


def test_a_socket_without_a_path_is_told_from_what_follows_by_the_base() -> None:
    base = "uds:///run/v.sock"
    assert parse_url(base)[0].host == "/run/v.sock"
    target, path = parse_url(f"{base}/chat/completions", base)
    assert (target.host, path) == ("/run/v.sock", "/chat/completions")


@pytest.mark.parametrize(
    "url", ["ftp://h/", "h:80", "http://", "http://h:0/", "http://h:x/", "http://[::1/", "uds://x"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_url(url)


def test_an_error_about_a_url_keeps_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url("ftp://user:secret@h/?key=secret")
    assert "secret" not in str(caught.value)


def test_a_head() -> None:
    target, path = parse_url("http://h:8000/v1/x")
    head = request_head("POST", target, path, {"Authorization": "Bearer k", "user-agent": "me"})
    assert head == (
        b"POST /v1/x HTTP/1.1\r\nHost: h:8000\r\nAuthorization: Bearer k\r\nuser-agent: me\r\n"
        b"Accept: */*\r\nAccept-Encoding: identity\r\nContent-Length: "
    )
    assert request_head("GET", target, path, {}).endswith(b"User-Agent: scaleinfer\r\n")


def test_a_header_counts_more_than_the_address() -> None:
    target, path = parse_url("http://u:p@h/")
    assert b"Authorization: Basic dTpw\r\n" in request_head("GET", target, path, {})
    head = request_head("GET", target, path, {"authorization": "Bearer k", "host": "other"})
    assert b"Basic" not in head
    assert head.lower().count(b"\r\nhost:") == 1
    assert b"host: other\r\n" in head


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "secret\r\nX-B: 1"),
        ("X-A", "secret\n"),
        ("X-A", "secret\0"),
        ("X-A", "secret “"),
        ("X A", "secret"),
        ("X-A:", "secret"),
        ("", "secret"),
        ("Content-Length", "5"),
        ("transfer-encoding", "chunked"),
        ("Connection", "close"),
    ],
)
def test_headers_that_cannot_be_sent(name: str, value: str) -> None:
    target, path = parse_url("http://h/")
    with pytest.raises(ConfigError) as caught:
        request_head("POST", target, path, {name: value})
    assert "secret" not in str(caught.value)


@given(
    path=st.text(st.characters(codec="utf-8"), max_size=20),
    headers=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_nothing_can_add_a_line(path: str, headers: dict[str, str]) -> None:
    try:
        target, where = parse_url(f"http://h/{path}")
        head = request_head("POST", target, where, headers)
    except ConfigError:
        return
    lines = head.split(b"\n")
    assert all(line.endswith(b"\r") for line in lines[:-1])
    assert head.count(b"\r") == head.count(b"\n")
    names = {name.lower() for name in headers}
    own = {"host", "accept", "accept-encoding", "user-agent", "content-length"}
    assert len(lines) == 1 + len(headers) + len(own - names)
    assert lines[0].count(b" ") == 2


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True),
        ("http://127.0.0.2/v1", True),
        ("http://[::1]/v1", True),
        ("uds:///run/x.sock:/v1", True),
        ("http://localhost.example/v1", False),
        ("http://10.0.0.1/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_loopback(url: str, local: bool) -> None:
    assert is_loopback(url) is local


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("https://h.example/v1") is None
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert proxy_for("https://h.example/v1") == "http://all:1"
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert proxy_for("https://h.example/v1") == "http://proxy:3128"
    assert proxy_for("http://h.example/v1") == "http://all:1"
    assert proxy_for("http://localhost:8000/v1") is None
    assert proxy_for("uds:///run/x.sock:/v1") is None
    monkeypatch.setenv("NO_PROXY", "h.example")
    assert proxy_for("https://u:p@h.example:444/v1") is None
    assert proxy_for("https://other.example/v1") == "http://proxy:3128"


def test_a_proxy_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:secret@h:1080")
    with pytest.raises(ConfigError, match="socks5") as caught:
        proxy_for("https://h.example/v1")
    assert "secret" not in str(caught.value)
