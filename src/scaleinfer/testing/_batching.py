"""Continuous batching as a model server does it: a state machine with the clock passed in."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from scaleinfer.testing._batched_request import (
    DECODING,
    FINISHED,
    LEFT,
    PREFILL,
    WAITING,
    BatchedRequest,
)
from scaleinfer.testing._prefix import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from scaleinfer.testing._batching_settings import Batching

__all__ = ["BatchingModel"]

T = TypeVar("T")
N = TypeVar("N", int, float)

_TOGETHER = 1e-9
"""Seconds that are no time: what is due so much later is due now, whatever the rounding."""

_GARBAGE = 64
"""So many left-over entries are not worth a heap's clean-up."""


class BatchingModel(Generic[T]):
    """Sequences in and out of one batch, by a clock that counts tokens instead of seconds.

    All running sequences gain tokens at the same pace, so one virtual clock (V tokens, with
    dV/dt = 1 / step time) serves them all: a sequence that starts at V with n tokens to go ends
    at V + n, however the pace changes meanwhile. No step is ever simulated; an event costs
    O(log n). Sequences start and end between steps here, so times are up to one step early.

    Times are of any one clock, in seconds; they must not run backwards.

    ```python
    from scaleinfer.testing import Batching, BatchingModel

    model = BatchingModel(Batching(slots=2, step_s=0.1))
    for name in "abc":
        model.arrive(0.0, name, prompt_tokens=8, answer_tokens=10)
    assert (model.running, model.waiting, model.due) == (2, 1, 1.0)
    assert [request.who for request in model.advance(1.0)] == ["a", "b"]
    assert model.due == 2.0
    ```

    Args:
        settings: How it behaves.

    Attributes:
        settings: The same.
        slots: Sequences that may run at once, now.
        slowdown: By how much everything takes longer than the settings say; 1 is no slowdown,
            infinity stands still.
        running: Sequences that have a slot.
        decoding: Those of them whose prompt is computed.
        waiting: Sequences that wait for a slot or for room.
        finished_requests: Sequences that came to their end.
        finished_tokens: Their answers' tokens.
        running_seconds: Integral of `running` over time: divided by the time that has passed,
            the mean number of sequences.
        prefix_queries: Prompt tokens that were looked up in the prefix cache.
        prefix_hits: Those of them that were found.
    """

    __slots__ = (
        "_block_tokens", "_cache", "_decode", "_finished", "_held", "_kv", "_now", "_number",
        "_prefill", "_prefill_clock", "_prefill_end", "_prefill_rate", "_queue", "_rate",
        "_reserved", "_started", "_starts", "_steady", "_v", "decoding", "finished_requests",
        "finished_tokens", "prefix_hits", "prefix_queries", "running", "running_seconds",
        "settings", "slots", "slowdown", "waiting",
    )  # fmt: skip

    def __init__(self, settings: Batching) -> None:
        self.settings = settings
        self.slots = settings.slots
        self.slowdown = 1.0
        self.running = self.decoding = self.waiting = 0
        self.finished_requests = self.finished_tokens = 0
        self.running_seconds = 0.0
        self.prefix_queries = self.prefix_hits = 0
        self._kv = settings.kv_tokens
        self._block_tokens = settings.prefix_block_tokens
        cached = settings.prefix_cache_tokens
        self._cache = None if cached is None else PrefixCache(cached // self._block_tokens)
        # If nothing but a change can alter the step's time, it is not computed at each event.
        self._steady = settings.step_per_sequence_s == 0 and settings.kv_thrash == 0
        self._queue: list[tuple[int, int, BatchedRequest[T]]] = []
        self._decode: list[tuple[float, int, BatchedRequest[T]]] = []
        self._prefill: deque[BatchedRequest[T]] = deque()
        self._finished: list[BatchedRequest[T]] = []
        self._started: list[BatchedRequest[T]] = []
        self._number = 0
        self._now = -math.inf
        self._v = 0.0
        self._starts = 0.0  # the sum of V at the start of each that decodes
        self._held = 0  # prompt tokens of those that run
        self._reserved = 0  # prompt and answer tokens of those that run
        self._prefill_clock = 0.0  # seconds of prefill done, at slowdown 1
        self._prefill_end = math.inf  # where that clock stands when the first one is done
        self._prefill_rate = 1.0
        self._rate = 0.0
        self._set_rate()

    # Events.

    def arrive(
        self,
        now: float,
        who: T,
        prompt_tokens: int,
        answer_tokens: int,
        *,
        blocks: Sequence[Hashable] = (),
        priority: int = 0,
        watch: bool = False,
    ) -> BatchedRequest[T]:
        """Take a request: it runs at once or waits, by priority and then by arrival.

        Args:
            now: The time.
            who: Whatever the caller wants to find again.
            prompt_tokens: Tokens of its prompt.
            answer_tokens: Tokens of its answer.
            blocks: Chained hashes of the prompt's whole blocks, see `prefix_blocks`.
            priority: A lower one goes first, as vLLM's field of that name.
            watch: Name it in `take_started` when its decoding begins.
        """
        self._run(now)
        request = BatchedRequest(who, prompt_tokens, answer_tokens, now)
        request.blocks = blocks
        request.watched = watch
        self._number += 1
        heapq.heappush(self._queue, (priority, self._number, request))
        self.waiting += 1
        if self.running < self.slots:
            self._admit()
        return request

    def leave(self, request: BatchedRequest[T], now: float) -> bool:
        """Take a request out, whose client went away; return False if it had its end before."""
        self._run(now)
        state = request.state
        if state >= FINISHED:
            return False
        request.state = LEFT
        if state == WAITING:
            self.waiting -= 1
            self._queue = _swept(self._queue, self.waiting)
        else:
            if state == PREFILL:
                self._skip_left_prefills()
            self._release(request, decoding=state == DECODING)
            self._decode = _swept(self._decode, self.decoding)
        self._admit()
        return True

    def advance(self, now: float) -> list[BatchedRequest[T]]:
        """Let the time be `now`; return who has finished since the last call, in order."""
        self._run(now)
        finished = self._finished
        if finished:
            self._finished = []
        return finished

    def peek(self, now: float) -> None:
        """Let the time be `now`; who finishes by that is left for `advance` to return."""
        self._run(now)

    def change(
        self, now: float, *, slots: int | None = None, slowdown: float | None = None
    ) -> None:
        """Become another server from `now` on; what is `None` stays.

        Args:
            now: The time.
            slots: Sequences that may run at once. Those that run go on if there are more.
            slowdown: By how much everything takes longer than the settings say.
        """
        self._run(now)
        if slots is not None:
            self.slots = slots
        if slowdown is not None:
            self.slowdown = slowdown
            self._prefill_rate = 1 / slowdown
            self._set_rate()
        self._admit()

    # Reading.

    @property
    def due(self) -> float | None:
        """When `advance` or `take_started` will have something; `None`: never by itself.

        Something that is not watched may begin to decode earlier; `advance` then gives nothing.
        """
        if self._finished or self._started:
            return self._now
        time = min(self._next_finish(), self._next_prefill())
        return None if time == math.inf else time

    @property
    def step_time(self) -> float:
        """Seconds that one step takes now; infinite while it stands still."""
        return 1 / self._rate if self._rate else math.inf

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1: prompts and the answers' tokens so far."""
        if self._kv is None:
            return 0.0
        tokens = self._held + self.decoding * self._v - self._starts
        return min(max(tokens / self._kv, 0.0), 1.0)

    def generated(self, request: BatchedRequest[T]) -> float:
        """Return how many tokens of its answer a request has, a broken part included."""
        if request.state == FINISHED:
            return float(request.answer_tokens)
        return self._v - request.token_clock if request.state == DECODING else 0.0

    def take_started(self) -> list[BatchedRequest[T]]:
        """Return the watched requests that have begun to decode since the last call."""
        started = self._started
        if started:
            self._started = []
        return started

    # The clocks.

    def _next_finish(self) -> float:
        decode = self._decode
        while decode and decode[0][2].state == LEFT:
            heapq.heappop(decode)
        if not decode or not self._rate:
            return math.inf
        return self._now + max(decode[0][0] - self._v, 0.0) / self._rate

    def _next_prefill(self) -> float:
        if not self._prefill or not self._prefill_rate:
            return math.inf
        return self._now + max(self._prefill_end - self._prefill_clock, 0.0) / self._prefill_rate

    def _run(self, now: float) -> None:
        """Let everything happen that is due by `now`, each at its own time."""
        while self._decode or self._prefill:
            finish, prefill = self._next_finish(), self._next_prefill()
            if finish > now + _TOGETHER and prefill > now + _TOGETHER:
                break
            if finish <= prefill:
                self._move_clocks(finish)
                self._v = self._decode[0][0]
                self._finish_due()
            else:
                self._move_clocks(prefill)
                self._prefill_clock = self._prefill_end
                self._start(self._prefill.popleft())
                self._skip_left_prefills(fresh=True)
            if self.waiting:
                self._admit()
        self._move_clocks(now)

    def _move_clocks(self, now: float) -> None:
        passed = now - self._now
        if passed > 0:
            if self.running:
                self._v += passed * self._rate
                self._prefill_clock += passed * self._prefill_rate
                self.running_seconds += passed * self.running
            self._now = now

    def _set_rate(self) -> None:
        settings = self.settings
        step = settings.step_s + settings.step_per_sequence_s * max(self.decoding, 1)
        if settings.kv_thrash and self._kv is not None:
            step *= 1 + settings.kv_thrash * max(self._reserved / self._kv - 1, 0.0)
        self._rate = 1 / (step * self.slowdown)

    # Moves.

    def _admit(self) -> None:
        """Give slots to those that wait, in order, as long as there is room."""
        queue = self._queue
        while queue and self.running < self.slots:
            request = queue[0][2]
            if request.state == LEFT:
                heapq.heappop(queue)
                continue
            tokens = request.prompt_tokens + request.answer_tokens
            if self.running and not self._has_room(tokens):
                break
            heapq.heappop(queue)
            self.waiting -= 1
            self.running += 1
            self._held += request.prompt_tokens
            self._reserved += tokens
            request.admitted = self._now
            self._compute_prompt(request)

    def _has_room(self, tokens: int) -> bool:
        kv = self._kv
        return kv is None or self._reserved + tokens <= kv or self.settings.kv_thrash > 0

    def _compute_prompt(self, request: BatchedRequest[T]) -> None:
        if self._cache is not None:
            hits = self._cache.use(request.blocks) * self._block_tokens
            # The last token is computed in any case: it brings forth the first one of the answer.
            most = max(request.prompt_tokens - 1, 0) // self._block_tokens * self._block_tokens
            request.cached_tokens = min(hits, most)
            self.prefix_queries += request.prompt_tokens
            self.prefix_hits += request.cached_tokens
        if self.settings.prefill_tokens_per_s is None:
            self._start(request)
            return
        request.state = PREFILL
        self._prefill.append(request)
        if len(self._prefill) == 1:
            self._prefill_end = self._prefill_clock + self._prefill_seconds(request)
        if not self._steady:
            self._set_rate()

    def _prefill_seconds(self, request: BatchedRequest[T]) -> float:
        rate = self.settings.prefill_tokens_per_s or math.inf
        return (request.prompt_tokens - request.cached_tokens) / rate

    def _skip_left_prefills(self, *, fresh: bool = False) -> None:
        """Let the first one that is still there be computed, if it was not before (`fresh`)."""
        queue = self._prefill
        while queue and queue[0].state == LEFT:
            queue.popleft()
            fresh = True
        if fresh and queue:
            self._prefill_end = self._prefill_clock + self._prefill_seconds(queue[0])

    def _start(self, request: BatchedRequest[T]) -> None:
        request.state = DECODING
        request.started = self._now
        request.token_clock = self._v
        self.decoding += 1
        self._starts += self._v
        self._number += 1
        heapq.heappush(self._decode, (self._v + request.answer_tokens, self._number, request))
        if request.watched:
            self._started.append(request)
        if not self._steady:
            self._set_rate()

    def _finish_due(self) -> None:
        """End all whose last token is there."""
        decode = self._decode
        while decode and decode[0][0] <= self._v:
            request = heapq.heappop(decode)[2]
            if request.state == LEFT:
                continue
            request.state = FINISHED
            request.finished = self._now
            self.finished_requests += 1
            self.finished_tokens += request.answer_tokens
            self._finished.append(request)
            self._release(request, decoding=True)

    def _release(self, request: BatchedRequest[T], *, decoding: bool) -> None:
        self.running -= 1
        self._held -= request.prompt_tokens
        self._reserved -= request.prompt_tokens + request.answer_tokens
        if decoding:
            self.decoding -= 1
            # Without anybody the sum starts anew, so that rounding errors do not add up.
            self._starts = self._starts - request.token_clock if self.decoding else 0.0
        if not self._steady:
            self._set_rate()


def _swept(
    heap: list[tuple[N, int, BatchedRequest[T]]], living: int
) -> list[tuple[N, int, BatchedRequest[T]]]:
    """Return a heap without those that left, once they are the most of it."""
    if len(heap) <= 2 * living + _GARBAGE:
        return heap
    kept = [entry for entry in heap if entry[2].state != LEFT]
    heapq.heapify(kept)
    return kept
