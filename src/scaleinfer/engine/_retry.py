"""Whether a failed call is tried again, and when. Plain state machines: the clock is passed in.

There is one authority per run, so that every failure is judged against what the run knows of
its endpoints. What concerns one request alone is counted by its `Track`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaleinfer.engine._backoff import between, exponential_jitter
from scaleinfer.engine._retry_budget import RetryBudget
from scaleinfer.errors import (
    AuthError,
    ConfigError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    ScaleInferError,
    Starting,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GiveUp", "Retry", "RetryAuthority", "RetryStatistics", "Track", "WaitFor"]

COME_BACK_LATER = (RateLimited, Overloaded, Starting)
_UNREACHABLE_TRIES = 3
_LONGEST_LOOK = 4.0
_SHORTEST_TIMEOUT = 0.001


@dataclass(frozen=True, slots=True)
class Retry:
    """How failed calls are tried again.

    Attributes:
        attempts: Calls for one request at most, counting errors that may pass (a broken
            connection, a 500, a timeout). A call that another endpoint gets at once instead
            does not count.
        initial: Seconds of the first wait; waits double, with jitter.
        maximum: Seconds of the longest wait the library chooses by itself; a Retry-After
            from the server may be longer.
        timeout: Seconds for one call; `None` for no limit.
        patience: Seconds during which "come back later" answers (429, 503, a model being
            loaded) are followed for one request; they do not count as attempts.
        repairs: How often a model is shown what is wrong with an answer that does not fit
            the schema.
        stop_after: Items given up in a row, without a single success in between, after which
            the run is stopped; `None` never stops it. Items that the server refuses for their
            own sake (a 400, a prompt that is too long) may also be as many as were answered
            before: in a sorted list they stand side by side.
        budget: Retries of the whole run for each answered call, beyond a first allowance of
            as many as calls may be in flight. Beyond it retries wait: while nothing is
            answered, one goes per second (twice `initial`); as soon as something is, they
            follow.
        deadline: Seconds for one request in all, from its first call on, waits included; a
            try that could not start before it is not waited for. `None` for no limit.

    Raises:
        ConfigError: A value cannot be used.
    """

    attempts: int = 8
    initial: float = 0.5
    maximum: float = 60.0
    timeout: float | None = 600.0
    patience: float = 900.0
    repairs: int = 2
    stop_after: int | None = 50
    budget: float = 0.1
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"Retry.attempts must be at least 1, not {self.attempts}.")
        if self.repairs < 0:
            raise ConfigError(f"Retry.repairs must not be negative, not {self.repairs}.")
        for name in ("initial", "maximum", "patience", "budget"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"Retry.{name} must not be negative, not {getattr(self, name)}.")
        if self.stop_after is not None and self.stop_after < 1:
            raise ConfigError(f"Retry.stop_after must be at least 1, not {self.stop_after}.")
        for name in ("timeout", "deadline"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"Retry.{name} must be positive, not {seconds}.")

    def backoff(self) -> float:
        """Return the seconds that a request's waits come to, all attempts used, jitter aside."""
        seconds, wait = 0.0, self.initial
        for left in range(self.attempts - 1, 0, -1):
            if wait >= self.maximum or wait == 0.0:
                return seconds + left * min(wait, self.maximum)
            seconds += wait
            wait *= 2
        return seconds


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request has failed for good."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Ask `Track.again` after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RetryStatistics:
    """What a run's calls came to.

    Attributes:
        successes: Calls that were answered well.
        failures: Calls that were not.
        retries: Failures that were tried again, or wait for that.
        given_up_in_a_row: Requests given up since the last usable answer.
        outage: True while call after call fails and none is answered.
    """

    successes: int
    failures: int
    retries: int
    given_up_in_a_row: int
    outage: bool = False


