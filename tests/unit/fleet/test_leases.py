"""Leases under any order of events: nothing lost, nothing counted twice."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.fleet._leases import Grant, LeaseTable

ALL = 10**9


class Peer:
    """A worker as the table meets it, over a line that loses messages."""

    def __init__(self, table: LeaseTable, name: str = "a", room: int = 4) -> None:
        self.table = table
        self.name = name
        self.room = room
        self.number = -1
        self.ack = -1
        self.held: dict[int, int] = {}
        self.unbegun: set[int] = set()

    def message(self, now: float = 0.0, *, done: int = 0, replied: bool = True) -> Grant:
        """Send a message with so many answers; take the reply unless it is lost."""
        self.number += 1
        self.table.message(
            self.name,
            now,
            number=self.number,
            ack=self.ack,
            room=self.room,
            unbegun=len(self.unbegun),
        )
        for number in list(self.held)[:done]:
            self.table.answered(self.name, number, now)
            self.forget(number)
        grant = self.table.grant(self.name, now, most_bytes=ALL)
        if replied:
            self.ack = self.number
            self.held |= dict(grant.leases)
            self.unbegun |= {number for number, _ in grant.leases}
            for number in grant.drop:
                self.forget(number)
        return grant

    def begin(self) -> None:
        self.unbegun.clear()

    def forget(self, number: int) -> None:
        self.held.pop(number, None)
        self.unbegun.discard(number)

    def hand_back(self, count: int) -> None:
        for number in sorted(self.unbegun)[:count]:
            self.table.handed_back(self.name, number, self.held[number])
            self.forget(number)


def numbers(grant: Grant) -> list[int]:
    return [number for number, _ in grant.leases]


def test_tasks_go_out_in_order_and_as_many_as_there_is_room_for() -> None:
    table = LeaseTable()
    added = [table.add(0) for _ in range(6)]
    peer = Peer(table)
    assert numbers(peer.message()) == added[:4]
    assert numbers(peer.message(done=1)) == added[4:5]
    assert table.queued == 1


def test_what_a_lost_reply_granted_goes_out_again() -> None:
    table = LeaseTable()
    added = [table.add(0) for _ in range(4)]
    peer = Peer(table)
    peer.message(replied=False)
    assert table.queued == 0
    assert numbers(peer.message()) == added


def test_an_old_fence_hands_nothing_back() -> None:
    table = LeaseTable()
    number = table.add(0)
    slow, quick = Peer(table, "slow"), Peer(table, "quick")
    fence = dict(slow.message().leases)[number]
    table.lost("slow")
    assert numbers(quick.message()) == [number]
    table.message("slow", 0.0, number=5, ack=0, room=0, unbegun=0)
    table.handed_back("slow", number, fence)
    assert table.queued == 0


def test_the_first_answer_counts() -> None:
    table = LeaseTable()
    number = table.add(0)
    slow, quick = Peer(table, "slow"), Peer(table, "quick")
    slow.message()
    table.lost("slow")
    quick.message()
    assert table.answered("slow", number, 1.0)
    assert not table.answered("quick", number, 2.0)
    assert quick.message().drop == [number]
    assert table.statistics().doubled == 1


def test_an_answer_of_a_lost_worker_counts_before_the_task_is_out_again() -> None:
    table = LeaseTable()
    number = table.add(0)
    Peer(table).message()
    table.lost("a")
    assert table.answered("a", number, 1.0)
    assert table.queued == len(table) == 0


def test_a_silent_worker_is_named_and_time_the_table_was_not_asked_does_not_count() -> None:
    table = LeaseTable()
    Peer(table).message(0.0)
    for now in range(10):
        assert table.silent(float(now), 10.0) == []
    assert table.silent(11.0, 10.0) == ["a"]
    table = LeaseTable()
    Peer(table).message(0.0)
    table.silent(0.0, 10.0)
    assert table.silent(100.0, 10.0) == []


def test_higher_priorities_first_and_jobs_of_one_priority_alike() -> None:
    table = LeaseTable()
    many = [table.add(1) for _ in range(8)]
    few = [table.add(2) for _ in range(2)]
    urgent = table.add(3, priority=1)
    peer = Peer(table, room=5)
    granted = numbers(peer.message())
    assert granted[0] == urgent
    assert sorted(granted[1:]) == sorted([*many[:2], *few])


def test_a_reply_holds_what_fits_and_one_always() -> None:
    table = LeaseTable()
    for size in (10, 100, 10):
        table.add(0, size=size)
    peer = Peer(table)
    peer.number += 1
    table.message("a", 0.0, number=0, ack=-1, room=4, unbegun=0)
    assert numbers(table.grant("a", 0.0, most_bytes=50)) == [0]
    table.message("a", 0.0, number=1, ack=0, room=4, unbegun=0)
    assert numbers(table.grant("a", 0.0, most_bytes=50)) == [1]


def test_an_idle_worker_gets_what_another_has_not_begun() -> None:
    table = LeaseTable()
    for _ in range(8):
        table.add(0)
    rich, idle = Peer(table, "rich", room=8), Peer(table, "idle", room=4)
    rich.message()
    rich.message()
    idle.message()
    told = rich.message().give_back
    assert told == 4
    rich.hand_back(told)
    rich.room = 0
    rich.message()
    assert len(idle.message().leases) == 4


def test_a_task_that_takes_far_too_long_is_asked_a_second_time() -> None:
    table = LeaseTable()
    for _ in range(40):
        table.add(0)
    slow, quick = Peer(table, "slow", room=1), Peer(table, "quick", room=8)
    slow.message(0.0)
    slow.begin()
    now = 0.0
    while table.queued:
        now += 1.0
        quick.message(now, done=8)
    quick.message(now + 1, done=8)
    grant = quick.message(now + 2)
    assert numbers(grant) == list(slow.held)
    assert table.statistics().copies == 1


def test_what_kills_its_workers_is_given_up_and_nothing_else() -> None:
    table = LeaseTable(most_losses=4)
    poison = table.add(0)
    others = {table.add(0) for _ in range(20)}
    given_up: list[int] = []
    answered: set[int] = set()
    for life in range(200):
        peer = Peer(table, f"w{life}", room=7)
        for _ in range(3):
            peer.message()
            if poison in peer.held:
                given_up += table.lost(peer.name)
                break
            for number in list(peer.held):
                assert table.answered(peer.name, number, 0.0)
                answered.add(number)
                peer.forget(number)
        else:
            table.leave(peer.name)
        if not len(table):
            break
    assert given_up == [poison]
    assert answered == others


class AnyOrder(RuleBasedStateMachine):
    """Workers that come, go, stall and return, over a line that loses anything."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = LeaseTable(most_losses=10**6)
        self.peers: dict[str, Peer] = {}
        self.open: set[int] = set()
        self.lives = 0

    def answer(self, peer: Peer, number: int) -> None:
        first = self.table.answered(peer.name, number, self.now)
        assert first == (number in self.open)
        self.open.discard(number)
        peer.forget(number)

    @rule(job=st.integers(0, 2), priority=st.integers(0, 1))
    def add(self, job: int, priority: int) -> None:
        self.open.add(self.table.add(job, priority=priority, size=1))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.table.withdraw(number)
        self.open.discard(number)

    @rule(room=st.integers(0, 5))
    def join(self, room: int) -> None:
        self.lives += 1
        name = f"w{self.lives}"
        self.peers[name] = Peer(self.table, name, room)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        done=st.integers(0, 3),
        back=st.integers(0, 2),
        begin=st.booleans(),
        replied=st.booleans(),
        step=st.floats(0, 5),
    )
    def message(  # noqa: PLR0917 - Hypothesis names what it draws
        self,
        data: st.DataObject,
        done: int,
        back: int,
        begin: bool,
        replied: bool,
        step: float,
    ) -> None:
        self.now += step
        peer = self.peers[data.draw(st.sampled_from(sorted(self.peers)))]
        if begin:
            peer.begin()
        peer.number += 1
        self.table.message(
            peer.name,
            self.now,
            number=peer.number,
            ack=peer.ack,
            room=peer.room,
            unbegun=len(peer.unbegun),
        )
        peer.hand_back(back)
        for number in list(peer.held)[:done]:
            self.answer(peer, number)
        grant = self.table.grant(peer.name, self.now, most_bytes=3)
        if replied:
            peer.ack = peer.number
            peer.held |= dict(grant.leases)
            peer.unbegun |= set(numbers(grant))
            for number in grant.drop:
                peer.forget(number)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), dead=st.booleans())
    def lose(self, data: st.DataObject, dead: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.peers)))
        assert self.table.lost(name) == []
        if dead:
            del self.peers[name]

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.peers)))
        self.table.leave(name)
        del self.peers[name]

    @rule(step=st.floats(0, 30))
    def expire(self, step: float) -> None:
        self.now += step
        for name in self.table.silent(self.now, 10.0):
            self.table.lost(name)

    @invariant()
    def nothing_is_lost(self) -> None:
        statistics = self.table.statistics()
        assert statistics.queued + statistics.leased == len(self.table) == len(self.open)
        held = {n for w in self.table._workers.values() for n in w.leases}
        assert held <= self.open
        assert len(self.open - held) == statistics.queued
        assert sum(self.table._leased_of.values()) == sum(
            len(w.leases) for w in self.table._workers.values()
        )

    def teardown(self) -> None:
        """One healthy worker is enough for every task that is left."""
        for name in list(self.table._workers):
            self.table.lost(name)
        last = Peer(self.table, "last", room=3)
        for _ in range(20 * (len(self.open) + 1)):
            if not self.open:
                break
            last.message(self.now)
            for number in list(last.held):
                self.answer(last, number)
        assert not self.open


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("room", [0, 1])
def test_a_worker_without_room_gets_nothing_more(room: int) -> None:
    table = LeaseTable()
    for _ in range(3):
        table.add(0)
    peer = Peer(table, room=room)
    assert len(peer.message().leases) == room
    assert not peer.message().leases


def test_what_is_paid_for_once_is_given_up_with_its_worker() -> None:
    table = LeaseTable()
    first, second = Peer(table, "a"), Peer(table, "b")
    once, often = table.add(0, once=True), table.add(0)
    first.message()
    assert set(first.held) == {once, often}
    assert table.lost("a") == [once]
    assert [number for number, _ in second.message(1.0).leases] == [often]


def test_what_is_paid_for_once_is_never_given_to_a_second_worker() -> None:
    table = LeaseTable(copies_share=1.0)
    first, second = Peer(table, "a"), Peer(table, "b")
    once, often = table.add(0, once=True), table.add(0)
    first.message(0.0)
    first.unbegun.clear()
    for moment in range(1, 60):
        second.message(float(moment))
    assert once in first.held
    assert set(second.held) == {often}
