"""What holds at a simulated server now: its pace, its limits, an outage."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from scaleinfer.testing._changes import Timeline
from scaleinfer.testing._rates import RateLimits, retry_after_header
from scaleinfer.testing._refusals import Refusal

if TYPE_CHECKING:
    from scaleinfer.testing._changes import Down, What
    from scaleinfer.testing._settings import Settings

__all__ = ["Conditions"]

_RATES = ("requests_per_second", "requests_per_minute", "tokens_per_minute")


class Conditions:
    """Everything that may change while a server runs, but for its slots.

    Args:
        settings: What holds at first.

    Attributes:
        slowdown: By how much everything takes longer than the settings say.
        down: The outage that lasts now, if any.
        limits: The rate limits.
        max_waiting: Length of the queue above which 503 comes; infinity for any.
        load_report: Whether requests for a load report are answered.
        guarded: True if a request may be turned away by rate or by queue.
        talkative: True if answers may have headers of their own.
        timeline: Changes that are to come.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rates = {name: getattr(settings, name) or math.inf for name in _RATES}
        self.slowdown = 1.0
        self.down: Down | None = None
        most = settings.max_waiting
        self.max_waiting = math.inf if most is None else float(most)
        report = settings.load_report
        self.load_report = settings.batching is not None if report is None else report
        self.timeline = Timeline(settings.changes)
        self._renew()

    def _renew(self) -> None:
        self.limits = RateLimits(**self._rates, burst_s=self._settings.burst_s)
        self.guarded = self.limits.any or self.max_waiting != math.inf
        told = self.limits.any and self._settings.rate_limit_headers
        self.talkative = self.load_report or told

    def change(self, what: What) -> What:
        """Let what is named hold from now on; return what held of it before.

        New rate limits begin with full buckets. `slots` are left to the caller.
        """
        before: dict[str, Any] = {}
        for name, value in what.items():
            if name in self._rates:
                before[name], self._rates[name] = self._rates[name], value
            elif name == "down":
                before[name] = self.down or False
                self.down = "refuse" if value is True else value or None  # type: ignore[assignment]
            elif name != "slots":
                before[name] = getattr(self, name)
                setattr(self, name, value)
        if before.keys() - {"down", "slowdown"}:
            self._renew()
        return before  # type: ignore[return-value] # its keys are those of `what`

    def refuse_rate(self, tokens: int, now: float, unix_time: float) -> Refusal | None:
        """Return the 429 for a request with `tokens`, or `None` and take it into account."""
        wait = self.limits.admit(tokens, now)
        if not wait:
            return None
        refusal = Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"Rate limit reached. Please try again in {wait:.3f}s.",
            code="rate_limit_exceeded",
        )
        refusal.headers = retry_after_header(self._settings.retry_after, wait, unix_time)
        refusal.headers |= self.rate_headers(now)
        return refusal

    def rate_headers(self, now: float) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers, if this server sends them."""
        return self.limits.headers(now) if self._settings.rate_limit_headers else {}
