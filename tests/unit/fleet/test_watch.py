"""When a node's server is ready, stuck, started again or given up."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from scaleinfer.fleet._watch import Again, GiveUp, Kill, Watch

READY_TIMEOUT, CHECK_EVERY = 600.0, 5.0


def watch(*, restarts: int = 5, failed_checks: int = 3, seed: int = 0) -> Watch:
    return Watch(
        ready_timeout=READY_TIMEOUT,
        restarts=restarts,
        check_every=CHECK_EVERY,
        failed_checks=failed_checks,
        seed=seed,
    )


def ready_at(now: float, *, restarts: int = 5) -> Watch:
    made = watch(restarts=restarts)
    made.started(now - 60)
    assert made.passed(now)
    return made


def test_a_command_that_exits_at_once_is_given_up_at_once() -> None:
    made = watch()
    made.started(10.0)
    assert made.ended(10.2) == GiveUp("exited")
    assert made.state == "failed"


def test_one_that_exits_later_is_tried_once_more() -> None:
    made = watch()
    made.started(0.0)
    assert isinstance(made.ended(200.0), Again)
    made.started(201.0)
    assert made.ended(400.0) == GiveUp("exited")


def test_one_that_is_never_healthy_is_given_up_at_its_timeout() -> None:
    made = watch()
    made.started(0.0)
    assert made.failed(READY_TIMEOUT - 0.1) is None
    assert made.failed(READY_TIMEOUT) == "late"
    assert made.ended(READY_TIMEOUT, killed="late") == GiveUp("late")


def test_a_restart_that_is_late_counts_as_one_of_several() -> None:
    made = ready_at(100.0, restarts=2)
    now = 200.0
    for _ in range(2):
        assert isinstance(made.ended(now, killed=None), Again)
        made.started(now)
        now += READY_TIMEOUT
        assert made.failed(now) == "late"
    assert made.ended(now, killed="late") == GiveUp("restarts")


def test_failed_checks_in_a_row_make_it_stuck() -> None:
    made = ready_at(0.0)
    assert [made.failed(t) for t in (5, 10)] == [None, None]
    assert not made.passed(15)
    assert [made.failed(t) for t in (20, 25, 30)] == [None, None, "stuck"]
    assert isinstance(made.ended(30.0, killed="stuck"), Again)


def test_no_restart_where_none_is_allowed() -> None:
    assert ready_at(0.0, restarts=0).ended(900.0) == GiveUp("restarts")


def test_a_taken_port_is_left_and_costs_no_restart() -> None:
    made = watch(restarts=0)
    for now in range(5):
        made.started(float(now))
        assert made.ended(now + 0.5, port_taken=True) == Again(now + 0.5, move=True)
    made.started(9.0)
    assert made.ended(9.5, port_taken=True) == GiveUp("ports")
    assert made.restarts == 0


def test_pauses_grow_while_it_flaps_and_begin_anew_once_it_lasted() -> None:
    made, now, pauses = ready_at(0.0), 1.0, []
    for _ in range(9):
        again = made.ended(now)
        assert isinstance(again, Again)
        pauses.append(again.at - now)
        made.started(again.at)
        made.passed(again.at + 1)
        now = again.at + 2
    assert 0.45 <= pauses[0] <= 0.55
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[:7]))
    assert 27 <= pauses[-1] <= 33
    again = made.ended(now + 60)
    assert isinstance(again, Again)
    assert again.at - (now + 60) <= 0.55


@given(st.floats(0, READY_TIMEOUT), st.integers(0, 9))
def test_checks_are_soon_and_never_pass_the_timeout(after: float, seed: int) -> None:
    made = watch(seed=seed)
    made.started(100.0)
    now = 100.0 + after
    due = made.next_check(now)
    assert now <= due <= min(now + 1.0, 100.0 + READY_TIMEOUT) + 1e-6
    made.passed(now)
    assert made.next_check(now) == now + CHECK_EVERY


class AnyOrder(RuleBasedStateMachine):
    """Drives it with any order of events, and counts beside it."""

    @initialize(restarts=st.integers(0, 4), checks=st.integers(1, 4), seed=st.integers(0, 9))
    def begin(self, restarts: int, checks: int, seed: int) -> None:
        self.allowed, self.checks = restarts, checks
        self.watch = watch(restarts=restarts, failed_checks=checks, seed=seed)
        self.now = self.started_at = 0.0
        self.runs = self.given_up = self.ever = False
        self.failed = self.without_ready = self.moves = self.restarts = 0
        self.due = 0.0
        self.killed: Kill | None = None

    @rule(seconds=st.floats(0, 700))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.runs and not self.given_up)
    @rule()
    def start(self) -> None:
        self.now = max(self.now, self.due)
        self.started_at = self.now
        self.watch.started(self.now)
        self.runs, self.failed, self.killed = True, 0, None

    @precondition(lambda self: self.runs and self.killed is None)
    @rule()
    def check_passes(self) -> None:
        was = self.watch.state
        assert self.watch.passed(self.now) == (was == "starting")
        self.failed = self.without_ready = self.moves = 0
        self.ever = True

    @precondition(lambda self: self.runs and self.killed is None)
    @rule()
    def check_fails(self) -> None:
        ready = self.watch.state == "ready"
        self.failed += ready
        self.killed = self.watch.failed(self.now)
        if ready:
            assert self.killed == ("stuck" if self.failed >= self.checks else None)
        else:
            late = self.now - self.started_at >= READY_TIMEOUT
            assert self.killed == ("late" if late else None)

    @precondition(lambda self: self.runs)
    @rule(taken=st.booleans())
    def ends(self, taken: bool) -> None:
        was_ready = self.watch.state == "ready"
        verdict = self.watch.ended(self.now, killed=self.killed, port_taken=taken)
        self.runs, self.killed = False, None
        if isinstance(verdict, GiveUp):
            self.given_up = True
            if verdict.why == "restarts":
                assert self.without_ready == self.allowed
            elif verdict.why != "ports":
                assert not self.ever
            return
        assert verdict.move == (taken and not was_ready)
        assert self.now <= verdict.at <= self.now + 33
        self.due = verdict.at
        if verdict.move:
            self.moves += 1
            assert self.moves <= 5
        else:
            self.without_ready += 1
            self.restarts += 1
            assert self.without_ready <= (self.allowed if self.ever else 1)

    @invariant()
    def state_agrees(self) -> None:
        if not hasattr(self, "watch"):
            return
        assert (self.watch.state in {"starting", "ready"}) == self.runs
        assert (self.watch.state == "failed") == self.given_up
        assert (self.watch.ready_since is not None) == (self.watch.state == "ready")
        assert self.watch.restarts == self.restarts


TestAnyOrder = AnyOrder.TestCase
