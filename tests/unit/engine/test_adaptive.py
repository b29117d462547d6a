from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.engine.endpoint_model import (
    BatchServer,
    Call,
    Client,
    RateLimited,
    Simulation,
    SlotServer,
    jain,
)

from scaleinfer.engine import Concurrency, FixedLimiter, Limiter, Outcome
from scaleinfer.engine._adaptive import AdaptiveLimiter
from scaleinfer.engine._ceiling import Ceiling
from scaleinfer.engine._token_time import TokenTime
from scaleinfer.results import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.engine.endpoint_model import Endpoint

    Make = Callable[[Simulation], Endpoint]

PER_TOKEN = 0.012


def adaptive(**bounds: int) -> AdaptiveLimiter:
    return AdaptiveLimiter(Concurrency(**bounds), start=64)


def run(make: Make, limiter: Limiter, until: float, *, spread: float, seed: int = 0) -> Client:
    simulation = Simulation()
    client = Client(simulation, make(simulation), limiter, spread=spread, seed=seed)
    simulation.run(until)
    return client


def slots(number: int, *, reports: bool = False) -> Make:
    return lambda simulation: SlotServer(simulation, number, PER_TOKEN, reports=reports)


def batch(number: int, step: float, slope: float, *, reports: bool = False) -> Make:
    return lambda simulation: BatchServer(
        simulation, number, lambda running: step + slope * running, reports=reports
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(
    ("knee", "seed"),
    [(16, 0), (16, 1), (200, 0), (200, 1), pytest.param(1500, 0, id="1500, slow to simulate")],
)
def test_finds_the_knee_of_a_server_that_queues_in_silence(
    knee: int, spread: float, seed: int
) -> None:
    client = run(slots(knee), adaptive(), 60, spread=spread, seed=seed)
    best = run(slots(knee), FixedLimiter(round(knee * 1.1)), 60, spread=spread, seed=seed)
    assert client.goodput(30, 60) >= 0.95 * best.goodput(30, 60)
    assert client.goodput(0, 60) >= 0.85 * best.goodput(0, 60)
    assert client.per_token(40, 60) <= 1.5 * PER_TOKEN


@pytest.mark.parametrize(
    ("number", "step", "slope"), [(64, 0.005, 1e-4), (256, 0.0033, 2.6e-5), (1024, 0.004, 8e-6)]
)
def test_finds_a_round_knee(number: int, step: float, slope: float) -> None:
    client = run(batch(number, step, slope), adaptive(), 60, spread=0.3)
    best = run(batch(number, step, slope), FixedLimiter(round(number * 1.1)), 60, spread=0.3)
    assert client.goodput(30, 60) >= 0.95 * best.goodput(30, 60)
    assert client.goodput(0, 60) >= 0.85 * best.goodput(0, 60)
    assert client.per_token(40, 60) <= 1.5 * (step + slope * number)


def test_stays_below_where_goodput_falls() -> None:
    def make(simulation: Simulation) -> Endpoint:
        return BatchServer(simulation, 10_000, lambda n: 0.01 * max(1.0, (n / 100) ** 1.5))

    client = run(make, adaptive(), 60, spread=0.3)
    best = run(make, FixedLimiter(100), 60, spread=0.3)
    assert client.goodput(30, 60) >= 0.9 * best.goodput(30, 60)


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize(("before", "after"), [(32, 16), (200, 100), (16, 32), (200, 400)])
def test_follows_a_knee_that_moves(before: int, after: int, spread: float) -> None:
    simulation = Simulation()
    server = SlotServer(simulation, before, 0.01)
    client = Client(simulation, server, adaptive(), spread=spread)
    simulation.at(60, lambda: server.resize(after))
    simulation.run(110)
    assert client.goodput(80, 110) >= 0.9 * after / 0.01
    assert client.per_token(90, 110) <= 0.02


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("rate", [20, 100, 1000])
def test_stays_below_a_rate_limit(rate: int, spread: float) -> None:
    simulation = Simulation()
    server = RateLimited(simulation, rate, 0.01, burst=rate, retry_after=True)
    Client(simulation, server, adaptive(), spread=spread)
    simulation.run(60)
    accepted, rejected = server.accepted, server.rejected
    simulation.run(180)
    accepted, rejected = server.accepted - accepted, server.rejected - rejected
    assert rejected < 0.01 * (accepted + rejected)
    assert accepted >= 0.9 * rate * 120


@pytest.mark.parametrize("stagger", [0.0, 15.0, 30.0])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_two_clients_share_a_server(spread: float, stagger: float) -> None:
    simulation = Simulation()
    server = SlotServer(simulation, 200, 0.01)
    clients = [
        Client(simulation, server, adaptive(), spread=spread, seed=seed, start=seed * stagger)
        for seed in (0, 1)
    ]
    simulation.run(180)
    shares = [client.goodput(120, 180) for client in clients]
    assert jain(shares) >= 0.95
    assert sum(shares) >= 0.9 * 200 / 0.01


UNLIMITED = 10**6


@pytest.mark.parametrize("refused", [False, True], ids=["growing", "holding"])
@pytest.mark.parametrize("spread", [0.0, 0.4])
@pytest.mark.parametrize(
    ("constant", "per_token", "jitter"),
    [(0.1, 0.008, 0.0), (0.25, 0.005, 0.0), (0.5, 0.0, 0.0), (0.5, 0.0, 0.4), (0.25, 0.005, 0.4)],
    ids=["20 % constant", "50 % constant", "constant", "random", "random, 50 % constant"],
)
def test_what_does_not_depend_on_length_is_no_queue(
    constant: float, per_token: float, jitter: float, spread: float, refused: bool
) -> None:
    simulation = Simulation()
    server = SlotServer(simulation, UNLIMITED, per_token, constant=constant, jitter=jitter)
    limiter = adaptive(max=500)
    Client(simulation, server, limiter, tokens=50, spread=spread)
    if refused:
        # No more leaps: the limit is at the mercy of what the rounds seem to tell.
        simulation.at(1.2, lambda: limiter._knee.refused(1.2))
    peak = 0
    for second in range(1, 31 if refused else 8):
        simulation.run(second)
        peak = max(peak, limiter.limit)
        assert limiter.limit >= 0.5 * peak
    assert peak == 500


@pytest.mark.parametrize("tokens", [1, 50])
def test_gets_over_a_wrong_guess(tokens: int) -> None:
    simulation = Simulation()
    server = SlotServer(simulation, UNLIMITED, 0.0, constant=0.1)
    limiter = adaptive(max=300)
    Client(simulation, server, limiter, tokens=tokens, spread=0.4)
    simulation.run(20)
    # From now on all of it looks like waiting, or like an endpoint that got slower.
    server.constant = 0.5
    lowest = 300
    for second in range(21, 50):
        simulation.run(second)
        lowest = min(lowest, limiter.limit)
    assert lowest >= 50
    assert limiter.limit >= 200


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("knee", [16, 200])
def test_finds_the_knee_of_calls_with_a_constant_part(knee: int, spread: float) -> None:
    def make(simulation: Simulation) -> Endpoint:
        return SlotServer(simulation, knee, PER_TOKEN, constant=0.25)

    client = run(make, adaptive(), 60, spread=spread)
    best = run(make, FixedLimiter(round(knee * 1.1)), 60, spread=spread)
    assert client.goodput(30, 60) >= 0.95 * best.goodput(30, 60)
    assert client.per_token(40, 60) <= 1.5 * (PER_TOKEN + 0.25 / 100)


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_stays_below_a_rate_limit_of_calls_with_random_latency(spread: float) -> None:
    simulation = Simulation()
    server = RateLimited(simulation, 50, 0.0, burst=50, retry_after=True, constant=0.5, jitter=0.4)
    Client(simulation, server, adaptive(), tokens=50, spread=spread)
    simulation.run(60)
    accepted, rejected = server.accepted, server.rejected
    simulation.run(180)
    accepted, rejected = server.accepted - accepted, server.rejected - rejected
    assert rejected < 0.01 * (accepted + rejected)
    assert accepted >= 0.9 * 50 * 120


def test_believes_load_reports() -> None:
    client = run(slots(200, reports=True), adaptive(), 60, spread=0.3)
    assert client.limiter.statistics().reason == "load report"
    assert client.goodput(30, 60) >= 0.95 * 200 / PER_TOKEN
    assert client.per_token(40, 60) <= 1.5 * PER_TOKEN


@pytest.mark.parametrize("load", [Load(0.99, 0, 64), Load(0.5, 500, 64)])
def test_a_full_endpoint_gets_less(load: Load) -> None:
    limiter = adaptive()
    now = 0.0
    for _ in range(20):
        calls = limiter.limit
        for _ in range(calls):
            limiter.started(now)
        for _ in range(calls):
            limiter.ended(now + 1, Outcome.OK, began=now, tokens=100, load=load)
        now += 1.01
    assert limiter.limit < 64


def test_recovers_from_an_outage() -> None:
    class Outage(SlotServer):
        def submit(self, call: Call) -> None:
            if 60 <= self.simulation.now < 120:
                call.outcome = Outcome.REJECTED
                call.client.answer(call)
            else:
                super().submit(call)

    client = run(lambda simulation: Outage(simulation, 200, 0.01), adaptive(), 150, spread=0.3)
    assert client.goodput(130, 150) >= 0.9 * 200 / 0.01
    assert client.limiter.statistics().cuts < 60


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.TIMEOUT])
def test_one_cut_per_burst(outcome: Outcome) -> None:
    limiter = adaptive()
    for _ in range(64):
        limiter.started(0.0)
    for number in range(64):
        limiter.ended(1 + number * 1e-4, outcome, began=0.0, retry_after=2.0)
    assert limiter.statistics().cuts == 1
    assert limiter.limit == 59
    assert limiter.shrinking
    assert limiter.statistics().reason.startswith("cut")
    assert limiter.paused_until == (2.0 + 1 + 63e-4)