class RetryAuthority:
    """Judges every failure of one run.

    Args:
        retry: The rules.
        wait: Seconds to wait after the n-th failure of a request (n from 1); the default is
            tenacity's exponential backoff with jitter.
        places: Calls that may be in flight, for the retry budget's first allowance.

    Attributes:
        retry: The rules.
        cause: The error for which the whole run should stop; `None` while it may go on.
    """

    def __init__(
        self, retry: Retry, *, wait: Callable[[int], float] | None = None, places: int = 0
    ) -> None:
        self.retry = retry
        self.cause: ScaleInferError | None = None
        self._wait = wait or exponential_jitter(retry.initial, retry.maximum)
        self._look = between(min(_LONGEST_LOOK, 8 * retry.initial))
        self._budget = RetryBudget(retry.budget, places=places, probe_interval=2 * retry.initial)
        self._longest_silence = min(retry.backoff(), retry.patience)
        self._successes = 0
        self._failures = 0
        self._retries = 0
        self._in_a_row = self._accepted = 0
        self._unreached_since: float | None = None
        self._unreached = 0
        self._reached = False
        self._broken_since = 0.0
        self._broken = 0

    def track(self, now: float) -> Track:
        """Return what counts the failures of one request that starts (or first failed) now."""
        return Track(self, now)

    def resize(self, places: int) -> None:
        """Another number of calls may be in flight now."""
        self._budget.resize(places)

    def succeeded(self) -> None:
        """A call was answered well."""
        self._successes += 1
        self._reached = True
        self._broken = 0
        self._budget.answered()

    def accepted(self) -> None:
        """A request has its answer, and the answer is one that can be used."""
        self._in_a_row = 0
        self._accepted += 1

    def rejected(self, error: ScaleInferError) -> None:
        """A request was given up for another reason: its answers never fit the schema."""
        self._give_up(error)

    def statistics(self) -> RetryStatistics:
        """Return the run's counts."""
        outage = self._budget.outage
        return RetryStatistics(
            self._successes, self._failures, self._retries, self._in_a_row, outage
        )

    def _saw(self, error: EndpointError) -> None:
        self._failures += 1
        self._reached = self._reached or error.reached
        self._budget.failed()

    def _is_final(self, error: EndpointError, now: float) -> bool:
        """Return True if no wait helps, and stop the run if that holds for all its items."""
        if error.fatal and not self._successes:
            self.cause = self.cause or error
        if isinstance(error, Permanent | AuthError) or error.fatal:
            return True
        if not self._reached and self._never_there(now):
            self.cause = self.cause or error
            return True
        return self._never_answers(error, now)

    def _never_there(self, now: float) -> bool:
        if self._unreached_since is None:
            self._unreached_since = now
        self._unreached += 1
        # A server that is not there at all should be named within seconds, not after a
        # minute of backoff; one that was there once gets the full patience.
        return (
            self._unreached >= _UNREACHABLE_TRIES
            and now - self._unreached_since >= 2 * self.retry.initial
        )

    def _never_answers(self, error: EndpointError, now: float) -> bool:
        limit = self.retry.stop_after
        if limit is None or isinstance(error, COME_BACK_LATER):
            self._broken = 0
            return False
        if not self._broken:
            self._broken_since = now
        self._broken += 1
        # At one probe a second a hundred requests would use up their attempts in many
        # minutes; so what one alone would have waited is the limit for all.
        silence = now - self._broken_since
        longest, calls = self._longest_silence, self._failures
        if self._successes:
            calls = self._broken
            # It worked before: an outage may well last longer than one request's tries.
            longest = max(longest, self.retry.patience)
        if self._broken < limit or silence < longest:
            return False
        self._abort(error, f"none of {calls} calls was answered in {silence:.0f} s")
        return True

    def _give_up(self, error: ScaleInferError) -> GiveUp:
        self._in_a_row += 1
        limit = self.retry.stop_after
        if limit is not None and isinstance(error, Permanent) and not error.fatal:
            limit = max(limit, self._accepted)
        if limit is not None and self._in_a_row >= limit:
            self._abort(error, f"{self._in_a_row} requests in a row were given up")
        return GiveUp()

    def _abort(self, error: ScaleInferError, why: str) -> None:
        if self.cause is None:
            self.cause = copy.copy(error)
            self.cause.message = f"{why}; the last error: {error.message}"
            self.cause.index = self.cause.key = None


