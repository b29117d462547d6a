"""One client process and its endpoints in simulated time: every item, event by event.

The router, limiters, breakers, rate limits and retries are the engine's own; the endpoints
are those of `scaleinfer.testing`. The process itself is one core that does one thing at a time.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from scaleinfer._simulate_endpoints import capped, engine_endpoints
from scaleinfer._simulate_settings import drawn, mean_of
from scaleinfer.engine import GiveUp, Outcome, RetryAuthority, Router
from scaleinfer.errors import Transient
from scaleinfer.results import Load
from scaleinfer.testing import BatchingModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scaleinfer._simulate_settings import EndpointModel, Workload
    from scaleinfer.engine import Endpoint, EndpointStatistics, WaitFor
    from scaleinfer.engine._retry import Track

__all__ = ["Moment", "Process", "Trace"]

_AT_ONCE = 1e-9
_LOOP_TICK = 0.001
_STEADY_FROM = 0.4


@dataclass(frozen=True, slots=True)
class Moment:
    """Totals at one time, from which means over a part of the run come.

    Attributes:
        at: The time, in seconds.
        done: Items with a result.
        busy_s: Seconds the process's core has worked.
        running_s: Sequence seconds that each endpoint has run.
        calls: Calls that each endpoint has answered.
        call_s: Seconds that these took, summed.
        prompt_tokens: Prompt tokens that each endpoint has answered.
        answer_tokens: Completion tokens of these answers.
    """

    at: float
    done: int
    busy_s: float
    running_s: tuple[float, ...]
    calls: tuple[int, ...]
    call_s: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]


@dataclass(slots=True)
class Trace:
    """What one process did.

    Attributes:
        starts: When each item was first sent, in the order of sending.
        ends: When each of these had its result.
        done: When results came, in the order of coming.
        begin: When 40 % of the items had a result.
        dry: When the last item had been sent.
        end: When the last result was there.
        endpoints: Where the engine's endpoints stood at that time.
        capped: For each endpoint, True if a fixed limit or an upper bound held it back.
        prompt_tokens: Prompt tokens of all answers.
        answer_tokens: Completion tokens of all answers.
        failed: Items given up.
        stopped: Why the run would have been stopped; empty if it would not.
        longest_s: Seconds of the longest call.
    """

    starts: array[float]
    ends: array[float]
    done: array[float]
    begin: Moment
    dry: Moment
    end: Moment
    endpoints: list[EndpointStatistics]
    capped: list[bool]
    prompt_tokens: int
    answer_tokens: int
    failed: int
    stopped: str
    longest_s: float


class _Call:
    """An item on its way."""

    __slots__ = (
        "answer", "avoid", "began", "failed", "load", "number", "place", "prompt", "reserved",
        "track",
    )  # fmt: skip

    def __init__(self, number: int, prompt: int, answer: int) -> None:
        self.number = number
        self.prompt = prompt
        self.answer = answer
        self.reserved = 0.0
        self.place = -1
        self.began = 0.0
        self.load: Load | None = None
        self.failed = False
        self.avoid: tuple[int, ...] = ()
        self.track: Track | None = None


@dataclass(slots=True)
class _Server:
    """An endpoint's far side, and what came of it."""

    model: EndpointModel
    batch: BatchingModel[_Call]
    due: float = math.inf
    calls: int = 0
    call_s: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    rated: bool = field(init=False)
    way_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.rated = self.model.rate_limit is not None
        self.way_s = self.model.latency_s / 2


_Event: TypeAlias = "tuple[float, int, Callable[[float, Any], None], Any]"


