from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from scaleinfer.engine import GiveUp, Retry, RetryAuthority, WaitFor
from scaleinfer.errors import EndpointError, Overloaded, RateLimited, Transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine._retry import Track


@dataclass
class Simulated:
    """A run against one endpoint in simulated time; it is down from `down[0]` to `down[1]`."""

    places: int
    latency: float
    down: tuple[float, float] = (100.0, 160.0)
    end: float = 300.0
    error: Callable[[], EndpointError] = lambda: Transient("down")
    bad: float = 0.0
    rules: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    given_up: int = 0

    def run(self) -> Simulated:
        self.rnd = random.Random(1)
        random.seed(1)
        self.it = RetryAuthority(Retry(**self.rules), places=self.places)
        self.answers: list[float] = []
        self.events: list[tuple[float, int, Callable[..., None], Any]] = []
        self.queue: deque[Track | None] = deque()
        self.free, self.number = self.places, 0
        for _ in range(2 * self.places + 32):
            self.at(0.0, self.enter, None)
        while self.events and self.it.cause is None:
            now, _, step, track = heapq.heappop(self.events)
            if now > self.end:
                break
            step(now, track)
        return self

    def at(self, when: float, step: Callable[..., None], track: Track | None) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, step, track))

    def enter(self, now: float, track: Track | None) -> None:
        if self.free:
            self.free -= 1
            self.start(now, track)
        else:
            self.queue.append(track)

    def start(self, now: float, track: Track | None) -> None:
        self.calls += 1
        done = now + self.latency * self.rnd.lognormvariate(0.0, 0.3)
        if self.down[0] <= now < self.down[1] or self.rnd.random() < self.bad:
            self.at(now + 0.005, self.fail, track)
        elif now < self.down[0] < done:
            self.at(self.down[0], self.fail, track)
        else:
            self.at(done, self.succeed, track)

    def leave(self, now: float) -> None:
        if self.queue:
            self.start(now, self.queue.popleft())
        else:
            self.free += 1

    def succeed(self, now: float, track: Track | None) -> None:
        del track
        self.answers.append(now)
        self.it.succeeded()
        self.it.accepted()
        self.leave(now)
        self.enter(now, None)

    def fail(self, now: float, track: Track | None) -> None:
        self.leave(now)
        track = track or self.it.track(now)
        self.follow(now, track, track.failed(self.error(), now))

    def look(self, now: float, track: Track) -> None:
        self.follow(now, track, track.again(now))

    def follow(self, now: float, track: Track, decision: GiveUp | WaitFor | None) -> None:
        if isinstance(decision, WaitFor):
            self.at(now + decision.seconds, self.look, track)
        elif decision is None:
            self.enter(now, track)
        else:
            self.given_up += 1
            self.enter(now, None)

    def rate(self, since: float, until: float) -> float:
        return sum(since <= answer < until for answer in self.answers) / (until - since)

    @property
    def calls_per_item(self) -> float:
        return self.calls / len(self.answers)


def refused() -> EndpointError:
    return Transient("connection refused", reached=False)


@pytest.mark.parametrize(
    ("places", "latency", "error"),
    [
        (64, 1.0, refused),
        (64, 1.0, lambda: Overloaded("HTTP 503", retry_after=5.0)),
        (64, 1.0, lambda: RateLimited("HTTP 429", retry_after=20.0)),
        (1000, 2.5, refused),
    ],
    ids=["refused", "503 with Retry-After", "429 with Retry-After", "1,000 in flight"],
)
def test_an_outage_costs_few_calls_and_its_end_is_seen(
    places: int, latency: float, error: Callable[[], EndpointError]
) -> None:
    run = Simulated(places, latency, error=error).run()
    assert run.it.cause is None
    assert run.given_up == 0
    assert run.calls_per_item <= 1.1
    assert run.rate(170.0, 180.0) >= 0.9 * run.rate(60.0, 95.0)


@pytest.mark.parametrize(("bad", "lost"), [(0.2, 0.06), (0.5, 0.2)])
def test_calls_that_fail_by_chance_do_not_slow_a_run_down(bad: float, lost: float) -> None:
    nothing = (math.inf, math.inf)
    without = Simulated(64, 1.0, down=nothing, end=100.0).run()
    run = Simulated(64, 1.0, down=nothing, end=100.0, bad=bad).run()
    assert len(run.answers) >= (1 - lost) * len(without.answers)
    assert run.calls_per_item == pytest.approx(1 / (1 - bad), rel=0.05)


def test_an_endpoint_that_fails_nearly_always_is_not_hammered() -> None:
    run = Simulated(64, 1.0, down=(math.inf, math.inf), end=100.0, bad=0.9).run()
    assert run.calls < 64 + 96 + 300
    assert len(run.answers) > 10
