from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scaleinfer.engine import GiveUp, Retry, RetryAuthority, WaitFor
from scaleinfer.engine._retry import exponential_jitter
from scaleinfer.errors import (
    AuthError,
    ConfigError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    SchemaError,
    Starting,
    Transient,
)

LATER = (RateLimited, Overloaded, Starting)


def double(failure: int) -> float:
    return float(2**failure)


def authority(**rules: Any) -> RetryAuthority:
    return RetryAuthority(Retry(**rules), wait=double)


def judge(
    it: RetryAuthority,
    error: EndpointError,
    *,
    attempt: int = 1,
    later: int = 1,
    first_failure: float = 0.0,
    now: float = 0.0,
) -> GiveUp | WaitFor:
    return it.failed(error, attempt=attempt, later=later, first_failure=first_failure, now=now)


def test_what_may_pass_is_tried_so_many_times() -> None:
    it = authority(attempts=3)
    assert judge(it, Transient("x"), attempt=1) == WaitFor(2.0)
    assert judge(it, Transient("x"), attempt=2) == WaitFor(4.0)
    assert judge(it, Transient("x"), attempt=3) == GiveUp()
    assert it.statistics().retries == 2
    assert it.statistics().failures == 3


@pytest.mark.parametrize("kind", [Permanent, AuthError])
def test_what_will_not_pass_is_not_tried_again(kind: type[EndpointError]) -> None:
    assert judge(authority(), kind("x")) == GiveUp()


@pytest.mark.parametrize("kind", LATER)
def test_come_back_later_is_followed_for_as_long_as_patience_lasts(
    kind: type[EndpointError],
) -> None:
    it = authority(attempts=1, patience=100)
    assert judge(it, kind("x"), attempt=0, later=1) == WaitFor(2.0)
    assert judge(it, kind("x"), attempt=0, later=5, now=60.0) == WaitFor(32.0)
    assert judge(it, kind("x"), attempt=0, later=6, now=60.0) == GiveUp()


def test_retry_after_is_followed_and_spread() -> None:
    it = authority(patience=100)
    decision = judge(it, RateLimited("x", retry_after=30), later=4)
    assert decision == WaitFor(31.0)
    assert judge(it, RateLimited("x", retry_after=101)) == GiveUp()
    assert judge(it, RateLimited("x", retry_after=0)) == WaitFor(1.0)
    assert judge(it, Transient("x", retry_after=30)) == WaitFor(30.0)


@pytest.mark.parametrize("after", [1e9, math.inf])
@pytest.mark.parametrize("kind", [*LATER, Transient])
def test_no_server_can_make_an_item_wait_for_ever(kind: type[EndpointError], after: float) -> None:
    it = authority(patience=900)
    assert judge(it, kind("x", retry_after=after)) == GiveUp()


def test_a_server_that_was_never_there_is_named_within_seconds() -> None:
    it = authority(initial=0.5)
    gone = Transient("refused", reached=False)
    assert isinstance(judge(it, gone, now=0.0), WaitFor)
    assert isinstance(judge(it, gone, now=0.1), WaitFor)
    assert isinstance(judge(it, gone, now=0.5), WaitFor)
    assert it.cause is None
    assert judge(it, gone, now=1.0, attempt=2) == GiveUp()
    assert it.cause is gone


@pytest.mark.parametrize("sign_of_life", ["answer", "error"])
def test_a_server_that_was_there_once_gets_every_attempt(sign_of_life: str) -> None:
    it = authority(initial=0.5, attempts=8)
    if sign_of_life == "answer":
        it.succeeded()
    else:
        judge(it, Overloaded("x"))
    for attempt in range(1, 8):
        gone = Transient("refused", reached=False)
        assert isinstance(judge(it, gone, attempt=attempt, now=100.0 * attempt), WaitFor)
    assert it.cause is None


def test_a_fatal_error_stops_the_run_unless_something_has_worked() -> None:
    it = authority()
    refused = AuthError("wrong key", fatal=True)
    assert judge(it, refused) == GiveUp()
    assert it.cause is refused
    judge(it, AuthError("another", fatal=True))
    assert it.cause is refused
    it = authority()
    it.succeeded()
    assert judge(it, AuthError("expired", fatal=True)) == GiveUp()
    assert it.cause is None