class Process:
    """Runs items through the engine's state machines by a clock of its own.

    Args:
        models: The endpoints.
        work: What each item is like, and how it is sent.
        seed: Another seed, other lengths and errors.
    """

    def __init__(self, models: Sequence[EndpointModel], work: Workload, *, seed: str) -> None:
        self._work = work
        self._endpoints = engine_endpoints(models, work.concurrency)
        self._router = Router(self._endpoints)
        places = sum(endpoint.limiter.limit for endpoint in self._endpoints)
        self._authority = RetryAuthority(work.retry, places=places)
        self._servers = [_Server(model, BatchingModel(model.server)) for model in models]
        self._draw_prompt = drawn(work.prompt_tokens, f"{seed} prompt")
        self._draw_answer = drawn(work.answer_tokens, f"{seed} answer")
        self._answer_tokens = mean_of(work.answer_tokens)
        self._chance = random.Random(f"{seed} errors").random
        self._half_s = work.client_s / 2
        self._events: list[_Event] = []
        self._pushed = 0
        self._time = 0.0
        self._free = 0.0  # when the process's core has done all that it was given
        self._busy = 0.0
        self._timer = math.inf
        self._again: deque[_Call] = deque()
        self._items = self._sent = self._failed = 0
        self._longest = 0.0
        self._starts, self._ends, self._done = array("d"), array("d"), array("d")
        self._mark = 0
        self._begin: Moment | None = None
        self._dry: Moment | None = None

    def run(self, items: int) -> Trace:
        """Run so many items to their end."""
        self._items, self._mark = items, max(1, int(items * _STEADY_FROM))
        self._ends = array("d", bytes(8 * items))
        self._pump(0.0)
        events = self._events
        cause = None
        while events and cause is None:
            self._time, _, act, what = heapq.heappop(events)
            act(self._time, what)
            cause = self._authority.cause
        end = self._moment(max(self._time, self._free))
        return Trace(
            self._starts,
            self._ends,
            self._done,
            self._begin or end,
            self._dry or end,
            end,
            self._router.statistics(),
            [capped(endpoint, self._work.concurrency) for endpoint in self._endpoints],
            sum(server.prompt_tokens for server in self._servers),
            sum(server.answer_tokens for server in self._servers),
            self._failed,
            "" if cause is None else str(cause),
            self._longest,
        )

    # The client's side. Its clock, `_free`, runs ahead of the events while it is busy.

    def _pump(self, at: float) -> None:
        """Send as many calls as there are places for."""
        now = max(at, self._free)
        while self._again or self._sent < self._items:
            call = self._again[0] if self._again else None
            chosen = self._router.choose(
                now,
                avoid=() if call is None else call.avoid,
                remaining=self._items - self._sent if self._work.known_end else None,
            )
            if chosen is None:
                self._sleep(now)
                return
            if call is None:
                call = self._next(now)
            else:
                self._again.popleft()
            now = self._send(call, chosen, now)

    def _next(self, now: float) -> _Call:
        prompt, answer = round(self._draw_prompt()), round(self._draw_answer())
        call = _Call(self._sent, max(prompt, 1), max(answer, 1))
        self._starts.append(now)
        self._sent += 1
        if self._sent == self._items:
            self._dry = self._moment(now)
        return call

    def _send(self, call: _Call, chosen: int, now: float) -> float:
        server = self._servers[chosen]
        if server.rated:
            call.reserved = call.prompt + self._answer_tokens
        call.place, call.began = chosen, now
        self._endpoints[chosen].started(now, call.reserved)
        self._busy += self._half_s
        self._free = sent = now + self._half_s
        self._push(sent + server.way_s, self._arrive, call)
        return sent

    def _sleep(self, now: float) -> None:
        """Come back when time alone makes room: a rate limit, an open breaker."""
        at = self._router.wake_at(now)
        if at is not None and at < self._timer:
            self._timer = at if at > now else now + _LOOP_TICK
            self._push(self._timer, self._wake, None)

    def _wake(self, time: float, _: None) -> None:
        self._timer = math.inf
        self._pump(time)

    def _receive(self, time: float, call: _Call) -> None:
        self._busy += self._half_s
        self._free = now = max(time, self._free) + self._half_s
        endpoint = self._endpoints[call.place]
        self._longest = max(self._longest, now - call.began)
        if call.failed:
            self._fail(now, call, endpoint)
        else:
            endpoint.ended(
                now,
                Outcome.OK,
                began=call.began,
                reserved_tokens=call.reserved,
                tokens=call.answer,
                total_tokens=call.prompt + call.answer,
                load=call.load,
            )
            server = self._servers[call.place]
            server.calls += 1
            server.call_s += now - call.began
            server.prompt_tokens += call.prompt
            server.answer_tokens += call.answer
            self._authority.succeeded()
            self._authority.accepted()
            self._finish(now, call)
        self._pump(now)

    def _finish(self, now: float, call: _Call) -> None:
        self._ends[call.number] = now
        self._done.append(now)
        if len(self._done) == self._mark:
            self._begin = self._moment(now)

    # Errors.

    def _fail(self, now: float, call: _Call, endpoint: Endpoint) -> None:
        endpoint.ended(
            now, Outcome.FAILED, began=call.began, reserved_tokens=call.reserved, broken=True
        )
        call.failed = False
        call.track = call.track or self._authority.track(now)
        others = {*call.avoid, call.place}
        elsewhere = any(
            one.index not in others and one.breaker.allows(now) for one in self._endpoints
        )
        error = Transient("the simulated endpoint failed", endpoint=endpoint.name, status=500)
        call.avoid = (*call.avoid, call.place) if elsewhere else (call.place,)
        self._decided(now, call, call.track.failed(error, now, elsewhere=elsewhere))

    def _look(self, time: float, call: _Call) -> None:
        assert call.track is not None
        now = max(time, self._free)
        self._decided(now, call, call.track.again(now))
        self._pump(now)

    def _decided(self, now: float, call: _Call, decision: GiveUp | WaitFor | None) -> None:
        if decision is None:
            self._again.append(call)
        elif isinstance(decision, GiveUp):
            self._failed += 1
            self._finish(now, call)
        else:
            self._push(now + decision.seconds, self._look, call)

    # The endpoints' side, always at the time of the event.

    def _arrive(self, time: float, call: _Call) -> None:
        server = self._servers[call.place]
        rate = server.model.error_rate
        if rate and self._chance() < rate:
            call.failed = True
            self._push(time + server.way_s, self._receive, call)
            return
        server.batch.arrive(time, call, call.prompt, call.answer)
        self._await(server)

    def _serve(self, time: float, server: _Server) -> None:
        if time != server.due:
            return  # something was due earlier, and this is no more
        server.due = math.inf
        batch = server.batch
        finished = batch.advance(time)
        if finished:
            load = None
            if server.model.load_report:
                load = Load(batch.kv_usage, batch.waiting, None)
            for request in finished:
                request.who.load = load
                self._push(time + server.way_s, self._receive, request.who)
        self._await(server)

    def _await(self, server: _Server) -> None:
        due = server.batch.due
        if due is not None and due < server.due - _AT_ONCE:
            server.due = max(due, self._time)
            self._push(server.due, self._serve, server)

    def _push(self, at: float, act: Callable[[float, Any], None], what: Any) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at, self._pushed, act, what))

    def _moment(self, now: float) -> Moment:
        for server in self._servers:
            server.batch.peek(self._time)
        return Moment(
            now,
            len(self._done),
            self._busy,
            tuple(server.batch.running_seconds for server in self._servers),
            tuple(server.calls for server in self._servers),
            tuple(server.call_s for server in self._servers),
            tuple(server.prompt_tokens for server in self._servers),
            tuple(server.answer_tokens for server in self._servers),
        )
