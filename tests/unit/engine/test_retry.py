from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scaleinfer.engine import GiveUp, Retry, RetryAuthority, WaitFor
from scaleinfer.engine._backoff import exponential_jitter
from scaleinfer.engine._retry_budget import RetryBudget
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

if TYPE_CHECKING:
    from scaleinfer.engine._retry import Track

LATER = (RateLimited, Overloaded, Starting)


def double(failure: int) -> float:
    return float(2**failure)


def authority(**rules: Any) -> RetryAuthority:
    return RetryAuthority(Retry(**rules), wait=double)


def judge(it: RetryAuthority, error: EndpointError, now: float = 0.0) -> GiveUp | WaitFor:
    return it.track(now).failed(error, now)


def test_what_may_pass_is_tried_so_many_times() -> None:
    it = authority(attempts=3)
    track = it.track(0.0)
    assert track.failed(Transient("x"), 0.0) == WaitFor(2.0)
    assert track.again(2.0) is None
    assert track.failed(Transient("x"), 3.0) == WaitFor(4.0)
    assert track.again(7.0) is None
    assert track.failed(Transient("last"), 8.0) == GiveUp()
    assert str(track.error) == "last"
    assert it.statistics().retries == 2
    assert it.statistics().failures == 3


def test_asked_too_early_the_rest_of_the_wait_remains() -> None:
    track = authority().track(0.0)
    track.failed(Transient("x"), 10.0)
    assert track.again(11.5) == WaitFor(0.5)


@pytest.mark.parametrize("kind", [Permanent, AuthError])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_will_not_pass_is_not_tried_again(kind: type[EndpointError], elsewhere: bool) -> None:
    decision = authority().track(0.0).failed(kind("x"), 0.0, elsewhere=elsewhere)
    # Another endpoint has other credentials; a bad request is bad anywhere.
    assert decision == (WaitFor(0.0) if elsewhere and kind is AuthError else GiveUp())


@pytest.mark.parametrize("kind", LATER)
def test_come_back_later_is_followed_for_as_long_as_patience_lasts(
    kind: type[EndpointError],
) -> None:
    track = authority(attempts=1, patience=100).track(0.0)
    assert track.failed(kind("x"), 0.0) == WaitFor(2.0)
    for wait in (4.0, 8.0, 16.0):
        assert track.failed(kind("x"), 60.0) == WaitFor(wait)
    assert track.failed(kind("x"), 69.0) == GiveUp()


def test_retry_after_is_followed_and_spread() -> None:
    it = authority(patience=100)
    assert judge(it, RateLimited("x", retry_after=30)) == WaitFor(31.0)
    assert judge(it, RateLimited("x", retry_after=101)) == GiveUp()
    assert judge(it, RateLimited("x", retry_after=0)) == WaitFor(1.0)
    assert judge(it, Transient("x", retry_after=30)) == WaitFor(30.0)


@pytest.mark.parametrize("after", [1e9, math.inf])
@pytest.mark.parametrize("kind", [*LATER, Transient])
def test_no_server_can_make_an_item_wait_for_ever(kind: type[EndpointError], after: float) -> None:
    assert judge(authority(patience=900), kind("x", retry_after=after)) == GiveUp()


def test_a_server_that_was_never_there_is_named_within_seconds() -> None:
    it = authority(initial=0.5)
    gone = Transient("refused", reached=False)
    assert isinstance(judge(it, gone, 0.0), WaitFor)
    assert isinstance(judge(it, gone, 0.1), WaitFor)
    assert isinstance(judge(it, gone, 0.5), WaitFor)
    assert it.cause is None
    assert judge(it, gone, 1.0) == GiveUp()
    assert it.cause is gone


@pytest.mark.parametrize("sign_of_life", ["answer", "error"])
def test_a_server_that_was_there_once_gets_every_attempt(sign_of_life: str) -> None:
    it = authority(initial=0.5, attempts=8)
    if sign_of_life == "answer":
        it.succeeded()
    else:
        judge(it, Overloaded("x"))
    track = it.track(100.0)
    for attempt in range(1, 8):
        gone = Transient("refused", reached=False)
        assert isinstance(track.failed(gone, 100.0 * attempt), WaitFor)
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


def test_a_fatal_error_of_one_endpoint_is_not_the_others() -> None:
    it = authority()
    track = it.track(0.0)
    unknown = Permanent("no such model", endpoint="a", fatal=True)
    assert track.failed(unknown, 0.0, elsewhere=True) == WaitFor(0.0)
    assert it.cause is None
    assert track.failed(unknown, 0.0, elsewhere=False) == GiveUp()
    assert it.cause is unknown


