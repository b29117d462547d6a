from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._rate_limit import RateLimit, RateLimiter
from scaleinfer.errors import ConfigError
from scaleinfer.results import RateState


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("limit", [0, -1, math.inf, math.nan, True, "60"])
def test_a_limit_must_be_a_positive_number(name: str, limit: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        RateLimit(**{name: limit})


def test_without_limits_a_call_starts_at_once() -> None:
    limiter = RateLimiter(None)
    for _ in range(1000):
        assert limiter.ready_at <= 0.0
        limiter.reserve(0.0, 1e9)
        limiter.correct(1e9, 2e9, 0.0)
    assert limiter.statistics().requests_per_minute is None


def calls_of(limiter: RateLimiter, sizes: list[float], until: float) -> list[tuple[float, float]]:
    """Start calls as early as allowed; return the time and size of each."""
    now = 0.0
    calls: list[tuple[float, float]] = []
    while (now := max(now, limiter.ready_at)) <= until:
        size = sizes[len(calls) % len(sizes)]
        limiter.reserve(now, size)
        calls.append((now, size))
    return calls


def most_in_a_window(calls: list[tuple[float, float]], window: float) -> float:
    most = total = 0.0
    first = 0
    for time, size in calls:
        total += size
        while time - calls[first][0] >= window:
            total -= calls[first][1]
            first += 1
        most = max(most, total)
    return most


@pytest.mark.parametrize("limit", [1, 3, 60, 61, 600, 10_000])
def test_a_server_that_counts_any_minute_has_nothing_to_refuse(limit: int) -> None:
    limiter = RateLimiter(RateLimit(requests_per_minute=limit))
    calls = [(time, 1.0) for time, _ in calls_of(limiter, [0.0], until=300.0)]
    assert most_in_a_window(calls, 60.0) <= limit
    assert len(calls) >= math.floor(limit * 5 * 59 / 60)


def test_a_minutes_worth_is_not_spent_at_once() -> None:
    limiter = RateLimiter(RateLimit(requests_per_minute=600))
    assert len([time for time, _ in calls_of(limiter, [0.0], until=1.0) if time == 0.0]) == 10
    assert len(calls_of(RateLimiter(RateLimit(requests_per_minute=600)), [0.0], 1.0)) <= 21


@given(
    limit=st.floats(1, 1e6),
    sizes=st.lists(st.floats(0.1, 1e5), min_size=1, max_size=8),
    window=st.floats(0.1, 120),
)
def test_tokens_in_any_window_stay_below_the_rate_and_a_burst(
    limit: float, sizes: list[float], window: float
) -> None:
    limiter = RateLimiter(RateLimit(tokens_per_minute=limit))
    now, calls = 0.0, []
    for number in range(60):
        now = max(now, limiter.ready_at)
        limiter.reserve(now, sizes[number % len(sizes)])
        calls.append((now, sizes[number % len(sizes)]))
    burst = max(1.0, limit / 60) + max(sizes)
    assert most_in_a_window(calls, window) <= (limit * window / 60 + burst) * (1 + 1e-9)


@given(limit=st.floats(1, 1e6), sizes=st.lists(st.floats(0, 1e7), min_size=1, max_size=20))
def test_every_call_passes_in_the_time_its_tokens_take(limit: float, sizes: list[float]) -> None:
    limiter = RateLimiter(RateLimit(tokens_per_minute=limit))
    now = 0.0
    for size in sizes:
        now = max(now, limiter.ready_at)
        limiter.reserve(now, size)
    assert limiter.ready_at <= sum(sizes) * 60 / (limit * 59 / 60) * (1 + 1e-9)


@given(
    reserved=st.lists(st.floats(0, 1e4), min_size=1, max_size=20),
    share=st.floats(0, 3),
    limit=st.floats(100, 1e5),
)
def test_corrections_conserve(reserved: list[float], share: float, limit: float) -> None:
    corrected = RateLimiter(RateLimit(tokens_per_minute=limit))
    known = RateLimiter(RateLimit(tokens_per_minute=limit))
    for limiter in (corrected, known):
        limiter.reserve(0.0, limit)  # beyond the burst, so that nothing is cut off
    for size in reserved:
        corrected.reserve(0.0, size)
        known.reserve(0.0, size * share)
    for size in reserved:
        corrected.correct(size, size * share, 0.0)
    assert corrected.ready_at == pytest.approx(known.ready_at)


def test_tokens_given_back_do_not_add_up_to_a_burst() -> None:
    limiter = RateLimiter(RateLimit(tokens_per_minute=6000))
    for _ in range(10):
        limiter.reserve(0.0, 1000)
    for _ in range(10):
        limiter.correct(1000, 0, 0.0)
    calls = calls_of(limiter, [50.0], until=0.0)
    assert sum(size for _, size in calls) <= 200


def test_both_limits_hold() -> None:
    limiter = RateLimiter(RateLimit(requests_per_minute=60, tokens_per_minute=600))
    calls = calls_of(limiter, [1.0, 100.0], until=300.0)
    assert most_in_a_window(calls, 60.0) <= 600 + 100
    assert most_in_a_window([(time, 1.0) for time, _ in calls], 60.0) <= 60


def test_retry_after_holds_everybody_off_once_per_burst() -> None:
    limiter = RateLimiter(None)
    limiter.rejected(3.0, 10.0)
    assert limiter.ready_at == 13.0
    limiter.rejected(1.0, 10.5)
    assert limiter.ready_at == 13.0
    limiter.rejected(None, 11.0)
    assert (limiter.statistics().pauses, limiter.statistics().rejected) == (1, 3)
    limiter.reserve(13.0)
    assert limiter.ready_at <= 13.0
    limiter.rejected(1.0, 20.0)
    assert (limiter.ready_at, limiter.statistics().pauses) == (21.0, 2)


def test_a_pause_survives_what_happens_meanwhile() -> None:
    limiter = RateLimiter(RateLimit(tokens_per_minute=6000))
    limiter.reserve(0.0, 10)
    limiter.rejected(30.0, 0.0)
    limiter.correct(10, 0, 1.0)
    limiter.learn(RateState(limit_requests=6000, remaining_requests=10), 1.0)
    assert limiter.ready_at == 30.0


def test_limits_are_learned_where_the_user_gave_none() -> None:
    limiter = RateLimiter(RateLimit(requests_per_minute=10))
    limiter.learn(RateState(limit_requests=600, limit_tokens=6000), 0.0)
    statistics = limiter.statistics()
    assert (statistics.requests_per_minute, statistics.tokens_per_minute) == (10, 6000)
    assert statistics.learned
    limiter.learn(RateState(limit_tokens=0), 0.0)
    assert limiter.statistics().tokens_per_minute == 6000


def test_a_debt_is_kept_when_the_limit_changes() -> None:
    limiter = RateLimiter(None)
    limiter.learn(RateState(limit_tokens=6000), 0.0)
    limiter.reserve(0.0, 5900)
    assert limiter.ready_at == pytest.approx(60.0)
    limiter.learn(RateState(limit_tokens=12_000), 30.0)
    assert limiter.ready_at == pytest.approx(45.0)


def test_nothing_left_waits_for_the_reset_of_a_window() -> None:
    limiter = RateLimiter(None)
    limiter.learn(RateState(600, 200, 25.0), 35.0)
    limiter.learn(RateState(600, 0, 24.0), 36.0)
    assert limiter.ready_at == 60.0


def test_nothing_left_of_a_steady_refill_waits_for_one() -> None:
    limiter = RateLimiter(None)
    limiter.learn(RateState(600, 300, 30.0), 0.0)
    limiter.learn(RateState(600, 0, 60.0), 1.0)
    assert limiter.ready_at == pytest.approx(1.1)


def test_a_daily_limits_reset_holds_for_a_minute_at_most() -> None:
    limiter = RateLimiter(None)
    limiter.learn(RateState(14_400, 0, 86_400.0), 0.0)
    assert limiter.ready_at == 60.0
