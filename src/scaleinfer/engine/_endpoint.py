"""One endpoint as the engine sees it: limiter, breaker, rate limit, and how fast it has been.

A plain state machine: the clock is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._breaker import Breaker
from scaleinfer.engine._limiter import Outcome
from scaleinfer.engine._rate_limit import RateLimiter
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine._breaker import BreakerStatistics
    from scaleinfer.engine._limiter import Limiter, LimiterStatistics
    from scaleinfer.engine._rate_limit import RateLimitStatistics
    from scaleinfer.results import Load, RateState

__all__ = ["Endpoint", "EndpointStatistics", "Traffic"]

_MEMORY_CALLS = 10
_TRAFFIC_MEMORY_CALLS = 50
_EXPLORE_CALLS = 4
_FIRST_CALLS = 8
_FORGET_S = 30.0
_FORGET_CALLS = 5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """An endpoint at one moment.

    Attributes:
        name: The endpoint's name.
        weight: Its share, as the user wants it.
        started: Calls started there.
        outstanding_calls: Calls that have not ended.
        outstanding_tokens: Tokens reserved for these.
        seconds_per_call: Recent mean time of an answered call; `None` before the first.
        tokens_per_call: Recent mean of the completion tokens of a call.
        tokens: Completion tokens it has given so far.
        goodput: Completion tokens a second of all calls in flight, at the recent speed.
        limiter: Places there.
        breaker: Whether it is held to be broken.
        rate: Its rate limits.
        left: True if it was taken out of its set; it gets no more calls.
    """

    name: str
    weight: float
    started: int
    outstanding_calls: int
    outstanding_tokens: float
    seconds_per_call: float | None
    tokens_per_call: float
    tokens: int
    goodput: float
    limiter: LimiterStatistics
    breaker: BreakerStatistics
    rate: RateLimitStatistics
    left: bool = False


class Traffic:
    """All calls of the endpoints that one router chooses from.

    Attributes:
        calls: Calls in flight.
        answered: Calls that were answered.
        several: True if there is more than one endpoint.
        seconds: Recent mean time of an answered call; 1 before the first.
        flow: Calls answered a second, by Little's law: the sum over the endpoints of calls
            in flight over seconds of a call.
    """

    __slots__ = ("answered", "calls", "flow", "seconds", "several")

    def __init__(self) -> None:
        self.calls = 0
        self.answered = 0
        self.several = False
        self.flow = 0.0
        self.seconds = 1.0

    def took(self, seconds: float) -> None:
        """A call was answered."""
        self.answered += 1
        self.seconds += (seconds - self.seconds) / min(self.answered, _TRAFFIC_MEMORY_CALLS)


class Endpoint:
    """The state of one endpoint, and the one place that a call's start and end are told to.

    Args:
        name: Its name in results and messages.
        limiter: Counts its places.
        breaker: Keeps calls away while it is broken; the default one if `None`.
        rate: Its rate limits; learned from its headers if `None`.
        weight: Its share of the work relative to others of the same speed.

    Attributes:
        index: Its position among its router's endpoints.
        calls: Calls in flight.
        tokens: Tokens reserved for these.
        turns: Calls started, over the weight.
        traffic: The calls of all endpoints of its router.
        parked: True while its router does not look at it, because it had no room.
        unpark: Called when a call ends while `parked`.
        left: True once it is taken out of its set: no call may start.

    Raises:
        ConfigError: `weight` is not a positive, finite number.
    """

    __slots__ = (
        "_answered",
        "_deviation",
        "_flow",
        "_quiet_since",
        "_rejected_at",
        "_rejections",
        "_seconds",
        "_started",
        "_tokens_given",
        "_tokens_per_call",
        "breaker",
        "calls",
        "index",
        "left",
        "limiter",
        "name",
        "parked",
        "rate",
        "tokens",
        "traffic",
        "turns",
        "unpark",
        "weight",
    )

    def __init__(
        self,
        name: str,
        limiter: Limiter,
        *,
        breaker: Breaker | None = None,
        rate: RateLimiter | None = None,
        weight: float = 1.0,
    ) -> None:
        if not 0 < weight < math.inf:
            raise ConfigError(f"the weight of {name} must be a positive number, not {weight}.")
        self.name = name
        self.weight = weight
        self.limiter = limiter
        self.breaker = breaker or Breaker()
        self.rate = rate or RateLimiter()
        self.index = 0
        self.calls = 0
        self.tokens = 0.0
        self.turns = 0.0
        self.traffic = Traffic()
        self.parked = False
        self.unpark: Callable[[Endpoint], None] | None = None
        self.left = False
        self._started = 0
        self._answered = 0
        self._seconds = self._deviation = self._tokens_per_call = self._flow = 0.0
        self._quiet_since = self._rejected_at = -math.inf
        self._tokens_given = 0
        self._rejections = 0

    @property
    def started_calls(self) -> int:
        """Calls started so far."""
        return self._started

    def has_room(self, now: float) -> bool:
        """Return whether a call may start: a free place, not broken, within the rate limit."""
        return (
            self.limiter.has_room
            and (self.breaker.closed or self.breaker.allows(now))
            and self.rate.ready_at <= now
            and not (self.traffic.several and self._explored)
            and not self.left
        )

    @property
    def _explored(self) -> bool:
        """True if enough calls are out for what is known of an endpoint's speed.

        More would be stuck there if it turns out to be slow. An answer for each call more is a
        slow start: calls double with each turn, until the limiter says what is best.
        """
        if self._answered:
            return self.calls >= _FIRST_CALLS + self._answered
        return self.calls >= (_EXPLORE_CALLS if self.traffic.answered else _FIRST_CALLS)

    def wake_at(self, now: float) -> float | None:
        """Return when time alone gives room; `None` if only the end of a call can."""
        exploring = self.traffic.several and self._explored
        if exploring:
            return None
        if not self.limiter.has_room:
            again = self.limiter.look_again_s
            return None if again is None else now + again
        wake = now
        if not self.breaker.allows(now):
            closed_until = self.breaker.wake_at(now)
            if closed_until is None:
                return None
            wake = closed_until
        return max(wake, self.rate.ready_at)

    def seconds(self, now: float) -> float:
        """Return how long a call is expected to take.

        An endpoint without answers counts as a typical one, and so does one that has been
        idle for long, as it may have recovered. With calls in flight and none ending, it
        takes at least as long as it has been quiet: a stalled endpoint shows at once.
        """
        expected = self._seconds if self._answered else self.traffic.seconds
        quiet = now - self._quiet_since
        if quiet <= expected:
            return expected
        if self.calls:
            return quiet
        if quiet > _FORGET_S and quiet > _FORGET_CALLS * expected:
            return self.traffic.seconds
        return expected

    def score(self, now: float) -> float:
        """Return the work in flight and one call more, in seconds, over the weight."""
        return (self.calls + 1) * self.seconds(now) / self.weight

    def latest(self, now: float) -> float:
        """Return how long a call may well take: the mean and two mean deviations."""
        seconds = self.seconds(now)
        latest = seconds + 2 * self._deviation
        # Of calls started together the quickest answer first; the mean is yet to come.
        return max(latest, 1.5 * seconds) if self._answered < self.calls else latest

    def started(self, now: float, tokens: float = 0) -> None:
        """A call starts that may use so many tokens, prompt and completion together."""
        if not self.calls:
            self._quiet_since = now
        self.calls += 1
        self.tokens += tokens
        self.turns += 1.0 / self.weight
        self.traffic.calls += 1
        self._flows()
        self._started += 1
        self.limiter.started(now)
        self.rate.reserve(now, tokens)
        if not self.breaker.closed:
            self.breaker.started(now)

    def ended(
        self,
        now: float,
        outcome: Outcome,
        *,
        began: float,
        reserved_tokens: float = 0,
        tokens: int = 0,
        total_tokens: int = 0,
        load: Load | None = None,
        rate: RateState | None = None,
        retry_after: float | None = None,
        broken: bool = False,
    ) -> None:
        """A call has ended.

        Args:
            now: The clock, in seconds.
            outcome: What became of it.
            began: The clock when it started.
            reserved_tokens: What `started` was given.
            tokens: Completion tokens it brought.
            total_tokens: Prompt and completion tokens, as the endpoint counted them; 0 if
                an answer came without a count.
            load: The endpoint's load report.
            rate: Where we stand with its rate limits, as it says.
            retry_after: Seconds the endpoint asked us to stay away.
            broken: True if the call says that the endpoint itself is broken.
        """
        self.calls -= 1
        self.tokens -= reserved_tokens
        self.traffic.calls -= 1
        self._quiet_since = now
        self.limiter.ended(
            now, outcome, began=began, tokens=tokens, load=load, retry_after=retry_after
        )
        if outcome is Outcome.REJECTED:
            self._rejected(now, began, retry_after)
        elif outcome is not Outcome.OK or total_tokens:
            self.rate.correct(reserved_tokens, total_tokens, now)
        if rate is not None:
            self.rate.learn(rate, now)
        if outcome is Outcome.OK:
            self._tokens_given += tokens
            self._took(now - began, tokens)
        elif outcome is Outcome.TIMEOUT and now - began > self._seconds:
            self._took(now - began, self._tokens_per_call)
        self._flows()
        if broken:
            self.breaker.failed(now, began=began)
        elif outcome is Outcome.CANCELLED or outcome is Outcome.TIMEOUT:
            self.breaker.released(now, began=began)
        else:
            self.breaker.succeeded(now, began=began)
        if self.parked and self.unpark is not None:
            self.unpark(self)

    def statistics(self) -> EndpointStatistics:
        """Return where the endpoint stands."""
        speed = self._tokens_per_call / self._seconds if self._seconds > 0 else 0.0
        return EndpointStatistics(
            self.name,
            self.weight,
            self._started,
            self.calls,
            self.tokens,
            self._seconds if self._answered else None,
            self._tokens_per_call,
            self._tokens_given,
            speed * self.calls,
            self.limiter.statistics(),
            self.breaker.statistics(),
            self.rate.statistics(),
            self.left,
        )

    def _rejected(self, now: float, began: float, retry_after: float | None) -> None:
        if began >= self._rejected_at:
            self._rejected_at = now
            self._rejections += 1
        # A server that refuses call after call and names no time is quick to answer and so
        # looks idle: without a pause it would draw every item to itself.
        if retry_after is None and self._rejections > 1:
            doubled = _FIRST_PAUSE_S * 2.0 ** min(self._rejections - 2, 10)
            retry_after = min(doubled, _LONGEST_PAUSE_S) - (now - self._rejected_at)
        self.rate.rejected(retry_after, now)

    def _flows(self) -> None:
        seconds = self._seconds if self._answered else self.traffic.seconds
        flow = self.calls / seconds if seconds > 0 else 0.0
        self.traffic.flow += flow - self._flow
        self._flow = flow

    def _took(self, seconds: float, tokens: float) -> None:
        self._answered += 1
        self._rejections = 0
        part = 1 / min(self._answered, _MEMORY_CALLS)
        error = seconds - self._seconds
        # After one call a guess, as TCP makes it (RFC 6298, section 2.2).
        spread = abs(error) if self._answered > 1 else seconds / 2
        self._deviation += part * (spread - self._deviation)
        self._seconds += part * error
        self._tokens_per_call += part * (tokens - self._tokens_per_call)
        self.traffic.took(seconds)