def test_so_many_items_given_up_in_a_row_stop_the_run() -> None:
    it = authority(stop_after=3)
    for _ in range(2):
        judge(it, Permanent("bad"))
    it.accepted()
    for _ in range(2):
        judge(it, Permanent("bad"))
    assert it.cause is None
    assert it.statistics().given_up_in_a_row == 2
    it.rejected(SchemaError("does not fit", index=7, text="?"))
    assert isinstance(it.cause, SchemaError)
    assert str(it.cause) == "3 requests in a row were given up; the last error: does not fit"
    assert it.cause.text == "?"
    it = authority(stop_after=None)
    for _ in range(1000):
        judge(it, Permanent("bad"))
    assert it.cause is None


def test_items_refused_for_their_own_sake_may_be_as_many_as_were_answered_before() -> None:
    it = authority(stop_after=3)
    for _ in range(5):
        it.succeeded()
        it.accepted()
    for _ in range(4):
        judge(it, Permanent("too long"))
    assert it.cause is None
    judge(it, Permanent("too long"))
    assert "5 requests in a row" in str(it.cause)


@pytest.mark.parametrize("error", [AuthError("expired"), Permanent("no such model", fatal=True)])
def test_what_concerns_every_item_stops_a_run_however_much_was_answered(
    error: EndpointError,
) -> None:
    it = authority(stop_after=3)
    for _ in range(5):
        it.succeeded()
        it.accepted()
    for _ in range(3):
        judge(it, error)
    assert "3 requests in a row" in str(it.cause)


def test_answers_that_never_fit_the_schema_count_although_the_calls_went_well() -> None:
    it = authority(stop_after=2)
    for _ in range(2):
        it.succeeded()
        it.rejected(SchemaError("does not fit"))
    assert it.cause is not None


def test_failing_over_costs_no_attempt_and_no_wait_once_per_endpoint() -> None:
    it = authority(attempts=3)
    track = it.track(0.0)
    for endpoint in "ab":
        error = Transient("broke", endpoint=endpoint)
        assert track.failed(error, 5.0, elsewhere=True) == WaitFor(0.0)
        assert track.again(5.0) is None
    # It breaks whatever it meets: from now on it uses up its attempts.
    assert track.failed(Transient("broke", endpoint="a"), 5.0, elsewhere=True) == WaitFor(2.0)
    assert track.failed(Transient("broke", endpoint="c"), 9.0) == WaitFor(4.0)
    assert track.failed(Transient("broke", endpoint="b"), 15.0, elsewhere=True) == GiveUp()
    assert it.cause is None


@given(
    attempts=st.integers(1, 6),
    endpoints=st.integers(1, 30),
    kind=st.sampled_from([Transient, AuthError]),
)
def test_what_breaks_every_endpoint_is_given_up(
    attempts: int, endpoints: int, kind: type[EndpointError]
) -> None:
    track, now, calls = authority(attempts=attempts).track(0.0), 0.0, 0
    while True:
        calls += 1
        error = kind("x", endpoint=str(calls % endpoints))
        decision = track.failed(error, now, elsewhere=endpoints > 1)
        while isinstance(decision, WaitFor):
            now += decision.seconds
            next_one = track.again(now)
            if next_one is None:
                break
            decision = next_one
        if isinstance(decision, GiveUp):
            break
    free = min(endpoints, attempts) if endpoints > 1 else 0
    assert calls <= free + attempts


def test_a_deadline_bounds_everything() -> None:
    it = authority(deadline=10.0, timeout=6.0)
    track = it.track(100.0)
    assert track.timeout(100.0) == 6.0
    assert track.timeout(107.0) == 3.0
    assert track.timeout(200.0) == pytest.approx(0.001)
    assert track.failed(Transient("x"), 105.0) == WaitFor(2.0)
    error = Transient("broke", hint="Look there.")
    assert track.failed(error, 107.0) == GiveUp()
    assert str(error) == "broke Look there. Retry.deadline (10 s) left no time to try again."
    failover = it.track(0.0).failed(Transient("x", endpoint="a"), 10.0, elsewhere=True)
    assert failover == GiveUp()
    assert authority(timeout=None).track(0.0).timeout(5.0) is None
    assert authority(timeout=None, deadline=7.0).track(0.0).timeout(5.0) == 2.0


