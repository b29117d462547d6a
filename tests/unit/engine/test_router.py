from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleinfer.engine import FixedLimiter, Outcome
from scaleinfer.engine._endpoint import Endpoint
from scaleinfer.engine._rate_limit import RateLimit, RateLimiter
from scaleinfer.engine._ring import Ring
from scaleinfer.engine._router import Router
from scaleinfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


def endpoints(places: list[int], **kwargs: Any) -> list[Endpoint]:
    return [
        Endpoint(f"http://{number}/v1", FixedLimiter(each), **kwargs)
        for number, each in enumerate(places)
    ]


class Simulation:
    """Drives a router as an engine does, in simulated time.

    Args:
        router: The router under test.
        took: Seconds of a call at the endpoint with this index, started at this time; a
            negative figure is a call that finds the endpoint broken after so many seconds.
        most: Calls in flight at most, all endpoints together.
    """

    def __init__(
        self, router: Router, took: Callable[[int, float], float], *, most: int = 10**9
    ) -> None:
        self.router = router
        self.took = took
        self.most = most
        self.now = 0.0
        self.running: list[tuple[float, int, int, float, float]] = []
        self.calls: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.starts: list[tuple[float, int]] = []

    def run(self, items: int, *, hint: bool = True, affinity: list[int] | None = None) -> float:
        """Have so many items answered and return when the last one was."""
        waiting = list(range(items))[::-1]
        while waiting or self.running:
            while waiting and len(self.running) < self.most:
                item = waiting[-1]
                index = self.router.choose(
                    self.now,
                    remaining=len(waiting) if hint else None,
                    affinity=affinity[item] if affinity else None,
                )
                if index is None:
                    break
                waiting.pop()
                self.start(index, item)
            self.advance(waiting)
        return self.now

    def start(self, index: int, item: int) -> None:
        took = self.took(index, self.now)
        self.router.endpoints[index].started(self.now)
        self.calls[index] += 1
        self.starts.append((self.now, index))
        heapq.heappush(self.running, (self.now + abs(took), item, index, self.now, took))

    def advance(self, waiting: list[int]) -> None:
        wake = self.router.wake_at(self.now) if waiting else None
        if wake is not None and (not self.running or wake < self.running[0][0]):
            assert wake > self.now, "it wakes without a reason"
            self.now = wake
            return
        assert self.running, "nothing runs, and nothing will wake it"
        self.now, item, index, began, took = heapq.heappop(self.running)
        ok = took >= 0
        self.router.endpoints[index].ended(
            self.now, Outcome.OK if ok else Outcome.FAILED, began=began, tokens=10, broken=not ok
        )
        if ok:
            self.answered[index] += 1
        else:
            waiting.append(item)


def service(means: list[float], seed: int, spread: float = 0.2) -> Callable[[int, float], float]:
    draw = random.Random(seed).uniform
    return lambda index, now: means[index] * draw(1 - spread, 1 + spread)


def test_no_endpoint_at_all() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Router([])


def test_one_endpoint() -> None:
    router = Router(endpoints([1]))
    assert router.choose(0.0, affinity=3, avoid=(0,), remaining=1) == 0
    router.endpoints[0].started(0.0)
    assert router.choose(0.0) is None
    assert router.wake_at(0.0) is None
    assert router.home(7) == 0


@pytest.mark.parametrize("most", [1, 5, 40, 1000])
@pytest.mark.parametrize("count", [2, 8, 40])
def test_equal_endpoints_get_equal_shares(count: int, most: int) -> None:
    simulation = Simulation(
        Router(endpoints([16] * count)), service([1.0] * count, seed=count), most=most
    )
    simulation.run(150 * count, hint=False)
    shares = [simulation.calls[index] for index in range(count)]
    assert min(shares) >= 0.85 * 150
    assert max(shares) <= 1.15 * 150


def test_weights() -> None:
    two, one = Endpoint("a", FixedLimiter(64), weight=2), Endpoint("b", FixedLimiter(64))
    simulation = Simulation(Router([one, two]), service([1.0, 1.0], seed=1), most=30)
    simulation.run(3000, hint=False)
    assert simulation.calls[1] / simulation.calls[0] == pytest.approx(2, rel=0.1)


def test_a_slow_endpoint_gets_less_while_others_have_room() -> None:
    simulation = Simulation(Router(endpoints([64] * 3)), service([1.0, 1.0, 4.0], seed=1), most=30)
    simulation.run(3000, hint=False)
    assert simulation.calls[2] < simulation.calls[0] / 4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("places", "items"), [(16, 4000), (4, 1500), (64, 16_000), (1, 500)])
