"""Answers and rows come in any order: each answer reaches its row once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.backends._batch_base import BatchAnswer
from scaleinfer.batch import Landed, Row
from scaleinfer.batch._rows import Pack
from scaleinfer.batch._sent import Sent, words
from scaleinfer.batch._waiting import Waiting
from scaleinfer.journal import OpenBatch
from scaleinfer.requests import Request
from scaleinfer.results import Completion

ROWS, BATCHES = 12, 3


def row(number: int) -> Row:
    return Row(number.to_bytes(16, "big"), 0, f"k{number}", "", number, Request([]))


def earlier(numbers: list[int], name: str) -> Sent:
    members = tuple(row(number).member for number in numbers)
    return Sent.of_journal(OpenBatch(f"t{name}", name, "e", 0.0, members), 1, 0.0, (1.0, 1.0))


class WaitingMachine(RuleBasedStateMachine):
    """Batches of an earlier run; the input brings their rows, the server their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = Waiting()
        size = ROWS // BATCHES
        self.batches = [
            earlier(list(range(n * size, (n + 1) * size)), f"b{n}") for n in range(BATCHES)
        ]
        for batch in self.batches:
            self.waiting.adopt(batch)
        self.come: set[int] = set()
        self.answered: set[int] = set()
        self.given_back: set[int] = set()
        self.landed: list[int] = []
        self.orphans: list[int] = []
        self.input_over = False

    def take(self, landed: list[Landed]) -> None:
        for one in landed:
            if one.row is None:
                self.orphans.append(one.member.index)
            elif one.outcome is None:
                self.given_back.add(one.row.index)
            else:
                assert one.outcome.text == f"{one.row.index}"  # type: ignore[union-attr]
                self.landed.append(one.row.index)

    @precondition(lambda self: not self.input_over)
    @rule(number=st.integers(0, ROWS - 1))
    def a_row_comes(self, number: int) -> None:
        if number in self.come:
            return
        self.come.add(number)
        if not self.waiting.attach(row(number)):
            # Its batch is gone without an answer for it.
            assert number not in self.answered
            self.given_back.add(number)
        self.take(self.waiting.take_late())

    @rule(batch=st.integers(0, BATCHES - 1), numbers=st.sets(st.integers(0, ROWS)))
    def answers_come(self, batch: int, numbers: set[int]) -> None:
        sent = self.batches[batch]
        if sent not in self.waiting.open:
            return
        answers = [
            BatchAnswer(row(number).custom_id, Completion(f"{number}")) for number in numbers
        ]
        ours = {member.index for member in sent.members.values()}
        landed, strange = self.waiting.join(sent, answers)
        assert strange == len(numbers - ours)
        self.answered |= numbers & ours
        self.take(landed)

    @rule(batch=st.integers(0, BATCHES - 1))
    def a_batch_ends(self, batch: int) -> None:
        sent = self.batches[batch]
        if sent in self.waiting.open:
            self.take(self.waiting.fetched(sent))

    @rule()
    def the_input_ends(self) -> None:
        self.input_over = True
        self.take(self.waiting.take_orphans())

    @invariant()
    def each_answer_reaches_its_row_once(self) -> None:
        assert len(self.landed) == len(set(self.landed))
        assert set(self.landed) == self.answered & self.come
        assert len(self.orphans) == len(set(self.orphans))
        assert not set(self.orphans) & self.come
        assert not self.given_back & self.answered

    @invariant()
    def a_batch_is_settled_once_nothing_of_it_is_kept(self) -> None:
        for sent in self.waiting.take_settled():
            ours = {member.index for member in sent.members.values()}
            handed_on = set(self.landed) | set(self.orphans)
            assert self.answered & ours <= handed_on

    def teardown(self) -> None:
        self.the_input_ends()
        self.each_answer_reaches_its_row_once()
        assert self.answered == set(self.landed) | set(self.orphans)


TestWaiting = WaitingMachine.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=25)


def test_a_row_takes_over_how_often_it_was_repaired() -> None:
    waiting = Waiting()
    first = row(1)
    first.repairs = 2
    sent = Sent.of_pack(Pack("g", [first]), "t", 1, 0.0, (1.0, 1.0), 0.0)
    sent.rows.clear()
    waiting.adopt(sent)
    again = row(1)
    assert waiting.attach(again)
    assert again.repairs == 2
    assert sent.rows == {again.slot: again}


def test_where_a_batch_stands_in_words() -> None:
    sent = earlier([1], "b")
    sent.number = 2
    assert words(sent, 5) == "batch 2 of 5: submitted"
    from scaleinfer.backends import BatchState

    sent.job.seen(BatchState("validating"), 0.0)
    assert words(sent, 5) == "batch 2 of 5: being checked"
    sent.job.seen(BatchState("in_progress", 40, 100), 0.0)
    assert words(sent, 5) == "batch 2 of 5: 40 % done"
    sent.job.seen(BatchState("finalizing", 100, 100), 0.0)
    assert words(sent, 5) == "batch 2 of 5: being written"
