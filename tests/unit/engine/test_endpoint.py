from __future__ import annotations

from typing import Any

import pytest

from scaleinfer.engine import FixedLimiter, Outcome
from scaleinfer.engine._breaker import Breaker
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._rate_limit import RateLimit, RateLimiter
from scaleinfer.errors import ConfigError
from scaleinfer.results import Load, RateState


class Listening(FixedLimiter):
    def __init__(self) -> None:
        super().__init__(100)
        self.heard: list[tuple[Any, ...]] = []

    def ended(
        self,
        now: float,
        outcome: Outcome,
        *,
        began: float = 0.0,
        tokens: int = 0,
        load: Load | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().ended(now, outcome)
        self.heard.append((now, outcome, began, tokens, load, retry_after))


def endpoint(places: int = 100, **kwargs: Any) -> Endpoint:
    return Endpoint("http://one/v1", FixedLimiter(places), **kwargs)


def answered(at: Endpoint, began: float, took: float, tokens: int = 10) -> None:
    at.started(began)
    at.ended(began + took, Outcome.OK, began=began, tokens=tokens, total_tokens=tokens)


def breaks(at: Endpoint, now: float, times: int = 1) -> None:
    for _ in range(times):
        at.started(now)
        at.ended(now, Outcome.FAILED, began=now, broken=True)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_positive(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight of http://one/v1"):
        endpoint(weight=weight)


def test_the_limiter_hears_everything() -> None:
    limiter, load = Listening(), Load(0.5, 1, 2)
    at = Endpoint("e", limiter)
    at.started(1.0, 30)
    assert limiter.in_flight == 1
    at.ended(3.0, Outcome.OK, began=1.0, reserved_tokens=30, tokens=7, load=load)
    at.started(4.0)
    at.ended(5.0, Outcome.REJECTED, began=4.0, retry_after=2.0)
    assert limiter.heard == [
        (3.0, Outcome.OK, 1.0, 7, load, None),
        (5.0, Outcome.REJECTED, 4.0, 0, None, 2.0),
    ]


def test_room_needs_a_place() -> None:
    at = endpoint(places=1)
    assert at.has_room(0.0)
    assert at.wake_at(0.0) == 0.0
    at.started(0.0)
    assert not at.has_room(0.0)
    assert at.wake_at(0.0) is None


def test_room_needs_the_rate_limit() -> None:
    at = endpoint(rate=RateLimiter(RateLimit(requests_per_minute=59)))
    at.started(0.0)
    assert not at.has_room(0.5)
    wake = at.wake_at(0.5)
    assert wake is not None
    assert at.has_room(wake)
    assert not at.has_room(wake - 0.001)


def test_room_needs_an_endpoint_that_is_not_broken() -> None:
    at = endpoint()
    breaks(at, 1.0, times=5)
    assert not at.has_room(1.0)
    wake = at.wake_at(1.0)
    assert wake is not None
    assert at.has_room(wake)
    at.started(wake)
    assert not at.has_room(wake)
    assert at.wake_at(wake) is None
    at.ended(wake + 1, Outcome.CANCELLED, began=wake)
    assert at.has_room(wake + 1)


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.REJECTED, Outcome.FAILED])
def test_an_endpoint_that_answers_is_not_broken(outcome: Outcome) -> None:
    at = endpoint()
    for _ in range(10):
        breaks(at, 0.0, times=4)
        at.started(0.0)
        at.ended(0.0, outcome, began=0.0, retry_after=0.0)
    assert at.breaker.closed


def test_a_pause_the_endpoint_asked_for_holds_everybody_off() -> None:
    at = endpoint()
    at.started(0.0)
    at.ended(1.0, Outcome.REJECTED, began=0.0, retry_after=5.0)
    assert not at.has_room(5.9)
    assert at.wake_at(1.0) == 6.0
    assert at.has_room(6.0)


def test_refusals_that_name_no_time_are_answered_with_growing_pauses() -> None:
    at, now, pauses = endpoint(), 1.0, []
    for _ in range(10):
        burst = 5
        for _ in range(burst):
            at.started(now)
        for _ in range(burst):
            at.ended(now + 0.01, Outcome.REJECTED, began=now)
        now += 0.01
        wake = at.wake_at(now)
        assert wake is not None
        pauses.append(wake - now)
        now = wake
    assert pauses == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    answered(at, now, 1.0)
    at.started(now + 2)
    at.ended(now + 3, Outcome.REJECTED, began=now + 2)
    assert at.has_room(now + 3), "an answer in between ends the row"


