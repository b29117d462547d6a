from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.engine import Limiter
from scaleinfer.errors import ConfigError


class Places(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 5))
    def make(self, limit: int) -> None:
        self.limit = limit
        self.limiter = FixedLimiter(limit)
        self.running = self.peak = 0

    @precondition(lambda self: self.limiter.has_room)
    @rule()
    def start(self) -> None:
        self.limiter.started()
        self.running += 1
        self.peak = max(self.peak, self.running)

    @precondition(lambda self: self.running)
    @rule()
    def end(self) -> None:
        self.limiter.ended()
        self.running -= 1

    @invariant()
    def never_more_than_allowed_and_never_idle(self) -> None:
        statistics = self.limiter.statistics()
        assert statistics.in_flight == self.running <= self.limit == self.limiter.limit
        assert self.limiter.has_room == (self.running < self.limit)
        assert statistics.peak_in_flight == self.peak


TestPlaces = Places.TestCase


@pytest.mark.parametrize("limit", [0, -1])
def test_no_place_at_all(limit: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        FixedLimiter(limit)
