from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.errors import ConfigError
from scaleinfer.testing import BatchedRequest, Batching, BatchingModel


def model(**options: Any) -> BatchingModel[int]:
    return BatchingModel(Batching(**options))


def drain(batch: BatchingModel[int]) -> list[BatchedRequest[int]]:
    """Return all that finish, each taken when it is due."""
    finished = []
    while (due := batch.due) is not None:
        finished += batch.advance(due)
    return finished


def step_by_step(
    arrivals: list[tuple[int, int]], slots: int, step: float, per_sequence: float
) -> dict[int, float]:
    """Return when each finishes, by taking every step: `(step of arrival, tokens)` each."""
    waiting, running = deque(enumerate(arrivals)), dict[int, int]()
    finished, now, steps = dict[int, float](), 0.0, 0
    while waiting or running:
        while waiting and len(running) < slots and waiting[0][1][0] <= steps:
            number, (_, tokens) = waiting.popleft()
            running[number] = tokens
        now += step + per_sequence * len(running)
        steps += 1
        for number in [n for n, left in running.items() if left == 1]:
            del running[number]
            finished[number] = now
        running = {n: left - 1 for n, left in running.items()}
    return finished


TOKENS = st.integers(1, 30)


@given(tokens=st.lists(TOKENS, max_size=20), slots=st.integers(1, 5), per=st.floats(0, 1))
def test_times_are_those_of_a_step_by_step_simulation(
    tokens: list[int], slots: int, per: float
) -> None:
    batch = model(slots=slots, step_s=0.5, step_per_sequence_s=per)
    for number, answer in enumerate(tokens):
        batch.arrive(0.0, number, 4, answer)
    times = {request.who: request.finished for request in drain(batch)}
    assert times == pytest.approx(step_by_step([(0, n) for n in tokens], slots, 0.5, per))


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 40), TOKENS), max_size=20).map(sorted),
    slots=st.integers(1, 4),
)
def test_times_of_later_arrivals_are_those_of_a_step_by_step_simulation(
    arrivals: list[tuple[int, int]], slots: int
) -> None:
    batch = model(slots=slots, step_s=0.25)
    for number, (step, answer) in enumerate(arrivals):
        batch.arrive(0.25 * step, number, 4, answer)
    times = {request.who: request.finished for request in drain(batch)}
    assert times == pytest.approx(step_by_step(arrivals, slots, 0.25, 0.0))


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 5), TOKENS), min_size=1, max_size=20).map(sorted),
    late=st.floats(0, 3),
)
def test_times_do_not_depend_on_when_the_model_is_asked(
    arrivals: list[tuple[float, int]], late: float
) -> None:
    options: dict[str, Any] = {
        "slots": 3, "step_s": 0.1, "step_per_sequence_s": 0.03, "prefill_tokens_per_s": 50.0,
        "kv_tokens": 60,
    }  # fmt: skip
    punctual, lazy = model(**options), model(**options)
    seen: dict[int, float | None] = {}
    for number, (at, answer) in enumerate(arrivals):
        while (due := punctual.due) is not None and due <= at:
            seen |= {r.who: r.finished for r in punctual.advance(due)}
        punctual.arrive(at, number, 5, answer)
        lazy.arrive(at, number, 5, answer)
    seen |= {r.who: r.finished for r in drain(punctual)}
    end = max(time for time in seen.values() if time is not None)
    found = {r.who: r.finished for r in lazy.advance(end + late)}
    # At the very end the two may differ by a rounding error.
    found |= {r.who: r.finished for r in drain(lazy)}
    assert found == pytest.approx(seen)


def test_goodput_rises_up_to_the_slots_and_no_further() -> None:
    def goodput(concurrency: int) -> float:
        batch = model(slots=16, step_s=0.1)
        for number in range(concurrency):
            batch.arrive(0.0, number, 4, 20)
        done, started = 0, concurrency
        while done < concurrency * 5:
            assert batch.due is not None
            for _ in batch.advance(now := batch.due):
                done += 1
                if started < concurrency * 5:
                    batch.arrive(now, started, 4, 20)
                    started += 1
        return batch.finished_tokens / now

    assert goodput(1) == pytest.approx(10)
    assert goodput(8) == pytest.approx(80)
    assert goodput(16) == pytest.approx(160)
    assert goodput(32) == pytest.approx(160)


def test_prompts_are_computed_one_after_the_other() -> None:
    batch = model(slots=4, step_s=0.1, prefill_tokens_per_s=100)
    requests = [batch.arrive(0.0, i, 50, 10) for i in range(3)]
    assert (batch.running, batch.decoding) == (3, 0)
    drain(batch)
    assert [r.admitted for r in requests] == [0.0, 0.0, 0.0]
    assert [r.started for r in requests] == pytest.approx([0.5, 1.0, 1.5])
    assert [r.finished for r in requests] == pytest.approx([1.5, 2.0, 2.5])