def test_does_not_grow_when_not_used() -> None:
    limiter = adaptive()
    for second in range(500):
        for _ in range(8):
            limiter.started(float(second))
        for _ in range(8):
            limiter.ended(second + 0.9, Outcome.OK, began=float(second), tokens=10)
    assert limiter.limit == 64


def test_few_items() -> None:
    simulation = Simulation()
    server = SlotServer(simulation, 16, 0.01)
    client = Client(simulation, server, adaptive(), items=5)
    simulation.run(60)
    assert len(client.log) == 5
    assert client.limiter.in_flight == 0
    assert client.limiter.limit == 64


def test_bounds_may_change() -> None:
    simulation = Simulation()
    limiter = AdaptiveLimiter(Concurrency(min=4, max=32), start=64)
    Client(simulation, SlotServer(simulation, 200, 0.01), limiter)
    assert limiter.limit == 32
    simulation.run(20)
    assert limiter.limit == 32
    assert limiter.statistics().reason == "bounded by max"
    limiter.concurrency.max = 10
    simulation.run(25)
    assert limiter.limit == 10
    limiter.concurrency.max = 10_000
    simulation.run(60)
    assert 150 <= limiter.limit <= 300
    limiter.concurrency.min = 500
    simulation.run(65)
    assert limiter.limit == 500


