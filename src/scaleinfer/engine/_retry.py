"""Whether a failed call is tried again, and when. A plain state machine: the clock is passed in.

There is one authority per run, so that every failure is judged against what the run knows of
the endpoint: whether it was ever reached, and whether anything has succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

__all__ = ["GiveUp", "Retry", "RetryAuthority", "RetryStatistics", "WaitFor"]

COME_BACK_LATER = (RateLimited, Overloaded, Starting)
_UNREACHABLE_TRIES = 3


@dataclass(frozen=True, slots=True)
class Retry:
    """How failed calls are tried again.

    Attributes:
        attempts: Calls for one request at most, counting errors that may pass (a broken
            connection, a 500, a timeout).
        initial: Seconds of the first wait; waits double, with jitter.
        maximum: Seconds of the longest wait the library chooses by itself; a Retry-After
            from the server may be longer.
        timeout: Seconds for one call; `None` for no limit.
        patience: Seconds during which "come back later" answers (429, 503, a model being
            loaded) are followed for one request; they do not count as attempts.
        repairs: How often a model is shown what is wrong with an answer that does not fit
            the schema.
        stop_after: Items given up in a row, without a single success in between, after which
            the run is stopped; `None` never stops it.
    """

    attempts: int = 8
    initial: float = 0.5
    maximum: float = 60.0
    timeout: float | None = 600.0
    patience: float = 900.0
    repairs: int = 2
    stop_after: int | None = 50

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"Retry.attempts must be at least 1, not {self.attempts}.")
        if self.repairs < 0:
            raise ConfigError(f"Retry.repairs must not be negative, not {self.repairs}.")
        for name in ("initial", "maximum", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Retry.{name} must not be negative, not {getattr(self, name)}.")
        if self.stop_after is not None and self.stop_after < 1:
            raise ConfigError(f"Retry.stop_after must be at least 1, not {self.stop_after}.")
        if self.timeout is not None and self.timeout <= 0:
            raise ConfigError(f"Retry.timeout must be positive, not {self.timeout}.")


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The request has failed for good."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Try again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RetryStatistics:
    """What a run's calls came to.

    Attributes:
        successes: Calls that were answered well.
        failures: Calls that were not.
        retries: Failures that were tried again.
        given_up_in_a_row: Requests given up since the last usable answer.
    """

    successes: int
    failures: int
    retries: int
    given_up_in_a_row: int


class RetryAuthority:
    """Judges every failure of one run.

    Args:
        retry: The rules.
        wait: Seconds to wait after the n-th failure of a request (n from 1); the default is
            tenacity's exponential backoff with jitter.

    Attributes:
        cause: The error for which the whole run should stop; `None` while it may go on.
    """

    def __init__(self, retry: Retry, *, wait: Callable[[int], float] | None = None) -> None:
        self._retry = retry
        self._wait = wait or exponential_jitter(retry.initial, retry.maximum)
        self._successes = 0
        self._failures = 0
        self._retries = 0
        self._in_a_row = 0
        self._unreached_since: float | None = None
        self._unreached = 0
        self._reached = False
        self.cause: ScaleInferError | None = None

    def succeeded(self) -> None:
        """A call was answered well."""
        self._successes += 1
        self._reached = True

    def accepted(self) -> None:
        """A request has its answer, and the answer is one that can be used."""
        self._in_a_row = 0

    def failed(
        self, error: EndpointError, *, attempt: int, later: int, first_failure: float, now: float
    ) -> GiveUp | WaitFor:
        """Judge one failed call.

        Args:
            error: What the backend made of it.
            attempt: How often this request has failed, "come back later" not counted.
            later: How often this request was told to come back later.
            first_failure: When this request first failed, in the clock's seconds.
            now: The clock.
        """
        self._failures += 1
        self._reached = self._reached or error.reached
        if error.fatal and not self._successes:
            self.cause = self.cause or error
        if isinstance(error, Permanent | AuthError) or error.fatal:
            return self._give_up(error)
        if not self._reached and self._never_there(now):
            self.cause = self.cause or error
            return self._give_up(error)
        if isinstance(error, COME_BACK_LATER):
            return self._come_back(error, later, now - first_failure)
        asked_for = error.retry_after or 0.0
        if attempt >= self._retry.attempts or asked_for > self._retry.patience:
            return self._give_up(error)
        self._retries += 1
        return WaitFor(max(self._wait(attempt), asked_for))

    def rejected(self, error: ScaleInferError) -> None:
        """A request was given up for another reason: its answers never fit the schema."""
        self._give_up(error)

    def statistics(self) -> RetryStatistics:
        """Return the run's counts."""
        return RetryStatistics(self._successes, self._failures, self._retries, self._in_a_row)

    def _come_back(self, error: EndpointError, later: int, waited: float) -> GiveUp | WaitFor:
        if error.retry_after is not None:
            # Everyone told "after T" must not come at T together.
            seconds = error.retry_after + self._wait(1) * 0.5
        else:
            seconds = self._wait(later)
        if waited + seconds > self._retry.patience:
            return self._give_up(error)
        self._retries += 1
        return WaitFor(seconds)

    def _never_there(self, now: float) -> bool:
        if self._unreached_since is None:
            self._unreached_since = now
        self._unreached += 1
        # A server that is not there at all should be named within seconds, not after a
        # minute of backoff; one that was there once gets the full patience.
        return (
            self._unreached >= _UNREACHABLE_TRIES
            and now - self._unreached_since >= 2 * self._retry.initial
        )

    def _give_up(self, error: ScaleInferError) -> GiveUp:
        self._in_a_row += 1
        limit = self._retry.stop_after
        if limit is not None and self._in_a_row >= limit:
            self.cause = self.cause or error
        return GiveUp()


def exponential_jitter(initial: float, maximum: float) -> Callable[[int], float]:
    """Return tenacity's exponential backoff with jitter as a function of the failure's number."""

    def wait(failure: int) -> float:
        # Imported on the first failure: tenacity costs 80 ms that a run without one saves.
        import tenacity

        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = failure
        # Not wait_exponential_jitter: its arguments have other names in every other version.
        strategy = tenacity.wait_exponential(initial, maximum) + tenacity.wait_random(0, initial)
        return min(maximum, float(strategy(state)))

    return wait
