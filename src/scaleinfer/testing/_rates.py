"""Rate limits as commercial endpoints have them: token buckets, 429, and what the headers say."""

from __future__ import annotations

import math
from email.utils import formatdate
from typing import Literal, TypeAlias

__all__ = ["RateLimits", "RetryAfter", "TokenBucket", "retry_after_header"]

RetryAfter: TypeAlias = Literal["seconds", "date", "ms"]
_MINUTE = 60.0


class TokenBucket:
    """Fills at a steady rate up to its capacity; what is asked for is taken out of it.

    Args:
        rate: What flows in, per second; infinity for no limit.
        capacity: What it holds, at least 1.
    """

    __slots__ = ("_time", "capacity", "level", "rate")

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate = rate
        self.capacity = max(capacity, 1.0)
        self.level = self.capacity
        self._time = -math.inf

    def fill(self, now: float) -> None:
        """Let in what has flowed by `now`."""
        if now > self._time:
            self.level = min(self.capacity, self.level + (now - self._time) * self.rate)
            self._time = now

    def wait(self, cost: float) -> float:
        """Return the seconds until `cost` may be taken; 0 if now.

        A cost above the capacity may be taken from a full bucket, whose level then falls
        below zero.
        """
        lacks = min(cost, self.capacity) - self.level
        # A bucket is as good as full when only a rounding error is missing.
        return lacks / self.rate if lacks > 1e-9 * self.capacity else 0.0

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return (self.capacity - self.level) / self.rate


class RateLimits:
    """All limits of one server. A request that is refused takes nothing from any of them.

    Args:
        requests_per_second: Requests a second; infinity for any number.
        requests_per_minute: Requests a minute; infinity for any number.
        tokens_per_minute: Tokens a minute, prompts and answers; infinity for any number.
        burst_s: Seconds' worth of each rate that may come at once; `None` for the unit of
            the limit, a second or a minute.
    """

    def __init__(
        self,
        requests_per_second: float = math.inf,
        requests_per_minute: float = math.inf,
        tokens_per_minute: float = math.inf,
        *,
        burst_s: float | None = None,
    ) -> None:
        self.limits = (requests_per_second, requests_per_minute, tokens_per_minute)
        self._requests: list[TokenBucket] = []
        self._tokens: TokenBucket | None = None
        self._per_minute: TokenBucket | None = None
        if requests_per_second != math.inf:
            self._requests.append(_bucket(requests_per_second, 1.0, burst_s))
        if requests_per_minute != math.inf:
            self._per_minute = _bucket(requests_per_minute, _MINUTE, burst_s)
            self._requests.append(self._per_minute)
        if tokens_per_minute != math.inf:
            self._tokens = _bucket(tokens_per_minute, _MINUTE, burst_s)

    @property
    def any(self) -> bool:
        """True if there is a limit at all."""
        return bool(self._requests) or self._tokens is not None

    def admit(self, tokens: int, now: float) -> float:
        """Take a request with `tokens` in; return 0, or after how many seconds to come again."""
        wait = 0.0
        for bucket in self._requests:
            bucket.fill(now)
            wait = max(wait, bucket.wait(1.0))
        if self._tokens is not None:
            self._tokens.fill(now)
            wait = max(wait, self._tokens.wait(tokens))
        if wait == 0.0:
            for bucket in self._requests:
                bucket.level -= 1.0
            if self._tokens is not None:
                self._tokens.level -= tokens
        return wait

    def settle(self, reserved: int, used: int) -> None:
        """Correct what was taken for a request by what it came to."""
        if self._tokens is not None:
            self._tokens.level = min(self._tokens.capacity, self._tokens.level + reserved - used)

    def headers(self, now: float) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers in OpenAI's form."""
        found: dict[str, str] = {}
        for name, bucket, limit in (
            ("requests", self._per_minute, self.limits[1]),
            ("tokens", self._tokens, self.limits[2]),
        ):
            if bucket is not None:
                bucket.fill(now)
                found[f"x-ratelimit-limit-{name}"] = f"{limit:.0f}"
                found[f"x-ratelimit-remaining-{name}"] = f"{max(math.floor(bucket.level), 0)}"
                found[f"x-ratelimit-reset-{name}"] = _duration(bucket.reset)
        return found


def _bucket(limit: float, unit: float, burst_s: float | None) -> TokenBucket:
    rate = limit / unit
    return TokenBucket(rate, rate * (unit if burst_s is None else burst_s))


def _duration(seconds: float) -> str:
    """Return a time in Go's form, as OpenAI writes it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, _MINUTE)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


def retry_after_header(form: RetryAfter | None, wait: float, unix_time: float) -> dict[str, str]:
    """Return the header that says to come again after `wait` seconds; none if `form` is `None`.

    Args:
        form: `seconds` (whole ones, as RFC 9110 wants them), `date`, or `ms`.
        wait: Seconds; rounded up.
        unix_time: Now, for the date.
    """
    match form:
        case "seconds":
            return {"retry-after": f"{math.ceil(wait)}"}
        case "date":
            return {"retry-after": formatdate(math.ceil(unix_time + wait), usegmt=True)}
        case "ms":
            return {"retry-after-ms": f"{math.ceil(wait * 1000)}"}
    return {}