@pytest.mark.parametrize(("leaver", "starts"), [(0, [0.7, 1.2]), (1, [0.5, 1.0]), (2, [0.5, 1.0])])
def test_who_leaves_during_prefill_makes_the_next_one_earlier(
    leaver: int, starts: list[float]
) -> None:
    batch = model(slots=4, step_s=0.1, prefill_tokens_per_s=100)
    requests = [batch.arrive(0.0, i, 50, 10) for i in range(3)]
    assert batch.leave(requests[leaver], 0.2)
    assert not batch.leave(requests[leaver], 0.2)
    drain(batch)
    assert [r.started for i, r in enumerate(requests) if i != leaver] == pytest.approx(starts)
    assert requests[leaver].finished is None


def test_the_kv_cache_bounds_who_runs() -> None:
    batch = model(slots=10, step_s=0.1, kv_tokens=100)
    requests = [batch.arrive(0.0, i, 20, 20) for i in range(3)]
    assert (batch.running, batch.waiting) == (2, 1)
    assert batch.kv_usage == pytest.approx(0.4)
    batch.advance(1.0)
    assert batch.kv_usage == pytest.approx(0.6)
    assert batch.generated(requests[0]) == pytest.approx(10)
    drain(batch)
    assert [r.finished for r in requests] == pytest.approx([2.0, 2.0, 4.0])
    assert batch.kv_usage == 0


def test_a_request_larger_than_the_kv_cache_runs_alone() -> None:
    batch = model(slots=10, step_s=0.1, kv_tokens=10)
    requests = [batch.arrive(0.0, i, 20, 10) for i in range(2)]
    assert (batch.running, batch.kv_usage) == (1, 1.0)
    drain(batch)
    assert [r.finished for r in requests] == pytest.approx([1.0, 2.0])


def test_thrashing_lets_everybody_in_and_goodput_fall() -> None:
    def goodput(count: int) -> float:
        batch = model(slots=100, step_s=0.1, kv_tokens=1000, kv_thrash=3.0)
        for number in range(count):
            batch.arrive(0.0, number, 50, 50)
        assert batch.waiting == 0
        return batch.decoding / batch.step_time

    assert goodput(10) == pytest.approx(100)
    assert goodput(20) == pytest.approx(200 / 4)


def test_the_prefix_cache_saves_prefill_and_counts() -> None:
    batch = model(slots=1, step_s=0.1, prefill_tokens_per_s=100, prefix_cache_tokens=160)
    first = batch.arrive(0.0, 0, 40, 10, blocks=(1, 2))
    drain(batch)
    second = batch.arrive(10.0, 1, 40, 10, blocks=(1, 2))
    drain(batch)
    assert (first.cached_tokens, second.cached_tokens) == (0, 32)
    assert second.started == pytest.approx(10.08)
    assert (batch.prefix_queries, batch.prefix_hits) == (80, 32)


def test_the_last_prompt_token_is_always_computed() -> None:
    batch = model(prefix_cache_tokens=160)
    batch.arrive(0.0, 0, 32, 1, blocks=(1, 2))
    assert batch.arrive(0.0, 1, 32, 1, blocks=(1, 2)).cached_tokens == 16


def test_a_lower_priority_goes_first() -> None:
    batch = model(slots=1, step_s=0.1)
    for number, priority in enumerate([0, 0, 5, -1, 0]):
        batch.arrive(0.0, number, 1, 1, priority=priority)
    assert [r.who for r in drain(batch)] == [0, 3, 1, 4, 2]


def test_a_client_that_leaves_makes_room_and_costs_nothing() -> None:
    batch = model(slots=1, step_s=0.1)
    requests = [batch.arrive(0.0, i, 1, 10) for i in range(3)]
    batch.leave(requests[1], 0.3)
    batch.leave(requests[0], 0.5)
    assert (batch.running, batch.waiting) == (1, 0)
    assert [r.who for r in drain(batch)] == [2]
    assert requests[2].finished == pytest.approx(1.5)
    assert not batch.leave(requests[2], 2.0)
    assert batch.finished_tokens == 10


def test_many_that_leave_are_forgotten() -> None:
    batch = model(slots=1, step_s=1.0)
    batch.arrive(0.0, -1, 1, 1000)
    for number in range(5000):
        batch.leave(batch.arrive(0.0, number, 1, 1), 0.0)
    assert batch.waiting == 0
    assert len(batch._queue) < 200


def test_changes_of_slots_and_speed() -> None:
    batch = model(slots=2, step_s=0.1)
    requests = [batch.arrive(0.0, i, 1, 10) for i in range(4)]
    batch.change(0.5, slots=1)
    assert batch.running == 2
    batch.change(0.5, slowdown=2.0)
    assert batch.step_time == pytest.approx(0.2)
    batch.advance(1.5)
    assert (batch.running, batch.waiting) == (1, 1)
    batch.change(2.0, slots=4, slowdown=1.0)
    drain(batch)
    assert [r.finished for r in requests] == pytest.approx([1.5, 1.5, 2.75, 3.0])


