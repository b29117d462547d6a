"""Calls and tokens per minute at one endpoint. A plain state machine: the clock is passed in.

Each limit is a generic cell rate algorithm (ITU-T I.371): one number, the time at which the
next call is due. A call pays after it started, so a call of any size passes once what came
before is paid, and no size overtakes another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from scaleinfer.results import RateState

__all__ = ["RateLimit", "RateLimitStatistics", "RateLimiter"]

_MINUTE_S = 60.0
_BURST_S = 1.0
# A burst of a second and a minute at this pace make exactly the limit, so that a server that
# counts over any 60 seconds has nothing to refuse.
_PACE = (_MINUTE_S - _BURST_S) / _MINUTE_S
_NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What an endpoint allows per minute. `None` means no limit, or one learned from it.

    Calls are spread over the minute: at most a second's worth (at least one call) starts at
    once, and the pace is 1/60 below the limit.

    Attributes:
        requests_per_minute: Calls started per minute.
        tokens_per_minute: Tokens per minute, prompt and completion together.

    Raises:
        ConfigError: A limit is not a positive, finite number.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is None:
                continue
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not number or not 0 < limit < math.inf:
                raise ConfigError(f"RateLimit.{name} must be a positive number, not {limit!r}.")


@dataclass(frozen=True, slots=True)
class RateLimitStatistics:
    """A rate limiter at one moment.

    Attributes:
        requests_per_minute: The limit in force; `None` if there is none.
        tokens_per_minute: The limit in force; `None` if there is none.
        learned: True if one of them came from the endpoint's own headers.
        rejected: Calls the endpoint refused as too many.
        pauses: How often it held everybody off.
    """

    requests_per_minute: float | None
    tokens_per_minute: float | None
    learned: bool
    rejected: int
    pauses: int


class _Pace:
    """One limit. `due` is when all that was started is paid; a call may start from then on."""

    __slots__ = ("burst", "due", "gap", "learned", "limit")

    def __init__(self, limit: float, *, learned: bool) -> None:
        self.limit = limit
        self.gap = _MINUTE_S / (limit * _PACE)
        self.burst = max(1.0, limit * _BURST_S / _MINUTE_S) * self.gap
        self.due = _NEVER
        self.learned = learned

    def pay(self, cost: float, now: float) -> None:
        seconds = cost * self.gap
        unused = self.burst - seconds
        start = now - unused if unused > 0 else now
        self.due = (self.due if self.due > start else start) + seconds

    def moved_to(self, limit: float, now: float) -> _Pace:
        """Return the same debt under another limit."""
        new = _Pace(limit, learned=True)
        debt = max(0.0, self.due - now)
        new.due = now + debt * new.gap / self.gap if debt else _NEVER
        return new


class RateLimiter:
    """Says when the next call to one endpoint may start.

    Args:
        rules: The user's limits. Those left out are learned from the endpoint's headers.

    Attributes:
        rated: True if limits were given, rather than learned.
        ready_at: When the next call may start; a time that is not after now means at once.
            It is the same for calls of every size: were large ones made to wait for their
            tokens, small ones would take these away from them for ever.
    """

    __slots__ = (
        "_hold", "_pauses", "_refills", "_rejected", "_requests", "_tokens", "rated", "ready_at",
    )  # fmt: skip

    def __init__(self, rules: RateLimit | None = None) -> None:
        rules = rules or RateLimit()
        requests, tokens = rules.requests_per_minute, rules.tokens_per_minute
        self._requests = None if requests is None else _Pace(requests, learned=False)
        self._tokens = None if tokens is None else _Pace(tokens, learned=False)
        self.rated = requests is not None or tokens is not None
        self._hold = self.ready_at = _NEVER
        self._refills = [False, False]
        self._rejected = self._pauses = 0

    def reserve(self, now: float, tokens: float = 0) -> None:
        """A call starts that may use so many tokens, prompt and completion together."""
        if self._requests is not None:
            self._requests.pay(1.0, now)
        elif self._tokens is None:
            return
        if self._tokens is not None:
            self._tokens.pay(tokens, now)
        self._settle()

    def correct(self, reserved: float, actual: float, now: float) -> None:
        """A call used other tokens than were reserved; 0 if it came to nothing."""
        if self._tokens is not None and reserved != actual:
            self._tokens.due += (actual - reserved) * self._tokens.gap
            self._settle()

    def rejected(self, retry_after: float | None, now: float) -> None:
        """A call was refused as too many; nobody starts for `retry_after` seconds."""
        self._rejected += 1
        if retry_after is not None and retry_after > 0:
            if now >= self._hold:
                self._pauses += 1
            self._hold_until(now + retry_after)

    def learn(self, state: RateState, now: float) -> None:
        """Take over what the endpoint says about its limits (`x-ratelimit-*` headers).

        The user's own limits stay. With nothing left, everybody waits for the endpoint's
        reset, at most a minute: longer resets belong to limits per day, for which a 429 with
        Retry-After speaks.
        """
        self._requests = _learned(self._requests, state.limit_requests, now)
        self._tokens = _learned(self._tokens, state.limit_tokens, now)
        self._read(0, state.limit_requests, state.remaining_requests, state.reset_requests_s, now)
        self._read(1, state.limit_tokens, state.remaining_tokens, state.reset_tokens_s, now)
        self._settle()

    def statistics(self) -> RateLimitStatistics:
        """Return where the rate limiter stands."""
        requests, tokens = self._requests, self._tokens
        return RateLimitStatistics(
            None if requests is None else requests.limit,
            None if tokens is None else tokens.limit,
            any(pace is not None and pace.learned for pace in (requests, tokens)),
            self._rejected,
            self._pauses,
        )

    def _read(
        self, which: int, limit: int | None, left: int | None, reset: float | None, now: float
    ) -> None:
        if left is None or reset is None or reset <= 0:
            return
        if left > 0:
            if limit is not None and limit > 0:
                # "All there again" after exactly what was used means a steady refill; a
                # server that counts per calendar minute names that minute's end instead.
                steady = (limit - left) * _MINUTE_S / limit
                self._refills[which] = abs(reset - steady) <= 0.1 * steady + 0.1
            return
        if self._refills[which] and limit:
            reset = _MINUTE_S / limit
        self._hold_until(now + min(reset, _MINUTE_S))

    def _hold_until(self, until: float) -> None:
        self._hold = max(self._hold, until)
        self.ready_at = max(self.ready_at, until)

    def _settle(self) -> None:
        ready = self._hold
        if self._requests is not None and self._requests.due > ready:
            ready = self._requests.due
        if self._tokens is not None and self._tokens.due > ready:
            ready = self._tokens.due
        self.ready_at = ready


def _learned(pace: _Pace | None, limit: int | None, now: float) -> _Pace | None:
    if limit is None or limit <= 0:
        return pace
    if pace is None:
        return _Pace(limit, learned=True)
    if not pace.learned or pace.limit == limit:
        return pace
    return pace.moved_to(limit, now)
