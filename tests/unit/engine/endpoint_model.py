"""Model endpoints and clients in simulated time, to judge limiters: discrete events, no clock."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

from scaleinfer.engine import Outcome
from scaleinfer.results import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleinfer.engine import Limiter


class Simulation:
    """Events in the order of their time.

    Attributes:
        now: The simulated clock, in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), action))

    def run(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, action = heapq.heappop(events)
            action()
        self.now = until


@dataclass(slots=True)
class Call:
    """One call: who made it, how long its answer is, and what came of it."""

    client: Client
    tokens: int
    began: float
    outcome: Outcome = Outcome.OK
    load: Load | None = None
    retry_after: float | None = None


class Endpoint(Protocol):
    """Takes calls; hands each back to its client when it has ended."""

    def submit(self, call: Call) -> None: ...


@dataclass
class SlotServer:
    """`slots` answers at a time, a fixed time per token, anything above waits in one line.

    Attributes:
        constant: Seconds that every answer takes on top: prefill, network, overhead.
        jitter: Relative spread of the latency, uniform, whatever the length.
        reports: True if answers carry a load report.
        noise: Relative spread of the time an answer takes.
    """

    simulation: Simulation
    slots: int
    per_token: float
    reports: bool = False
    noise: float = 0.0
    constant: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    running: int = 0
    waiting: deque[Call] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def submit(self, call: Call) -> None:
        self.waiting.append(call)
        self._fill()

    def resize(self, slots: int) -> None:
        self.slots = slots
        self._fill()

    def _fill(self) -> None:
        while self.waiting and self.running < self.slots:
            call = self.waiting.popleft()
            self.running += 1
            took = self.constant + call.tokens * self.per_token
            if self.jitter:
                took *= self._random.uniform(1 - self.jitter, 1 + self.jitter)
            if self.noise:
                took *= max(0.2, self._random.gauss(1, self.noise))
            self.simulation.at(self.simulation.now + took, lambda call=call: self._end(call))  # type: ignore[misc]

    def _end(self, call: Call) -> None:
        self.running -= 1
        self._fill()
        if self.reports:
            kv = min(1.0, self.running / self.slots)
            call.load = Load(kv * 0.9, len(self.waiting), self.running)
        call.client.answer(call)


@dataclass
class BatchServer:
    """Continuous batching: every step gives each running call a token; a step takes longer the
    more run. Calls join between steps, at most `slots` and `kv_tokens` (a call's whole length is
    reserved) at a time."""

    simulation: Simulation
    slots: int
    step: Callable[[int], float]
    kv_tokens: float = math.inf
    reports: bool = False

    def __post_init__(self) -> None:
        self.waiting: deque[Call] = deque()
        self._running: list[tuple[int, int, Call]] = []
        self._steps, self._last, self._used = 0, 0.0, 0
        self._number, self._version = count(), 0

    def submit(self, call: Call) -> None:
        self._advance()
        self.waiting.append(call)
        self._fill()

    def resize(self, slots: int) -> None:
        self._advance()
        self.slots = slots
        self._fill()

    def _advance(self) -> None:
        if self._running:
            step = self.step(len(self._running))
            done = int((self.simulation.now - self._last) / step + 1e-9)
            self._steps += done
            self._last += done * step
        else:
            self._last = self.simulation.now

    def _fill(self) -> None:
        while (
            self.waiting
            and len(self._running) < self.slots
            and (self._used + self.waiting[0].tokens <= self.kv_tokens or not self._running)
        ):
            call = self.waiting.popleft()
            self._used += call.tokens
            heapq.heappush(self._running, (self._steps + call.tokens, next(self._number), call))
        self._version += 1
        if self._running:
            left = max(1, self._running[0][0] - self._steps)
            when = self._last + left * self.step(len(self._running))
            version = self._version
            self.simulation.at(max(when, self.simulation.now), lambda: self._finish(version))

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        left = max(1, self._running[0][0] - self._steps)
        self._steps += left
        self._last = self.simulation.now
        ended = []
        while self._running and self._running[0][0] <= self._steps:
            ended.append(heapq.heappop(self._running)[2])
            self._used -= ended[-1].tokens
        self._fill()
        for call in ended:
            if self.reports:
                kv = self._used / self.kv_tokens if self.kv_tokens < math.inf else 0.5
                call.load = Load(kv, len(self.waiting), len(self._running))
            call.client.answer(call)


@dataclass
class RateLimited:
    """Answers `rate` calls a second (a token bucket), 429 to the rest."""

    simulation: Simulation
    rate: float
    per_token: float
    burst: float
    retry_after: bool = False
    constant: float = 0.01
    jitter: float = 0.0
    accepted: int = 0
    rejected: int = 0

    def __post_init__(self) -> None:
        self._bucket, self._then = self.burst, 0.0
        self._random = random.Random(0)

    def submit(self, call: Call) -> None:
        now = self.simulation.now
        self._bucket = min(self.burst, self._bucket + (now - self._then) * self.rate)
        self._then = now
        if self._bucket >= 1:
            self._bucket -= 1
            self.accepted += 1
            took = self.constant + call.tokens * self.per_token
            if self.jitter:
                took *= self._random.uniform(1 - self.jitter, 1 + self.jitter)
        else:
            self.rejected += 1
            call.outcome = Outcome.REJECTED
            call.retry_after = 1.0 if self.retry_after else None
            took = 0.01
        self.simulation.at(now + took, lambda: call.client.answer(call))


class Client:
    """Keeps a limiter's places full with items of random length, as the engine does.

    Args:
        items: How many items there are.
        spread: Lengths are uniform in `tokens` times 1 +- `spread`.

    Attributes:
        log: (time, tokens) of every answer.
    """

    def __init__(
        self,
        simulation: Simulation,
        endpoint: Endpoint,
        limiter: Limiter,
        *,
        tokens: int = 100,
        spread: float = 0.3,
        seed: int = 0,
        items: float = math.inf,
        start: float = 0.0,
    ) -> None:
        self.simulation, self.endpoint, self.limiter = simulation, endpoint, limiter
        self.log: list[tuple[float, int]] = []
        self.trace: list[tuple[float, int, float]] = []
        self._tokens, self._spread, self._items = tokens, spread, items
        self._random = random.Random(seed)
        self._network = random.Random(seed + 1)
        self._filling = False
        simulation.at(start, self.fill)

    def fill(self) -> None:
        if self._filling:
            return
        self._filling = True
        while self._items > 0 and self.limiter.has_room:
            self._items -= 1
            self.limiter.started(self.simulation.now)
            length = self._tokens * self._random.uniform(1 - self._spread, 1 + self._spread)
            self.endpoint.submit(Call(self, max(1, round(length)), self.simulation.now))
        self._filling = False

    def answer(self, call: Call) -> None:
        """Called by the endpoint; a few milliseconds pass until the client has the answer."""
        delay = self._network.uniform(0.001, 0.006)
        self.simulation.at(self.simulation.now + delay, lambda: self._ended(call))

    def _ended(self, call: Call) -> None:
        now, ok = self.simulation.now, call.outcome is Outcome.OK
        self.limiter.ended(
            now,
            call.outcome,
            began=call.began,
            tokens=call.tokens if ok else 0,
            load=call.load,
            retry_after=call.retry_after,
        )
        if ok:
            self.log.append((now, call.tokens))
            self.trace.append((now, self.limiter.limit, (now - call.began) / call.tokens))
        else:
            self.simulation.at(now + (call.retry_after or 1.0), self._again)
        self.fill()

    def _again(self) -> None:
        self._items += 1
        self.fill()

    def goodput(self, since: float, until: float) -> float:
        """Completion tokens a second."""
        return sum(tokens for when, tokens in self.log if since <= when < until) / (until - since)

    def per_token(self, since: float, until: float) -> float:
        """Mean seconds per token of the calls that ended in the interval."""
        took = [each for when, _, each in self.trace if since <= when < until]
        return sum(took) / len(took)


def jain(shares: list[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
