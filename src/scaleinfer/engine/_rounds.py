"""Groups the calls to an endpoint into rounds, whose sums have little noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._token_time import TokenTime

if TYPE_CHECKING:
    from scaleinfer.results import Load

__all__ = ["SHARE_GROWING", "Round", "Rounds"]

_BLOCK = 8
_INSTANT = 1e-6
SHARE_GROWING = 0.65


@dataclass(frozen=True, slots=True)
class Round:
    """What the calls of one round came to.

    Attributes:
        in_flight: Mean number of calls in flight when one of them began.
        peak: The most calls in flight.
        per_token: Seconds per completion token: sum of latencies over sum of tokens.
        first: The same of the first 8 that ended.
        last: The same of the last 8 that ended.
        goodput: Completion tokens a second, as they came in.
        early: True if it was ended early because the last 8 took so long.
        place: Calls that had begun before the last ones that ended.
        tokens: Completion tokens of a call, on average.
        working: Seconds per token while a call is worked on, as answers of different lengths tell.
        working_error: Its relative standard error; infinite if unknown.
        scatter: Relative standard deviation of a call's latency, its length allowed for.
        ended: Calls that ended.
        queued: Calls of ours in the endpoint's own queue, as its load reports tell; `None` if it
            sends none.
        kv_cache: Share of its KV cache in use, as they tell.
    """

    in_flight: float
    peak: int
    per_token: float
    first: float
    last: float
    goodput: float
    early: bool
    place: int
    tokens: float
    working: float = 0.0
    working_error: float = math.inf
    scatter: float = 0.0
    ended: int = 1
    queued: float | None = None
    kv_cache: float = 0.0

    @property
    def noise(self) -> float:
        """Relative standard error of `per_token`."""
        return self.scatter / math.sqrt(self.ended)


class Rounds:
    """Groups calls into rounds: those that began, and ended, since the limit was last set.

    A sum of latencies over a sum of tokens has little noise, and by Little's law goodput is calls
    in flight over seconds per token.
    """

    __slots__ = (
        "_began", "_block_latency", "_block_tokens", "_ended", "_first", "_in_flight", "_kv_cache",
        "_latency", "_level", "_peak", "_queued", "_reports", "_since", "_times", "_tokens",
        "alarm", "share",
    )  # fmt: skip

    def __init__(self) -> None:
        self._since = -math.inf
        self._times = TokenTime()
        self.reset(-math.inf, 0, math.inf, SHARE_GROWING)

    def reset(self, now: float, in_flight: int, alarm: float, share: float) -> None:
        """A round begins; it ends early once 8 calls took more than `alarm` per token."""
        self._since = now
        self._began = self._ended = 0
        self._in_flight = self._peak = in_flight
        self._level = self._latency = self._block_latency = 0.0
        self._tokens = self._block_tokens = 0
        self._first = 0.0
        self._reports = 0
        self._queued = self._kv_cache = 0.0
        self.alarm, self.share = alarm, share

    def forget(self) -> None:
        """Calls so far tell no more how latency depends on length."""
        self._times = TokenTime()

    def started(self, now: float, in_flight: int) -> None:
        """A call begins as one of `in_flight`."""
        if self._since == -math.inf:
            self._since = now
        self._began += 1
        self._level += in_flight
        self._peak = max(self._peak, in_flight)

    def reported(self, began: float, load: Load) -> None:
        """A call's answer carries a load report."""
        if began < self._since:
            return
        waiting, running = load.waiting, load.running
        if waiting is not None:
            self._reports += 1
            if waiting:
                # Our share of the line is our share of all that the endpoint holds.
                here = waiting + (running or 0)
                self._queued += waiting / max(here, self._peak)
            self._kv_cache += load.kv_cache or 0.0

    def ended(self, now: float, began: float, tokens: int) -> Round | None:
        """A call was answered; return the round if that completes it."""
        took = max(now - began, _INSTANT)
        self._times.add(tokens, took)
        if began < self._since:
            return None
        self._ended = ended = self._ended + 1
        self._block_latency += took
        self._block_tokens += tokens
        if ended % _BLOCK:
            return None
        self._latency += self._block_latency
        self._tokens += self._block_tokens
        last = self._block_latency / self._block_tokens
        self._block_latency, self._block_tokens = 0.0, 0
        if ended == _BLOCK:
            self._first = last
        early = last > self.alarm and last > 1.3 * self._first
        if not self._began or (ended < self._peak * self.share and not early):
            return None
        times = self._times
        times.fit()
        level = self._level / self._began
        return Round(
            level,
            self._peak,
            self._latency / self._tokens,
            self._first,
            last,
            self._tokens / max(now - self._since, 1e-9),
            early,
            self._in_flight + ended,
            self._tokens / ended,
            times.seconds,
            times.error,
            times.scatter,
            ended,
            self._queued / self._reports * level if self._reports > 0.5 * ended else None,
            self._kv_cache / (self._reports or 1),
        )
