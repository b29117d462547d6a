"""The HTTP clients under the backends, and which of them an endpoint gets.

`DirectWire` sends a call for a fifth of aiohttp's CPU time and knows neither proxies nor HTTP/2;
`AiohttpWire` knows proxies; `Http2Wire` puts many calls on one connection, where a gateway
limits connections. See docs/architecture.md for the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaleinfer.backends._wire_aiohttp import AiohttpWire
from scaleinfer.backends._wire_base import (
    CONNECT_TIMEOUT,
    Failure,
    Headers,
    Wire,
    WireError,
    WireResponse,
    WireStatistics,
)
from scaleinfer.backends._wire_descriptors import max_connections
from scaleinfer.backends._wire_target import is_loopback, proxy_for
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    import ssl

__all__ = [
    "CONNECT_TIMEOUT",
    "AiohttpWire",
    "Failure",
    "Headers",
    "Wire",
    "WireError",
    "WireResponse",
    "WireStatistics",
    "is_loopback",
    "max_connections",
    "open_wire",
    "proxy_for",
]

_KINDS = ("auto", "direct", "aiohttp", "http2")


def open_wire(
    url: str,
    *,
    kind: str = "auto",
    context: ssl.SSLContext | None = None,
    proxy: str | None = None,
    limit: int | None = None,
) -> Wire:
    """Return a client for an endpoint on the running loop; nothing is connected yet.

    The proxy variables (`https_proxy`, `http_proxy`, `all_proxy`, `no_proxy`) are honoured but
    for this machine; so are `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE` and
    `CURL_CA_BUNDLE`.

    Args:
        url: The endpoint's base URL: `http://`, `https://`, or `uds:///run/vllm.sock:/v1` for
            a Unix socket.
        kind: `auto`: aiohttp if a proxy applies to the URL, else direct. `direct`, `aiohttp`:
            that one. `http2`: HTTP/2 where the server offers it, else as `auto`.
        context: For TLS, instead of the default one.
        proxy: URL of an HTTP proxy, instead of the one the environment names.
        limit: Most connections at once; by default what this process can hold, see
            `max_connections`.

    Raises:
        ConfigError: The URL or kind is unknown, a package is missing, or a variable that names
            a proxy or certificates is wrong.
    """
    if kind not in _KINDS:
        raise ConfigError(f"there is no HTTP client {kind!r}.", hint=f"Known: {', '.join(_KINDS)}.")
    proxy = proxy or (None if kind == "direct" else proxy_for(url))
    if kind == "aiohttp" or (proxy is not None and kind == "auto"):
        return AiohttpWire(url, proxy=proxy, context=context, limit=limit)
    if proxy is not None:
        raise ConfigError(
            f'the HTTP client "{kind}" knows no proxies, and one is set for this endpoint.',
            hint='Use "auto", or put the host into no_proxy.',
        )
    if kind == "http2":
        from scaleinfer.backends._wire_http2 import Http2Wire

        return Http2Wire(url, context=context, limit=limit)
    from scaleinfer.backends._wire_direct import DirectWire

    return DirectWire(url, context=context, limit=limit)