def test_an_infinite_slowdown_stands_still() -> None:
    batch = model(slots=2, step_s=0.1, prefill_tokens_per_s=10)
    requests = [batch.arrive(0.0, i, 10, 10) for i in range(2)]
    batch.advance(1.5)
    batch.change(1.5, slowdown=math.inf)
    assert batch.due is None
    assert batch.step_time == math.inf
    assert batch.advance(100.0) == []
    batch.change(101.5, slowdown=1.0)
    drain(batch)
    assert [r.finished for r in requests] == pytest.approx([102.0, 103.0])


def test_watched_requests_are_named_when_they_start() -> None:
    batch = model(slots=2, step_s=0.1, prefill_tokens_per_s=10)
    watched = batch.arrive(0.0, 0, 10, 10, watch=True)
    batch.arrive(0.0, 1, 10, 10)
    assert batch.due == pytest.approx(1.0)
    assert batch.advance(1.0) == []
    assert batch.take_started() == [watched]
    assert batch.take_started() == []
    assert batch.generated(watched) == 0


def test_the_mean_number_of_running_sequences() -> None:
    batch = model(slots=4, step_s=0.1)
    batch.arrive(1.0, 0, 1, 10)
    batch.arrive(1.0, 1, 1, 20)
    batch.advance(5.0)
    assert batch.running_seconds == pytest.approx(3.0)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"step_s": 0.0},
        {"step_s": -1.0},
        {"prefill_tokens_per_s": 0},
        {"kv_tokens": 0},
        {"kv_thrash": 1.0},
        {"prefix_block_tokens": 0},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Batching(**options)


class Sequences(RuleBasedStateMachine):
    """Requests come and leave, the server changes: nothing is lost, no bound is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.batch = model(
            slots=3, step_s=0.1, step_per_sequence_s=0.01, prefill_tokens_per_s=100,
            kv_tokens=100, prefix_cache_tokens=64, prefix_block_tokens=4,
        )  # fmt: skip
        self.now = 0.0
        self.open: list[BatchedRequest[int]] = []
        self.finished: list[BatchedRequest[int]] = []
        self.left: list[BatchedRequest[int]] = []
        self.count = 0
        self.most_slots = 3

    @rule(
        prompt=st.integers(0, 40), answer=st.integers(0, 40), blocks=st.integers(0, 4),
        priority=st.integers(-1, 1),
    )  # fmt: skip
    def arrive(self, prompt: int, answer: int, blocks: int, priority: int) -> None:
        request = self.batch.arrive(
            self.now, self.count, prompt, answer, blocks=range(blocks), priority=priority
        )
        self.count += 1
        self.open.append(request)

    @rule(step=st.floats(0.0, 3.0))
    def wait(self, step: float) -> None:
        self.now += step
        self.take(self.batch.advance(self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.open))
        if self.batch.leave(request, self.now):
            self.open.remove(request)
            self.left.append(request)

    @rule(slots=st.integers(1, 5), slowdown=st.sampled_from([0.5, 1.0, 3.0]))
    def change(self, slots: int, slowdown: float) -> None:
        self.batch.change(self.now, slots=slots, slowdown=slowdown)
        self.most_slots = max(slots, self.batch.running)

    def take(self, finished: list[BatchedRequest[int]]) -> None:
        for request in finished:
            self.open.remove(request)
        self.finished += finished

    @invariant()
    def books_balance(self) -> None:
        batch = self.batch
        unclaimed = [r for r in self.open if r.finished is not None]
        running = [r for r in self.open if r.admitted is not None and r.finished is None]
        assert batch.running == len(running) <= self.most_slots
        assert batch.waiting == len(self.open) - len(unclaimed) - len(running)
        assert batch.decoding == sum(r.started is not None for r in running)
        assert batch.finished_requests == len(self.finished) + len(unclaimed)
        reserved = sum(r.prompt_tokens + r.answer_tokens for r in running)
        assert len(running) <= 1 or reserved <= 100
        assert 0 <= batch.kv_usage <= 1
        for request in running:
            assert -1e-9 <= batch.generated(request) <= request.answer_tokens + 1e-9
        # Work conservation: nobody waits who could run.
        first = min(
            (r for r in self.open if r.admitted is None), key=lambda r: r.arrived, default=None
        )
        if first is not None:
            assert running
            assert len(running) >= batch.slots or reserved > 100 - 80

    def teardown(self) -> None:
        self.batch.change(self.now, slowdown=1.0)
        self.take(drain(self.batch))
        assert not self.open
        assert len(self.finished) + len(self.left) == self.count
        assert self.batch.finished_tokens == sum(r.answer_tokens for r in self.finished)
        assert self.batch.running == self.batch.waiting == self.batch.kv_usage == 0
        for request in self.finished:
            assert request.finished is not None
            assert request.started is not None
            assert request.admitted is not None
            assert request.arrived <= request.admitted <= request.started <= request.finished


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