def test_a_fatal_error_of_any_kind_is_final() -> None:
    assert judge(authority(), Transient("only web pages", fatal=True)) == GiveUp()


def test_so_many_items_given_up_in_a_row_stop_the_run() -> None:
    it = authority(stop_after=3)
    for _ in range(2):
        judge(it, Permanent("bad"))
    it.accepted()
    for _ in range(2):
        judge(it, Permanent("bad"))
    assert it.cause is None
    assert it.statistics().given_up_in_a_row == 2
    it.rejected(SchemaError("does not fit"))
    assert isinstance(it.cause, SchemaError)
    it = authority(stop_after=None)
    for _ in range(1000):
        judge(it, Permanent("bad"))
    assert it.cause is None


def test_answers_that_never_fit_the_schema_count_although_the_calls_went_well() -> None:
    it = authority(stop_after=2)
    for _ in range(2):
        it.succeeded()
        it.rejected(SchemaError("does not fit"))
    assert it.cause is not None


class Run(RuleBasedStateMachine):
    """Whatever happens: waits are finite, attempts end, counts add up."""

    @initialize(
        attempts=st.integers(1, 5),
        patience=st.floats(0, 1000),
        stop_after=st.none() | st.integers(1, 5),
    )
    def make(self, attempts: int, patience: float, stop_after: int | None) -> None:
        self.limits = Retry(attempts=attempts, patience=patience, stop_after=stop_after)
        self.it = RetryAuthority(self.limits, wait=double)
        self.now = 0.0
        self.open: dict[int, list[float]] = {}
        self.calls = self.good = self.retried = 0

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def an_item_is_answered(self) -> None:
        self.it.succeeded()
        self.it.accepted()
        self.good += 1

    @rule(
        item=st.integers(0, 3),
        kind=st.sampled_from([Transient, Permanent, AuthError, *LATER]),
        retry_after=st.none() | st.floats(0, 2000),
        fatal=st.booleans(),
        reached=st.booleans(),
    )
    def an_item_fails(
        self,
        item: int,
        kind: type[EndpointError],
        retry_after: float | None,
        fatal: bool,
        reached: bool,
    ) -> None:
        first, failures, later = self.open.get(item, [self.now, 0, 0])
        if kind in LATER:
            later += 1
        else:
            failures += 1
        error = kind("x", retry_after=retry_after, fatal=fatal, reached=reached)
        stopping = self.it.cause is not None
        decision = self.it.failed(
            error, attempt=int(failures), later=int(later), first_failure=first, now=self.now
        )
        self.calls += 1
        if isinstance(decision, GiveUp):
            self.open.pop(item, None)
            return
        self.retried += 1
        self.open[item] = [first, failures, later]
        assert stopping or self.it.cause is None, "a run that stops must not wait"
        assert not fatal
        assert kind not in {Permanent, AuthError}
        assert failures < self.limits.attempts or kind in LATER
        assert 0 <= decision.seconds < math.inf
        if retry_after is not None:
            assert decision.seconds >= retry_after
            assert retry_after <= self.limits.patience

    @invariant()
    def counts_add_up(self) -> None:
        statistics = self.it.statistics()
        assert statistics.successes == self.good
        assert statistics.failures == self.calls
        assert statistics.retries == self.retried
        limit = self.limits.stop_after
        if limit is not None and statistics.given_up_in_a_row >= limit:
            assert self.it.cause is not None


TestRun = Run.TestCase


@given(st.integers(1, 5000))
def test_waits_double_with_jitter_up_to_the_longest(failure: int) -> None:
    seconds = exponential_jitter(0.5, 60.0)(failure)
    low = min(60.0, 0.5 * 2 ** min(failure - 1, 20))
    assert min(60.0, low) - 1e-9 <= seconds <= min(60.0, low + 0.5) + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"repairs": -1},
        {"timeout": 0},
        {"initial": -1},
        {"maximum": -1},
        {"patience": -1},
        {"stop_after": 0},
    ],
)
def test_rules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"Retry\.{next(iter(wrong))}"):
        Retry(**wrong)
