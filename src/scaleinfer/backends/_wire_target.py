"""Addresses, and the request heads made from them."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Target", "header_fields", "is_loopback", "parse_url", "proxy_for", "request_head"]

_PORTS = {"http": 80, "https": 443}
_SOCKETS = frozenset({"uds", "unix"})
_SAFE = "/:?#[]@!$&'()*+,;=%-._~"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
_DEFAULTS = (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "scaleinfer"))


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections go.

    Attributes:
        host: Name or address of the host; the path of the socket for a Unix socket.
        port: Its port; 0 for a Unix socket.
        tls: True for https.
        authority: What the Host header says.
        authorization: What the address's user and password amount to; empty without.
    """

    host: str
    port: int
    tls: bool
    authority: str
    authorization: str = ""

    @property
    def is_socket(self) -> bool:
        """True for a Unix socket."""
        return self.port == 0


def parse_url(url: str, base: str = "") -> tuple[Target, str]:
    """Split a URL into where to connect and what to ask for there.

    A Unix socket is `uds:///run/vllm.sock:/v1` (or `unix:`): the socket's absolute path, then,
    after the first `:/`, the path of the resource. Percent codes in the socket's path are
    decoded.

    Args:
        url: The URL.
        base: A URL that `url` begins with. Tells where a socket's path ends if no `:/` does.

    Raises:
        ConfigError: It is no http(s) or uds URL.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() in _SOCKETS:
        return _parse_socket(rest, base.partition("://")[2])
    shown = url.rpartition("@")[2].partition("?")[0]
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        name = host if host.isascii() else host.encode("idna").decode()
    except (ValueError, UnicodeError) as error:
        raise ConfigError(f"{shown!r} is no URL: {error}.") from None
    if scheme not in _PORTS or not name or port == 0:
        raise ConfigError(
            f"{shown!r} is no http(s) URL.", hint="For example: http://127.0.0.1:8000/v1"
        )
    authority = f"[{name}]" if ":" in name else name
    if port is not None and port != _PORTS[scheme]:
        authority = f"{authority}:{port}"
    path = quote(parts.path, safe=_SAFE) or "/"
    if parts.query:
        path = f"{path}?{quote(parts.query, safe=_SAFE)}"
    authorization = _basic(parts.username, parts.password)
    tls = scheme == "https"
    return Target(name, port or _PORTS[scheme], tls, authority, authorization), path


def _parse_socket(rest: str, base: str) -> tuple[Target, str]:
    socket, colon, path = rest.partition(":/")
    if not colon:
        socket = base.partition(":/")[0].rstrip("/")
        socket, path = (socket, rest[len(socket) :]) if rest.startswith(socket) else (rest, "")
    path = quote(path.lstrip("/"), safe=_SAFE)
    socket = unquote(socket or rest)
    if not socket.startswith("/") or "\0" in socket:
        raise ConfigError(
            f"{rest!r} is no absolute path of a socket.",
            hint="For example: uds:///run/vllm.sock:/v1",
        )
    return Target(socket, 0, tls=False, authority="localhost"), f"/{path}"


def _basic(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def header_fields(target: Target, headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return all fields of a request but those that frame it, checked.

    Raises:
        ConfigError: A name or value no header can carry, or one that is the wire's own.
            Values, which may be secret, are not repeated.
    """
    fields = []
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a header.")
        if name.lower() in _FRAMING:
            raise ConfigError(f"the header {name} is set by the HTTP client itself.")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            bad = True
        else:
            bad = _BAD_VALUE.search(value) is not None
        if bad:
            raise ConfigError(
                f"the value of the header {name} holds characters that no header can carry.",
                hint="Look for a line break or a typographic character in it.",
            )
        fields.append((name, value.strip()))
    names = {name.lower() for name, _ in fields}
    if "host" not in names:
        fields.insert(0, ("Host", target.authority))
    if target.authorization and "authorization" not in names:
        fields.append(("Authorization", target.authorization))
    fields += [(name, value) for name, value in _DEFAULTS if name.lower() not in names]
    return fields


def request_head(method: str, target: Target, path: str, headers: Mapping[str, str]) -> bytes:
    """Return a request's head without its end; a POST's ends in `Content-Length: `.

    Raises:
        ConfigError: See `header_fields`.
    """
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in header_fields(target, headers)]
    lines.append("Content-Length: " if method == "POST" else "")
    return "\r\n".join(lines).encode("latin-1")


def is_loopback(url: str) -> bool:
    """True if the URL's host is this machine."""
    parts = urlsplit(url)
    if parts.scheme in _SOCKETS:
        return True
    host = parts.hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL.

    Reads `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` in either case, and the
    system's settings on macOS and Windows. This machine is never asked through a proxy.

    Raises:
        ConfigError: It is not an HTTP proxy.
    """
    from urllib.request import getproxies, proxy_bypass

    if is_loopback(url):
        return None
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    host = parts.netloc.rpartition("@")[2]
    if not proxy or proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in _PORTS:
        shown = proxy.partition("://")[0]
        raise ConfigError(
            f"the environment names a {shown} proxy for {host}, and only HTTP proxies are known.",
            hint="Set https_proxy to an HTTP proxy, or put the host into no_proxy.",
        )
    return proxy
