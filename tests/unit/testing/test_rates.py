from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing._rates import RateLimits, TokenBucket, retry_after_header


@given(
    rate=st.floats(0.5, 50),
    capacity=st.floats(1, 20),
    gaps=st.lists(st.floats(0, 2), max_size=60),
)
def test_a_bucket_lets_through_its_rate_and_one_burst(
    rate: float, capacity: float, gaps: list[float]
) -> None:
    bucket = TokenBucket(rate, capacity)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        bucket.fill(now)
        if bucket.wait(1.0) == 0:
            bucket.level -= 1
            taken += 1
        assert taken <= capacity + rate * now + 1e-6
        assert bucket.level <= bucket.capacity


@given(rate=st.floats(0.5, 50), used=st.integers(1, 20), cost=st.floats(0.1, 30))
def test_who_comes_again_when_told_is_let_in(rate: float, used: int, cost: float) -> None:
    bucket = TokenBucket(rate, 20)
    bucket.fill(0.0)
    bucket.level -= used
    wait = bucket.wait(cost)
    bucket.fill(wait)
    assert bucket.wait(cost) == 0


def test_requests_above_the_rate_are_told_when_to_come_again() -> None:
    limits = RateLimits(requests_per_second=2)
    assert [limits.admit(5, 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert limits.admit(5, 0.4) == pytest.approx(0.1)
    assert limits.admit(5, 0.5) == 0


def test_a_minute_comes_at_once_unless_the_burst_is_smaller() -> None:
    whole, even = RateLimits(requests_per_minute=60), RateLimits(requests_per_minute=60, burst_s=1)
    assert [whole.admit(1, 0.0) for _ in range(61)].count(0) == 60
    assert [even.admit(1, 0.0) for _ in range(61)].count(0) == 1


def test_tokens_are_reserved_and_settled() -> None:
    limits = RateLimits(tokens_per_minute=600)
    assert limits.admit(500, 0.0) == 0
    assert limits.admit(200, 0.0) == pytest.approx(10)
    limits.settle(500, 300)
    assert limits.admit(200, 0.0) == 0
    # More than all of it is let in by a full bucket, and paid for afterwards.
    assert limits.admit(1000, 60.0) == 0
    assert limits.admit(1, 60.0) == pytest.approx(40.1)


def test_a_refused_request_takes_nothing() -> None:
    limits = RateLimits(requests_per_minute=100, tokens_per_minute=100)
    limits.admit(90, 0.0)
    before = limits.headers(0.0)
    assert limits.admit(50, 0.0) > 0
    assert limits.headers(0.0) == before


def test_headers_in_openais_form() -> None:
    limits = RateLimits(requests_per_minute=60, tokens_per_minute=6000)
    limits.admit(1500, 0.0)
    assert limits.headers(0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }
    limits.admit(4499, 0.0)
    assert limits.headers(0.0)["x-ratelimit-reset-tokens"] == "59.99s"
    limits.settle(0, 1000)
    assert limits.headers(0.0)["x-ratelimit-reset-tokens"] == "1m9.99s"
    assert limits.headers(69.9)["x-ratelimit-reset-tokens"] == "90ms"


def test_no_limits() -> None:
    limits = RateLimits()
    assert not limits.any
    assert limits.admit(10**9, 0.0) == 0
    assert limits.headers(0.0) == {}


def test_retry_after_in_all_forms() -> None:
    assert retry_after_header("seconds", 1.2, 0.0) == {"retry-after": "2"}
    assert retry_after_header("ms", 1.2, 0.0) == {"retry-after-ms": "1200"}
    assert retry_after_header(None, 1.2, 0.0) == {}
    date = retry_after_header("date", 1.2, 1_000_000.5)["retry-after"]
    assert parsedate_to_datetime(date).timestamp() == math.ceil(1_000_001.7)