def drained(**rules: Any) -> RetryAuthority:
    """Return an authority in the midst of an outage."""
    it = authority(**rules)
    it.succeeded()
    for _ in range(30):
        judge(it, Transient("down"))
    assert it.statistics().outage
    return it


def probe(it: RetryAuthority, now: float) -> bool:
    """Let a request that failed long ago ask."""
    track = it.track(0.0)
    track.failed(Transient("down"), 0.0)
    return track.again(now) is None


def test_during_an_outage_only_a_probe_goes_now_and_then() -> None:
    it = drained()
    assert [probe(it, 10 + n / 10) for n in range(30)] == ([True] + [False] * 9) * 3


def test_during_an_outage_waits_are_short_and_the_patience_ends() -> None:
    it = drained(patience=100.0)
    track = it.track(0.0)
    for now in (0.0, 5.0, 10.0, 15.0):
        decision = track.failed(Transient("down"), now)
        assert isinstance(decision, WaitFor)
        assert 2.0 <= decision.seconds <= 4.0
    # Its own backoff of 16 s goes on all the same, while no answer has come.
    assert isinstance(track.again(20.0), WaitFor)
    assert probe(it, 50.0)
    assert isinstance(track.again(50.5), WaitFor)
    before = it.statistics().retries
    probe(it, 101.0)
    assert track.again(101.0) == GiveUp()
    assert it.statistics().retries == before


def test_an_item_ends_its_wait_at_the_deadline_in_an_outage_too() -> None:
    it = drained(deadline=60.0)
    assert probe(it, 59.5)
    track = it.track(0.0)
    track.failed(Transient("down"), 0.0)
    assert isinstance(track.again(59.9), WaitFor)
    assert track.again(60.1) == GiveUp()
    assert track.error is not None
    assert "Retry.deadline" in track.error.hint


def test_once_something_is_answered_the_others_follow() -> None:
    it = drained()
    tracks = [it.track(0.0) for _ in range(20)]
    for track in tracks:
        for _ in range(4):
            track.failed(Transient("down"), 0.0)
    asked = it.track(0.0)
    asked.failed(RateLimited("later", retry_after=60), 0.0)
    it.succeeded()
    # Their own backoffs would last 16 s.
    assert sum(track.again(3.0) is None for track in tracks) == 10 + 1  # permits; a probe
    it.succeeded()
    assert not it.statistics().outage
    assert isinstance(asked.again(3.0), WaitFor)
    assert asked.again(61.0) is None


def test_a_server_that_never_answered_ends_the_run_when_one_request_would_have_ended() -> None:
    it = RetryAuthority(Retry(), places=64)
    began = [it.track(0.0) for _ in range(160)]
    for track in began:
        assert isinstance(track.failed(Transient("HTTP 500"), 0.0), WaitFor)
    assert judge(it, Transient("HTTP 500"), 63.0) != GiveUp()
    assert judge(it, Overloaded("full"), 63.4) != GiveUp()
    for _ in range(60):
        # It has shown life: "come back later" is a matter of patience.
        assert judge(it, Transient("HTTP 500"), 64.0) != GiveUp()
    assert judge(it, Transient("HTTP 500"), 127.0) != GiveUp()
    assert judge(it, Transient("HTTP 500"), 127.6) == GiveUp()
    assert it.cause is not None
    assert it.cause.message == ("none of 224 calls was answered in 64 s; the last error: HTTP 500")


@given(
    share=st.floats(0, 1),
    places=st.integers(0, 100),
    events=st.lists(
        st.sampled_from(["answered", "failed", "take", "resize"]) | st.floats(0, 5), max_size=300
    ),
)
def test_the_budget_bounds_retries_and_never_closes_for_good(
    share: float, places: int, events: list[str | float]
) -> None:
    it = RetryBudget(share, places=places, probe_interval=1.0)
    now, answered, failed, taken, most = 0.0, 0, 0, 0, max(10, places)
    for event in events:
        if isinstance(event, float):
            now += event
        elif event == "answered":
            it.answered()
            answered += 1
        elif event == "failed":
            it.failed()
            failed += 1
        elif event == "resize":
            it.resize(places)
        else:
            free = failed < most
            taken += it.take(now) and not free
        assert taken <= 16 * answered + now + 1 + (math.inf if share * answered >= 1 else 0)
    now += 1.0
    assert it.take(now)