def test_an_endpoint_20_times_slower_does_not_hold_the_tail(
    places: int, items: int, seed: int
) -> None:
    means = [1.0] * 8
    means[seed] = 20.0
    simulation = Simulation(Router(endpoints([places] * 8)), service(means, seed))
    ideal = items / sum(places / mean for mean in means)
    assert simulation.run(items) <= 1.1 * ideal
    assert simulation.answered[seed] > 0


def test_many_endpoints_some_slow() -> None:
    means = [20.0 if index % 8 == 0 else 1.0 for index in range(200)]
    simulation = Simulation(Router(endpoints([4] * 200)), service(means, seed=3))
    ideal = 25_000 / sum(4 / mean for mean in means)
    assert simulation.run(25_000) <= 1.1 * ideal


def test_an_endpoint_that_stalls_gets_no_more_calls() -> None:
    def took(index: int, now: float) -> float:
        return 300.0 if index == 0 and now > 10 else 1.0

    simulation = Simulation(Router(endpoints([64] * 2)), took, most=20)
    simulation.run(2000, hint=False)
    stalled = [now for now, index in simulation.starts if index == 0 and 12 < now < 60]
    assert len(stalled) <= 8


def test_a_dead_endpoint_gets_nothing_but_probes() -> None:
    simulation = Simulation(
        Router(endpoints([8] * 4)), lambda index, _: -0.01 if index == 2 else 1.0
    )
    assert simulation.run(2400) <= 1.1 * 100
    assert simulation.answered[2] == 0
    after_opening = [now for now, index in simulation.starts if index == 2 and now > 0.1]
    assert 10 <= len(after_opening) <= 40


def test_an_endpoint_that_is_back_carries_its_share_within_ten_seconds() -> None:
    def took(index: int, now: float) -> float:
        return -0.05 if index == 0 and 20 <= now < 80 else 1.0

    simulation = Simulation(Router(endpoints([16] * 4)), took)
    simulation.run(7000)
    share = [now for now, index in simulation.starts if index == 0 and 90 <= now < 100]
    assert len(share) >= 0.9 * 160
    during = sum(1 for now, index in simulation.starts if index == 0 and 20 <= now < 80)
    assert during <= 60


def test_all_dead_waits_for_the_next_probe() -> None:
    simulation = Simulation(Router(endpoints([8] * 3)), lambda _, now: -0.01 if now < 30 else 1.0)
    end = simulation.run(300)
    assert 30 < end < 50
    assert sum(simulation.calls.values()) <= 300 + 250


def test_none_with_a_time_when_all_are_dead() -> None:
    router = Router(endpoints([100] * 3))
    while (index := router.choose(1.0)) is not None:
        router.endpoints[index].started(1.0)
        router.endpoints[index].ended(1.0, Outcome.FAILED, began=1.0, broken=True)
    wake = router.wake_at(1.0)
    assert wake is not None
    assert 1.9 <= wake <= 2.1
    assert router.choose(wake - 0.001) is None
    assert router.choose(wake) is not None


def test_rate_limits_of_several_endpoints_add_up() -> None:
    made = [
        Endpoint(str(rpm), FixedLimiter(64), rate=RateLimiter(RateLimit(rpm)))
        for rpm in (60, 120, 600)
    ]
    simulation = Simulation(Router(made), service([0.5] * 3, seed=0))
    simulation.run(1300, hint=False)
    assert simulation.now == pytest.approx(1300 * 60 / 780, rel=0.05)


def test_the_endpoint_that_failed_a_request_is_avoided() -> None:
    router = Router(endpoints([2, 2]))
    assert {router.choose(0.0, avoid=(0,)) for _ in range(10)} == {1}
    assert router.choose(0.0, avoid=frozenset({0, 1})) is not None
    router.endpoints[1].started(0.0)
    router.endpoints[1].started(0.0)
    assert router.choose(0.0, avoid=(0,)) is None, "the other will have room soon"
    router.endpoints[1].ended(1.0, Outcome.REJECTED, began=0.0, retry_after=60.0)
    assert router.choose(1.0, avoid=(0,)) == 0, "the other is away for a minute"


def test_the_same_prefix_goes_to_the_same_endpoint() -> None:
    router = Router(endpoints([8] * 8))
    for key in range(100):
        home = router.home(key)
        for _ in range(3):
            assert router.choose(0.0, affinity=key) == home


