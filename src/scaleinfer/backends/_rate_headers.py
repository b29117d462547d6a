"""What a response's headers say about rate limits, and when to come back.

Sources: OpenAI (`x-ratelimit-*`, resets as Go durations), Anthropic (`anthropic-ratelimit-*`,
resets as RFC 3339 dates), the IETF draft `ratelimit-headers` up to its sixth version
(`ratelimit-limit`, `-remaining`, `-reset` in seconds), RFC 9110 section 10.2.3 (`Retry-After`).
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from scaleinfer.results import RateState

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["rate_state", "retry_after"]

_OPENAI = tuple(
    f"x-ratelimit-{what}-{unit}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
_ANTHROPIC = tuple(
    f"anthropic-ratelimit-{unit}-{what}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
# The plain names speak of requests.
_DRAFT = tuple(f"ratelimit-{what}" for what in ("limit", "remaining", "reset"))
# A header that is there whenever its family is, and the family in RateState's order.
_FAMILIES = (
    ("x-ratelimit-remaining-requests", _OPENAI),
    ("x-ratelimit-remaining-tokens", _OPENAI),
    ("anthropic-ratelimit-requests-remaining", _ANTHROPIC),
    ("x-ratelimit-remaining", tuple(f"x-{name}" for name in _DRAFT)),
    ("ratelimit-remaining", _DRAFT),
)
_NOTHING = RateState()
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS |= {"μs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|μs|ns|d|h|m|s)")
_EPOCH, _EPOCH_MS = 1e9, 1e12
_LONGEST_TEXT = 64
_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")


def rate_state(headers: Mapping[str, str], *, now: float | None = None) -> RateState | None:
    """Return where the client stands with the endpoint's rate limits, if the headers say so.

    A limit is taken as it is sent: most servers count per minute, but not all (Groq's
    requests are those of a day), which `reset` tells.

    Args:
        headers: The response's headers.
        now: Unix time a date is compared with; the current time by default.
    """
    # Looking at the names costs least when, as mostly, none of them is one of these.
    for name in headers:
        if "ratelimit" in name.lower():
            return _read(headers, now)
    return None


def _read(headers: Mapping[str, str], now: float | None) -> RateState | None:
    found = {name.lower(): name for name in headers if "ratelimit" in name.lower()}
    for probe, names in _FAMILIES:
        if probe in found:
            values = [headers[found[name]] if name in found else None for name in names]
            return _state(values, now)
    return None


def _state(values: list[str | None], now: float | None) -> RateState | None:
    requests = _count(values[0]), _count(values[1]), _reset(values[2], now)
    if len(values) == len(_DRAFT):
        state = RateState(*requests)
    else:
        state = RateState(*requests, _count(values[3]), _count(values[4]), _reset(values[5], now))
    return None if state == _NOTHING else state


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds a response asks us to wait, or None if it names none.

    Reads `retry-after-ms` (OpenAI, Azure), `x-ms-retry-after-ms` (Azure) and `Retry-After` as
    seconds or as an HTTP date (RFC 9110, section 10.2.3).

    Args:
        headers: The response's headers.
        now: Unix time a date is compared with; the current time by default.
    """
    for name in _MILLISECONDS:
        milliseconds = headers.get(name)
        if milliseconds is not None and (given := _number(milliseconds)) is not None:
            return given / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    if (given := _number(text)) is not None:
        return given
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - (time.time() if now is None else now))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _count(text: str | None) -> int | None:
    if text is None or len(text) > _LONGEST_TEXT:
        return None
    try:
        return max(0, int(text))
    except ValueError:
        number = _number(text)
    return None if number is None else int(number)


def _reset(text: str | None, now: float | None) -> float | None:
    """Return the seconds until then; a number no limit is long enough for is a Unix time."""
    if text is None or len(text) > _LONGEST_TEXT:
        return None
    seconds = _duration(text)
    if seconds is not None and seconds < _EPOCH:
        return seconds
    at = _date(text) if seconds is None else seconds
    if at is not None and at >= _EPOCH_MS:
        at /= 1000
    return None if at is None else max(0.0, at - (time.time() if now is None else now))


@lru_cache(maxsize=1024)
def _duration(text: str) -> float | None:
    """Return `6m0s`, `120ms` or plain seconds in seconds."""
    text = text.strip()
    if (number := _number(text)) is not None:
        return number
    total, end = 0.0, 0
    for part in _PART.finditer(text):
        if part.start() != end:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    return total if end == len(text) and end else None


def _date(text: str) -> float | None:
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    try:
        return at.timestamp()
    except (ValueError, OverflowError):
        return None