class Run(RuleBasedStateMachine):
    """Whatever happens: waits are finite, attempts end, counts add up."""

    @initialize(
        attempts=st.integers(1, 5),
        patience=st.floats(0, 1000),
        stop_after=st.none() | st.integers(1, 5),
        deadline=st.none() | st.floats(1, 500),
    )
    def make(
        self, attempts: int, patience: float, stop_after: int | None, deadline: float | None
    ) -> None:
        self.limits = Retry(
            attempts=attempts, patience=patience, stop_after=stop_after, deadline=deadline
        )
        self.it = RetryAuthority(self.limits, wait=double)
        self.now = 0.0
        self.open: dict[int, tuple[Track, float, int]] = {}
        self.waiting: dict[int, float] = {}
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
        elsewhere=st.booleans(),
        endpoint=st.sampled_from("ab"),
    )
    def an_item_fails(
        self,
        *,
        item: int,
        kind: type[EndpointError],
        retry_after: float | None,
        fatal: bool,
        reached: bool,
        elsewhere: bool,
        endpoint: str,
    ) -> None:
        if item in self.waiting:
            return
        track, began, failures = self.open.get(item) or (self.it.track(self.now), self.now, 0)
        error = kind("x", retry_after=retry_after, fatal=fatal, reached=reached, endpoint=endpoint)
        stopping = self.it.cause is not None
        decision = track.failed(error, self.now, elsewhere=elsewhere)
        self.calls += 1
        if isinstance(decision, GiveUp):
            self.open.pop(item, None)
            return
        self.retried += 1
        assert stopping or self.it.cause is None, "a run that stops must not wait"
        assert kind is not Permanent or (fatal and elsewhere)
        assert 0 <= decision.seconds < math.inf
        if self.limits.deadline is not None:
            assert self.now + decision.seconds < began + self.limits.deadline
        if decision.seconds > 0:
            failures += kind not in LATER
            assert not fatal
            assert kind is not AuthError
            assert failures < self.limits.attempts
            assert retry_after is None or retry_after <= min(decision.seconds, self.limits.patience)
        self.open[item] = track, began, failures
        self.waiting[item] = self.now + decision.seconds

    @rule(item=st.integers(0, 3))
    def an_item_asks_again(self, item: int) -> None:
        if item not in self.waiting:
            return
        track, began, _ = self.open[item]
        decision = track.again(self.now)
        if decision is None:
            assert self.now >= self.waiting.pop(item) or self.good
            return
        if isinstance(decision, GiveUp):
            self.retried -= 1
            del self.waiting[item], self.open[item]
            return
        assert 0 < decision.seconds < math.inf
        assert self.now - began <= self.limits.patience or self.now < self.waiting[item]

    @invariant()
    def counts_add_up(self) -> None:
        statistics = self.it.statistics()
        assert statistics.successes == self.good
        assert statistics.failures == self.calls
        assert statistics.retries == self.retried
        limit = self.limits.stop_after
        if limit is not None and statistics.given_up_in_a_row >= max(limit, self.good):
            assert self.it.cause is not None


TestRun = Run.TestCase


@given(st.integers(1, 5000))
def test_waits_double_with_jitter_up_to_the_longest(failure: int) -> None:
    seconds = exponential_jitter(0.5, 60.0)(failure)
    low = min(60.0, 0.5 * 2 ** min(failure - 1, 20))
    assert min(60.0, low) - 1e-9 <= seconds <= min(60.0, low + 0.5) + 1e-9


@pytest.mark.parametrize(
    ("rules", "seconds"),
    [
        ({}, 63.5),
        ({"attempts": 1}, 0.0),
        ({"attempts": 12}, 63.5 + 4 * 60.0),
        ({"attempts": 4, "initial": 8.0, "maximum": 3.0}, 9.0),
        ({"attempts": 10**9, "initial": 0.0}, 0.0),
    ],
)
def test_all_waits_of_a_request(rules: dict[str, Any], seconds: float) -> None:
    assert Retry(**rules).backoff() == seconds


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
        {"budget": -0.1},
        {"budget": math.nan},
        {"deadline": 0},
    ],
)
def test_rules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"Retry\.{next(iter(wrong))}"):
        Retry(**wrong)


def test_an_outage_that_outlasts_the_patience_ends_the_run() -> None:
    authority = RetryAuthority(Retry(patience=100.0, stop_after=5), places=4)
    authority.succeeded()
    now = 0.0
    while authority.cause is None and now < 1_000:
        for _ in range(4):
            authority.track(now).failed(Transient("gone", endpoint="there"), now)
        now += 5.0
    assert 100 <= now <= 120
    assert authority.cause is not None
    assert "was answered in 1" in authority.cause.message