@pytest.mark.parametrize(
    ("outcome", "used", "paid"),
    [
        (Outcome.OK, 100, 100),
        (Outcome.OK, 0, 1000),
        (Outcome.OK, 2000, 2000),
        (Outcome.CANCELLED, 0, 0),
        (Outcome.FAILED, 0, 0),
        (Outcome.TIMEOUT, 0, 0),
        (Outcome.REJECTED, 0, 1000),
    ],
)
def test_reserved_tokens_are_corrected(outcome: Outcome, used: int, paid: int) -> None:
    at = endpoint(rate=RateLimiter(RateLimit(tokens_per_minute=6000)))
    at.started(0.0, 5000)
    at.started(0.0, 1000)
    at.ended(1.0, outcome, began=0.0, reserved_tokens=1000, total_tokens=used)
    # 6,000 a minute at the limiter's pace of 59/60.
    assert at.rate.ready_at == pytest.approx((5000 + paid) * 60 / 5900)
    assert at.tokens == 5000


def test_limits_are_learned_from_answers() -> None:
    at = endpoint()
    at.started(0.0)
    at.ended(1.0, Outcome.OK, began=0.0, rate=RateState(limit_requests=60))
    assert at.statistics().rate.requests_per_minute == 60


def test_speed_follows_the_answers() -> None:
    at = endpoint()
    for number in range(50):
        answered(at, float(number), 0.5, tokens=20)
    assert at.seconds(50.0) == pytest.approx(0.5)
    for number in range(50, 100):
        answered(at, float(number), 2.0, tokens=20)
    assert at.seconds(102.0) == pytest.approx(2.0, rel=0.05)
    at.started(102.0)
    statistics = at.statistics()
    assert statistics.goodput == pytest.approx(10, rel=0.05)
    assert (statistics.started, statistics.outstanding_calls) == (101, 1)


def test_failures_say_nothing_about_speed() -> None:
    at = endpoint()
    answered(at, 0.0, 4.0)
    for now in range(4, 20):
        at.started(float(now))
        at.ended(float(now), Outcome.FAILED, began=float(now))
    assert at.seconds(20.0) == 4.0


def test_first_answers_of_many_do_not_pass_for_the_mean() -> None:
    at = endpoint()
    for _ in range(20):
        at.started(0.0)
    for answers in range(1, 20):
        at.ended(10.0, Outcome.OK, began=0.0)
        assert at.latest(10.0) >= (15.0 if answers < 10 else 10.0)
    assert at.latest(10.0) == pytest.approx(10.0, rel=0.1)


def test_a_timeout_says_that_it_is_at_least_as_slow() -> None:
    at = endpoint()
    answered(at, 0.0, 1.0)
    at.started(1.0)
    at.ended(61.0, Outcome.TIMEOUT, began=1.0, broken=True)
    assert at.seconds(61.0) > 10


def test_a_stalled_endpoint_shows_before_its_calls_end() -> None:
    at = endpoint()
    answered(at, 0.0, 1.0)
    at.started(1.0)
    assert at.seconds(1.5) == 1.0
    assert at.seconds(21.0) == 20.0


def test_an_endpoint_idle_for_long_is_given_another_chance() -> None:
    at = endpoint()
    at.traffic.took(1.0)
    for _ in range(60):
        at.traffic.took(1.0)
    at.started(0.0)
    at.ended(10.0, Outcome.OK, began=0.0)
    for _ in range(200):
        at.traffic.took(1.0)
    assert at.seconds(50.0) == 10.0
    assert at.seconds(61.0) == pytest.approx(1.0, rel=0.1)
    at.started(61.0)
    assert at.seconds(61.0) == 10.0


def test_endpoints_that_are_all_new_get_some_calls_each() -> None:
    at = endpoint()
    at.traffic.several = True
    for _ in range(8):
        assert at.has_room(0.0)
        at.started(0.0)
    assert not at.has_room(0.0)
    assert at.wake_at(0.0) is None


def test_the_first_answers_open_an_endpoint_step_by_step() -> None:
    at = endpoint()
    at.traffic.several = True
    for _ in range(8):
        at.started(0.0)
    for turn in range(1, 4):
        for _ in range(at.calls):
            at.ended(float(turn), Outcome.OK, began=turn - 1.0)
        while at.has_room(float(turn)):
            at.started(float(turn))
        assert at.calls == 8 * 2**turn


def test_an_only_endpoint_gets_all_its_calls_at_once() -> None:
    at = endpoint()
    for _ in range(20):
        assert at.has_room(0.0)
        at.started(0.0)


def test_a_new_endpoint_among_known_ones_is_tried_with_a_few_calls() -> None:
    at = endpoint()
    at.traffic.several = True
    at.traffic.took(1.0)
    for _ in range(4):
        assert at.has_room(0.0)
        at.started(0.0)
    assert not at.has_room(0.0)
    assert at.wake_at(0.0) is None
    at.ended(1.0, Outcome.OK, began=0.0)
    assert at.has_room(1.0)


def test_a_breaker_of_ones_own() -> None:
    at = endpoint(breaker=Breaker(failures=1))
    breaks(at, 0.0)
    assert at.statistics().breaker.state == "open"