def test_prefixes_are_spread_and_stay_when_an_endpoint_goes() -> None:
    names = [f"http://{number}/v1" for number in range(8)]
    all_homes = [next(Ring(names, [1.0] * 8).walk(key)) for key in range(2000)]
    shares = Counter(all_homes)
    assert min(shares.values()) > 0.5 * 250
    assert max(shares.values()) < 1.5 * 250
    without = Ring(names[:7], [1.0] * 7)
    moved = [key for key in range(2000) if next(without.walk(key)) != all_homes[key]]
    assert {all_homes[key] for key in moved} == {7}


def test_a_prefix_leaves_a_home_that_is_clearly_busier() -> None:
    router = Router(endpoints([64] * 4))
    home = router.home(1)
    while router.choose(0.0, affinity=1) == home:
        router.endpoints[home].started(0.0)
    assert 4 <= router.endpoints[home].calls <= 8


def test_a_prefix_leaves_a_home_that_is_slow() -> None:
    router = Router(endpoints([64] * 4))
    for index, endpoint in enumerate(router.endpoints):
        endpoint.started(0.0)
        took = 20.0 if index == router.home(1) else 1.0
        endpoint.ended(took, Outcome.OK, began=0.0)
    assert router.choose(20.0, affinity=1) != router.home(1)


@given(
    count=st.integers(1, 12),
    items=st.integers(1, 150),
    seed=st.integers(0, 1000),
    hint=st.booleans(),
    keys=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_item_is_answered(
    count: int, items: int, seed: int, *, hint: bool, keys: bool
) -> None:
    draw = random.Random(seed)
    means = [draw.choice([0.1, 1.0, 20.0]) for _ in range(count)]
    faults = [draw.choice([0.0, 0.0, 0.3, 0.9]) for _ in range(count)]

    def took(index: int, now: float) -> float:
        return means[index] * (-1 if draw.random() < faults[index] else 1)

    made = [
        Endpoint(
            str(index),
            FixedLimiter(draw.randint(1, 8)),
            rate=RateLimiter(draw.choice([None, RateLimit(requests_per_minute=120)])),
        )
        for index in range(count)
    ]
    simulation = Simulation(Router(made, seed=seed), took)
    simulation.run(items, hint=hint, affinity=[n // 5 for n in range(items)] if keys else None)
    assert sum(simulation.answered.values()) == items
    assert all(each.calls == 0 for each in made)


class Choices(RuleBasedStateMachine):
    """A router beside the plain truth: it finds room if there is any, and only there."""

    @initialize(places=st.lists(st.integers(1, 3), min_size=2, max_size=30))
    def make(self, places: list[int]) -> None:
        self.now = 0.0
        self.router = Router(endpoints(places))
        self.running: list[tuple[int, float]] = []

    def rooms(self, now: float) -> set[int]:
        return {each.index for each in self.router.endpoints if each.has_room(now)}

    @rule(affinity=st.none() | st.integers(), start=st.booleans())
    def choose(self, affinity: int | None, *, start: bool) -> None:
        rooms = self.rooms(self.now)
        index = self.router.choose(self.now, affinity=affinity)
        assert (index is None) == (not rooms)
        if index is not None:
            assert index in rooms
            if start:
                self.router.endpoints[index].started(self.now)
                self.running.append((index, self.now))

    @rule()
    def fill(self) -> None:
        while (index := self.router.choose(self.now)) is not None:
            self.router.endpoints[index].started(self.now)
            self.running.append((index, self.now))

    @rule(avoid=st.sets(st.integers(0, 29)))
    def avoid(self, avoid: set[int]) -> None:
        index = self.router.choose(self.now, avoid=avoid)
        if self.rooms(self.now) - avoid:
            assert index in self.rooms(self.now) - avoid

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(Outcome),
        broken=st.booleans(),
        retry_after=st.none() | st.floats(0, 5),
    )
    def end(
        self, data: st.DataObject, outcome: Outcome, retry_after: float | None, *, broken: bool
    ) -> None:
        number = data.draw(st.integers(0, len(self.running) - 1))
        index, began = self.running.pop(number)
        broken = broken and outcome in {Outcome.FAILED, Outcome.TIMEOUT}
        self.router.endpoints[index].ended(
            self.now, outcome, began=began, broken=broken, retry_after=retry_after
        )

    @invariant()
    def wakes_when_time_gives_room(self) -> None:
        if self.router.choose(self.now) is not None:
            return
        wake = self.router.wake_at(self.now)
        times = [each.wake_at(self.now) for each in self.router.endpoints]
        assert wake == min((time for time in times if time is not None), default=None)
        if wake is not None:
            assert self.rooms(wake)
        else:
            assert self.running


TestChoices = Choices.TestCase
TestChoices.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
