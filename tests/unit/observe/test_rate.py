from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.observe._rate import Rate


def run(per_second: float, seconds: float, step: float = 0.1) -> tuple[Rate, float, int]:
    rate, count, now = Rate(), 0, 0.0
    for tick in range(int(seconds / step) + 1):
        now = tick * step
        count = int(now * per_second)
        rate.update(now, count)
    return rate, now, count


@given(per_second=st.floats(0.01, 5000), minutes=st.floats(1, 5))
def test_a_steady_run_has_its_rate(per_second: float, minutes: float) -> None:
    rate, now, count = run(per_second, minutes * 60, step=0.5)
    found = rate.per_second(now)
    if count == 0:
        assert found is None
    else:
        # Whole items only, so one more or less over what the window holds.
        seen = min(count, max(20, per_second * 30))
        assert found == pytest.approx(per_second, rel=2 / seen + 0.05)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1000)), max_size=300))
def test_memory_is_bounded_and_rates_are_positive(steps: list[tuple[float, int]]) -> None:
    rate, now, count = Rate(), 0.0, 0
    for wait, more in steps:
        now += wait
        count += more
        rate.update(now, count)
        found = rate.per_second(now)
        assert found is None or found > 0
        eta = rate.eta_s(now, 10)
        assert eta is None or eta > 0
    assert len(rate._samples) <= 60 + 20 + 2


def test_the_rate_follows_a_change() -> None:
    rate, now, count = run(10, 100)
    for tick in range(1, 400):
        rate.update(now + tick / 10, count + tick * 10)
    assert rate.per_second(now + 40) == pytest.approx(100, rel=0.05)


def test_a_stalled_run_slows_down() -> None:
    rate, now, _ = run(10, 60)
    speeds = [rate.per_second(now + wait) or 0 for wait in (0, 30, 300)]
    assert speeds[0] == pytest.approx(10, rel=0.05)
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[2] < 1.5


def test_there_is_no_eta_without_a_total_or_from_too_little() -> None:
    rate = Rate()
    assert rate.eta_s(0, 10) is None
    rate.update(0, 0)
    rate.update(5, 2)
    assert rate.eta_s(5, 10) is None
    assert rate.eta_s(5, 1) == pytest.approx(2.5)
    rate.update(10, 4)
    assert rate.eta_s(10, None) is None
    assert rate.eta_s(10, 10) == pytest.approx(25)
    assert rate.eta_s(10, 0) == 0
