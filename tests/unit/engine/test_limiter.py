from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.engine import Concurrency, FixedLimiter, Outcome
from scaleinfer.errors import ConfigError


class Places(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 5))
    def make(self, limit: int) -> None:
        self.limit = limit
        self.limiter = FixedLimiter(limit)
        self.running = self.peak = 0

    @precondition(lambda self: self.limiter.has_room)
    @rule(now=st.floats(0, 1e6))
    def start(self, now: float) -> None:
        self.limiter.started(now)
        self.running += 1
        self.peak = max(self.peak, self.running)

    @precondition(lambda self: self.running)
    @rule(now=st.floats(0, 1e6), outcome=st.sampled_from(Outcome))
    def end(self, now: float, outcome: Outcome) -> None:
        self.limiter.ended(now, outcome, retry_after=3.0)
        self.running -= 1

    @invariant()
    def never_more_than_allowed_and_never_idle(self) -> None:
        statistics = self.limiter.statistics()
        assert statistics.in_flight == self.running <= self.limit == self.limiter.limit
        assert self.limiter.has_room == (self.running < self.limit)
        assert statistics.peak_in_flight == self.peak
        assert statistics.reason == "fixed"
        assert not self.limiter.shrinking


TestPlaces = Places.TestCase


@pytest.mark.parametrize("limit", [0, -1])
def test_no_place_at_all(limit: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        FixedLimiter(limit)


@pytest.mark.parametrize(
    ("least", "start", "most"), [(0, None, 5), (3, 2, 5), (1, 6, 5), (6, None, 5)]
)
def test_bounds_that_do_not_fit(least: int, start: int | None, most: int) -> None:
    with pytest.raises(ConfigError, match=r"min <= start <= max|a number of calls"):
        Concurrency(min=least, start=start, max=most)
