"""Where an endpoint is and with which key: what can be wrong is said before anything is sent."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit, urlunsplit

from scaleinfer.errors import ConfigError

__all__ = ["checked_address", "checked_key", "shown"]

_SOCKETS = frozenset({"uds", "unix"})


def checked_address(url: str) -> SplitResult:
    """Return the parts of a base URL.

    Args:
        url: `http://`, `https://`, or a Unix socket and a path there:
            `uds:///run/vllm.sock:/v1`.

    Raises:
        ConfigError: It is no such URL. The message repeats nothing that may be a credential.
    """
    told = url.rpartition("@")[2].partition("?")[0]
    try:
        parts = urlsplit(url)
        if parts.scheme in _SOCKETS:
            good = not parts.netloc and len(parts.path) > 1
        else:
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"base_url {told!r} is no http(s) URL.",
            hint="For example: http://127.0.0.1:8000/v1, or uds:///run/vllm.sock:/v1",
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            f"base_url {told!r} goes on after its path.",
            hint="Leave out what follows ? or #; a key belongs into api_key= or headers=.",
        )
    return parts


def shown(parts: SplitResult) -> str:
    """Return an address without the credentials in it."""
    if not parts.netloc:
        return f"{parts.scheme}://{parts.path}"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def checked_key(key: object) -> str | None:
    """Return an API key as a header can carry it; None if there is none.

    Raises:
        ConfigError: No header can carry it.
    """
    if not isinstance(key, str | None):
        raise ConfigError(f"the API key must be a string, not {type(key).__name__}.")
    # A key read from a file often ends in a newline.
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            "the API key holds characters that no header can carry.",
            hint="Look for a line break or a typographic character in it.",
        )
    return key or None