class Track:
    """Counts the failures of one request; made by `RetryAuthority.track`.

    After an error `failed` says what to do, and after each wait `again` does:

    ```text
    decision = track.failed(error, now)
    while isinstance(decision, WaitFor):
        await asyncio.sleep(decision.seconds)
        decision = track.again(time.monotonic())
    if isinstance(decision, GiveUp):
        raise track.error
    ```

    Attributes:
        error: The request's latest error.
    """

    __slots__ = (
        "_answers", "_authority", "_began", "_due", "_failed_over", "_failures", "_first",
        "_floor", "_free", "_later", "_outage", "error",
    )  # fmt: skip

    def __init__(self, authority: RetryAuthority, now: float) -> None:
        self.error: EndpointError | None = None
        self._authority = authority
        self._began = now
        self._first: float | None = None
        self._failures = 0
        self._later = 0
        self._failed_over: set[str] = set()
        self._free = False
        self._outage = False
        self._answers = 0
        self._floor = 0.0
        self._due = 0.0

    def timeout(self, now: float) -> float | None:
        """Return the seconds that a call which starts now may take."""
        retry = self._authority.retry
        if retry.deadline is None:
            return retry.timeout
        left = max(_SHORTEST_TIMEOUT, self._began + retry.deadline - now)
        return left if retry.timeout is None else min(left, retry.timeout)

    def failed(
        self, error: EndpointError, now: float, *, elsewhere: bool = False
    ) -> GiveUp | WaitFor:
        """Judge one failed call.

        Args:
            error: What the backend made of it.
            now: The clock.
            elsewhere: True if another endpoint would take the request now. It then goes there
                at once, for no attempt; once for each endpoint that failed it, and at most
                `Retry.attempts` times.
        """
        authority = self._authority
        authority._saw(error)
        self.error = error
        if self._first is None:
            self._first = now
        self._free = elsewhere and self._may_fail_over(error)
        if self._free:
            seconds = asked_for = 0.0
        elif authority._is_final(error, now):
            return authority._give_up(error)
        else:
            seconds, asked_for = self._backoff(error)
            if self._spent(now + max(seconds, asked_for)):
                return authority._give_up(error)
        if self._past_deadline(now + max(seconds, asked_for)):
            return self._too_late(error)
        authority._retries += 1
        self._floor = now + asked_for
        self._due = now + max(seconds, asked_for)
        self._outage = authority._budget.outage
        self._answers = authority._successes
        return WaitFor(self._next_look(now))

    def again(self, now: float) -> GiveUp | WaitFor | None:
        """Return whether the request may be tried again now; `None` means yes.

        While nothing is answered anywhere, all but a probe wait a few seconds more; so an
        outage costs few calls, and its end is seen soon.
        """
        authority, error = self._authority, self.error
        if self._free or error is None:
            return None
        ready = now >= self._due or (now >= self._floor and self._answered_since)
        if ready and authority._budget.take(now):
            return None
        if self._past_deadline(now):
            authority._retries -= 1
            return self._too_late(error)
        if self._first is not None and now - self._first > authority.retry.patience:
            authority._retries -= 1
            return authority._give_up(error)
        return WaitFor(authority._look() if ready else self._next_look(now))

    @property
    def _answered_since(self) -> bool:
        """True if the request failed in an outage that is over."""
        return self._outage and self._authority._successes > self._answers

    def _next_look(self, now: float) -> float:
        if not self._outage:
            return self._due - now
        look = now + self._authority._look()
        return max(0.0, min(self._due, max(look, self._floor)) - now)

    def _may_fail_over(self, error: EndpointError) -> bool:
        if isinstance(error, Permanent) and not error.fatal:
            return False
        tried = self._failed_over
        if error.endpoint in tried or len(tried) >= self._authority.retry.attempts:
            return False
        tried.add(error.endpoint)
        return True

    def _backoff(self, error: EndpointError) -> tuple[float, float]:
        """Return the seconds to wait, and those among them that the endpoint asked for."""
        wait, asked_for = self._authority._wait, error.retry_after
        if not isinstance(error, COME_BACK_LATER):
            self._failures += 1
            return wait(self._failures), asked_for or 0.0
        self._later += 1
        if asked_for is None:
            return wait(self._later), 0.0
        # Everyone told "after T" must not come at T together.
        return asked_for + wait(1) * 0.5, asked_for

    def _spent(self, at: float) -> bool:
        """Return True if the rules allow no try at this time."""
        retry, error = self._authority.retry, self.error
        if isinstance(error, COME_BACK_LATER):
            return self._first is not None and at - self._first > retry.patience
        asked_for = 0.0 if error is None else error.retry_after or 0.0
        return self._failures >= retry.attempts or asked_for > retry.patience

    def _past_deadline(self, at: float) -> bool:
        deadline = self._authority.retry.deadline
        return deadline is not None and at >= self._began + deadline

    def _too_late(self, error: EndpointError) -> GiveUp:
        note = f"Retry.deadline ({self._authority.retry.deadline:g} s) left no time to try again."
        # Raising the timeout, as a late answer's hint says, would not help.
        error.hint = f"{error.hint} {note}" if error.hint and not error.timed_out else note
        return self._authority._give_up(error)