def test_a_ceiling_is_forgotten_after_long_success() -> None:
    ceiling = Ceiling()
    assert ceiling.limit == math.inf
    assert ceiling.refused(1.0, 0.5, 100)
    assert not ceiling.refused(1.1, 0.9, 100)
    assert ceiling.limit == 93
    calls, forgotten = 0, False
    while not forgotten:
        calls += 1
        forgotten = ceiling.answered(2.0 + calls * 0.01, 1.0 + calls * 0.01)
    assert ceiling.limit == math.inf
    assert 800 < calls < 5000


def test_tells_waiting_from_working() -> None:
    times = TokenTime()
    for number in range(100):
        tokens = 50 + number % 50
        times.add(tokens, 2.0 + 0.01 * tokens)
    times.fit()
    assert times.seconds == pytest.approx(0.01)
    assert times.error < 0.01


@pytest.mark.parametrize("tokens", [1, 100])
def test_answers_of_one_length_tell_nothing(tokens: int) -> None:
    times = TokenTime()
    for number in range(100):
        times.add(tokens, 1.0 + number % 3)
    times.fit()
    assert times.error == math.inf


class Bounded(RuleBasedStateMachine):
    @initialize(least=st.integers(1, 8), room=st.integers(0, 200), start=st.integers(1, 300))
    def make(self, least: int, room: int, start: int) -> None:
        self.bounds = Concurrency(min=least, max=least + room)
        self.limiter = AdaptiveLimiter(self.bounds, start=start)
        self.now = 0.0
        self.running: list[float] = []
        self.ended = True

    @rule(calls=st.integers(1, 100))
    def start(self, calls: int) -> None:
        limit = self.limiter.limit
        for _ in range(calls):
            if self.limiter.has_room:
                self.limiter.started(self.now)
                self.running.append(self.now)
        assert self.limiter.limit == limit

    @precondition(lambda self: self.running)
    @rule(
        calls=st.integers(1, 100),
        outcome=st.sampled_from(Outcome),
        took=st.floats(0, 20),
        tokens=st.integers(0, 500),
        load=st.none()
        | st.builds(
            Load,
            st.none() | st.floats(0, 1),
            st.none() | st.integers(0, 900),
            st.none() | st.integers(0, 900),
        ),
        retry_after=st.none() | st.floats(0, 60),
    )
    def end(  # noqa: PLR0917 - Hypothesis passes them by name
        self,
        calls: int,
        outcome: Outcome,
        took: float,
        tokens: int,
        load: Load | None,
        retry_after: float | None,
    ) -> None:
        self.now += took
        cuts = self.limiter.statistics().cuts
        for _ in range(min(calls, len(self.running))):
            self.limiter.ended(
                self.now, outcome, began=self.running.pop(0), tokens=tokens, load=load,
                retry_after=retry_after,
            )  # fmt: skip
        self.ended = True
        if outcome is not Outcome.OK:
            assert self.limiter.statistics().cuts <= cuts + 1

    @rule(least=st.integers(1, 8), room=st.integers(0, 200))
    def move(self, least: int, room: int) -> None:
        self.bounds.min, self.bounds.max = least, least + room
        self.ended = False

    @invariant()
    def within_bounds_and_never_stuck(self) -> None:
        limiter = self.limiter
        if self.ended:
            assert self.bounds.min <= limiter.limit <= self.bounds.max
        assert limiter.in_flight == len(self.running) >= 0
        assert limiter.has_room or limiter.in_flight > 0


TestBounded = Bounded.TestCase
