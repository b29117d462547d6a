"""Nothing secret goes into a journal, even if an error message or a parameter carries it."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["redact", "redact_data"]

_GONE = "[redacted]"

_NAMES = frozenset(
    {
        "apikey", "xapikey", "authorization", "proxyauthorization", "accesstoken", "refreshtoken",
        "idtoken", "bearertoken", "token", "password", "passwd", "secret", "clientsecret",
        "cookie", "setcookie", "credential", "credentials", "defaultheaders", "extraheaders",
        "headers",
    }
)  # fmt: skip

_SECRETS = re.compile(
    r"(?P<scheme>\b(?:Bearer|Authorization:\s*Basic)\s+)[\w.~+/=-]{8,}"
    r"|\bsk-[\w-]{12,}"
    r"|(?P<url>\b[a-z][a-z0-9+.-]*://)[^\s/@]+@",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return `text` without bearer tokens, `sk-` keys and the user part of URLs."""
    return _SECRETS.sub(_without, text) if text else text


def _without(match: re.Match[str]) -> str:
    if match["url"]:
        return f"{match['url']}{_GONE}@"
    return f"{match['scheme'] or ''}{_GONE}"


def redact_data(data: Any) -> Any:
    """Return JSON data without secrets: by the names of fields and inside texts."""
    if isinstance(data, dict):
        return {
            name: _GONE if value and _is_secret(name) else redact_data(value)
            for name, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [redact_data(value) for value in data]
    return redact(data) if isinstance(data, str) else data


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and re.sub(r"[^a-z]", "", name.lower()) in _NAMES
